"""Promises of PeripheralCentralAttention on packed tokens."""

import copy

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from amuse_kernels import Packed
from amuse_kernels.nn import PeripheralCentralAttention, project_sources
from tests.backends import runnable

LENGTHS = ((3, 1, 4, 0), (5, 0, 2, 1), (3, 1, 4, 0))  # query and two sources, the second as long as the query
WIDTHS = (32, 16, (8, 12))
kinds = pytest.mark.parametrize("kind", ["packed", "jagged"])


def offsets(lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


def pack(values, lengths, kind):
    if kind == "packed":
        return Packed(values, offsets(lengths).int(), max(lengths))
    return torch.nested.nested_tensor_from_jagged(values, offsets(lengths), max_seqlen=max(lengths))


def values_of(tokens):
    return tokens.values if isinstance(tokens, Packed) else tokens.values()


class Call:
    """Random tokens of all samples, which can be given packed or padded."""

    def __init__(self, lengths=LENGTHS):
        self.lengths = lengths

        def draw(length, width):
            return torch.randn(sum(length), width, dtype=torch.float64).requires_grad_()

        (key_width, value_width), pair = WIDTHS[2], self.lengths[2]
        self.query, self.tokens = draw(lengths[0], WIDTHS[0]), draw(lengths[1], WIDTHS[1])
        self.pair = draw(pair, key_width), draw(pair, value_width)
        self.leaves = [self.query, self.tokens, *self.pair]
        self.groups = [torch.randint(0, 2, (sum(length),)) for length in lengths]

    def packed(self, kind):
        query, tokens = pack(self.query, self.lengths[0], kind), pack(self.tokens, self.lengths[1], kind)
        return query, [tokens, tuple(pack(part, self.lengths[2], kind) for part in self.pair)]

    def pad(self, p, values):
        pieces = values.split(self.lengths[p])
        return torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)

    def padded(self):
        masks = [torch.arange(max(n))[None] < torch.tensor(n)[:, None] for n in self.lengths]
        sources = [self.pad(1, self.tokens), tuple(self.pad(2, part) for part in self.pair)]
        return self.pad(0, self.query), sources, masks


def make_layer(**options):
    layer = PeripheralCentralAttention(32, 2, WIDTHS[1:], dtype=torch.float64, **options)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return layer


@kinds
@pytest.mark.parametrize(
    ("options", "call_options"),
    [
        ({}, {}),
        ({"gate": "learned", "bias": False}, {"gates": torch.tensor([[[0.3, 2.0]]] * 4, dtype=torch.float64)}),
        ({"gate": "input", "head_merge": "mean"}, {}),
        ({"gate": [0.2, 0.7], "normalization": "joint"}, {"causal": [False, True]}),
        ({"gate": "learned", "batch_first": False}, {"relations": ["same", "different"]}),
    ],
    ids=["mean", "gates for one call", "input", "joint and causal", "groups"],
)
def test_packed_tokens_give_what_padded_ones_give(kind, options, call_options):
    layer, call = make_layer(**options), Call()
    query, sources, (query_mask, *key_masks) = call.padded()
    groups, packed_groups = {}, {}
    if "relations" in call_options:
        query_groups, *key_groups = [call.pad(p, group) for p, group in enumerate(call.groups)]
        groups = {"query_groups": query_groups, "key_groups": key_groups}
        of_query, *of_keys = [pack(group, n, kind) for group, n in zip(call.groups, call.lengths, strict=True)]
        packed_groups = {"query_groups": of_query, "key_groups": of_keys}

    batch_first = copy.deepcopy(layer)
    batch_first.batch_first = True
    padded, _ = batch_first(query, sources, query_mask=query_mask, key_masks=key_masks, **groups, **call_options)
    expected = padded[query_mask]
    packed_query, packed_sources = call.packed(kind)
    out, weights = layer(packed_query, packed_sources, **packed_groups, **call_options)
    assert weights is None
    assert type(out) is type(packed_query)
    torch.testing.assert_close(values_of(out), expected)

    upstream = torch.randn_like(expected)
    found = torch.autograd.grad(values_of(out), [*call.leaves, *layer.parameters()], upstream, allow_unused=True)
    right = torch.autograd.grad(expected, [*call.leaves, *batch_first.parameters()], upstream, allow_unused=True)
    torch.testing.assert_close(found, right)


def test_a_jagged_result_can_be_added_to_its_query():
    layer, call = make_layer(), Call()
    query, sources = call.packed("jagged")
    out, _ = layer(query, sources)
    assert (query + out).shape == query.shape


@kinds
def test_sources_projected_for_several_layers_at_once_give_the_same(kind):
    layers, call = [make_layer(), make_layer(bias=False, gate="learned")], Call()
    query, sources = call.packed(kind)
    results = []
    for given in (project_sources(layers, sources), [sources, sources]):
        out = torch.stack([values_of(layer(query, own)[0]) for layer, own in zip(layers, given, strict=True)])
        leaves = [*call.leaves, *layers[0].parameters(), *layers[1].parameters()]
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    torch.testing.assert_close(results[0], results[1])


@kinds
def test_changing_lengths_recompile_a_handful_of_times(kind):
    torch._dynamo.reset()
    layer, frames = make_layer(gate="input"), 0

    def backend(graph, _inputs):
        nonlocal frames
        frames += 1
        return graph.forward

    compiled = torch.compile(lambda *arguments: values_of(layer(*arguments)[0]), fullgraph=True, backend=backend)
    for n in range(2, 12):
        call = Call(((n, n + 1, 2), (n + 3, 2, 4), (n, n + 1, 5)))
        arguments = call.packed(kind)
        torch.testing.assert_close(compiled(*arguments), values_of(layer(*arguments)[0]))
    assert frames <= 5


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda q, s: {"query": q._replace(cu_seq=q.cu_seq.long())}, TypeError, r"query\.cu_seq: expected .*int32"),
        (lambda q, s: {"query": q._replace(max_len=2.0)}, TypeError, r"query\.max_len: expected an int"),
        (lambda q, s: {"query": q._replace(values=q.values[:, :31])}, ValueError, r"query: expected packed \(T, 32\)"),
        (lambda q, s: {"query": torch.zeros(4, 4, 32)}, TypeError, r"sources\[0\]: expected padded tokens"),
        (lambda q, s: {"sources": [torch.zeros(4, 4, 16), s[1]]}, TypeError, r"sources\[0\]: expected packed tokens"),
        (lambda q, s: {"sources": [s[0], (s[1][0], s[0])]}, ValueError, r"sources\[1\]: .* packed alike"),
        (lambda q, s: {"sources": [s[1][0], s[1]]}, ValueError, r"sources\[0\] \(key\): expected packed \(T, 16\)"),
        (lambda q, s: {"query_mask": torch.ones(4, 4).bool()}, ValueError, "query_mask: not available with packed"),
        (lambda q, s: {"key_masks": [None, None]}, ValueError, "key_masks: not available with packed"),
        (lambda q, s: {"need_weights": True}, ValueError, "need_weights: not available with packed"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, error, message):
    query, sources = Call().packed("packed")
    arguments = {"query": query, "sources": sources}
    with pytest.raises(error, match=message):
        make_layer()(**arguments | change(query, sources))


def test_a_nested_tensor_with_holes_or_another_ragged_dim_is_refused():
    query, sources = Call().packed("jagged")
    with_holes = torch.nested.nested_tensor_from_jagged(
        query.values(), query.offsets(), lengths=torch.tensor([1, 1, 1, 0])
    )
    with pytest.raises(ValueError, match="query: expected a jagged nested tensor without holes"):
        make_layer()(with_holes, sources)
    with pytest.raises(ValueError, match=r"query: expected a jagged nested tensor \(B, ragged, dim\)"):
        make_layer()(query.transpose(1, 2), sources)


class Largest(TorchDispatchMode):
    """The most tokens that any op between the query and the output gives."""

    tokens = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [t for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor) and not t.is_nested]
        self.tokens = max(self.tokens, *(t.numel() // 32 for t in made), 0)
        return result


@pytest.mark.skipif("cpu" not in runnable(), reason="needs the native library")
@kinds
def test_no_padding_is_computed_in_between(kind):
    """One long sample and many short ones, which padding would make 17 times as many tokens."""
    lengths = (64, *[1] * 63)
    layer, call = make_layer(gate="input", backend="cpu"), Call((lengths, lengths, lengths))
    query, sources = call.packed(kind)
    with Largest() as largest:
        values_of(layer(query, sources)[0]).sum().backward()
    assert largest.tokens <= sum(lengths)


def test_packed_tokens_have_forward_mode_derivatives():
    layer, call = make_layer(gate="input").requires_grad_(False), Call()

    def run(values):
        return values_of(layer(pack(values, LENGTHS[0], "packed"), call.packed("packed")[1])[0])

    tangent = torch.randn_like(call.query)
    _, derivative = torch.func.jvp(run, (call.query.detach(),), (tangent,))
    upstream = torch.randn_like(derivative)
    (grad,) = torch.autograd.grad(run(call.query), call.query, upstream)
    torch.testing.assert_close((derivative * upstream).sum(), (grad * tangent).sum())
