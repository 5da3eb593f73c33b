"""Promises of p2c_attention_varlen, on every backend that can run here."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from amuse_kernels import p2c_attention, p2c_attention_varlen
from tests.backends import GPU_KERNELS, runnable

DTYPE = torch.float32 if GPU_KERNELS else torch.float64
HEADS, WIDTH = 2, 16
QUERIES, KEYS = (3, 0, 5, 1), ((2, 4, 0, 1), (3, 0, 5, 1))  # the second source may be causal; samples lack each one
OPTIONS = {
    "plain": {},
    "gates": {"gates": True},
    "groups": {"groups": True, "relations": ["same", "different"]},
    "causal": {"causal": [False, True]},
    "joint": {"normalization": "joint", "gates": True},
    "every option": {
        "normalization": "joint",
        "gates": True,
        "groups": True,
        "relations": ["any", "same"],
        "causal": [False, True],
        "softmax_scale": 0.3,
    },
}
backends = pytest.mark.parametrize("backend", runnable())


def offsets(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


@contextlib.contextmanager
def recorded_ops():
    """The calls of this package's ops: op, arguments and keywords, detached."""
    calls = []

    def detached(value):
        return value.detach() if isinstance(value, torch.Tensor) else value

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "amuse_kernels":
                calls.append((func, *pytree.tree_map(detached, (args, kwargs or {}))))
            return func(*args, **(kwargs or {}))

    with Recorder():
        yield calls


class Packed:
    """A random call: tensors of all samples, and how they are packed."""

    def __init__(self, queries=QUERIES, keys=KEYS, dtype=DTYPE, gates=False, groups=False, **options):
        generator = torch.Generator().manual_seed(0)

        def tokens(lengths):
            drawn = torch.randn(sum(lengths), HEADS, WIDTH, generator=generator, dtype=torch.float64)
            return drawn.to(dtype).requires_grad_()

        self.lengths, self.options = (queries, *keys), options
        self.query, self.keys, self.values = tokens(queries), [*map(tokens, keys)], [*map(tokens, keys)]
        self.leaves = [self.query, *self.keys, *self.values]
        if gates:
            shape = (len(queries), HEADS, len(keys))
            self.options["gates"] = torch.rand(shape, generator=generator, dtype=dtype).requires_grad_()
            self.leaves.append(self.options["gates"])
        self.groups = [torch.randint(0, 2, (sum(n),), generator=generator) for n in self.lengths] if groups else None

    def run(self, **extra):
        groups = {} if self.groups is None else {"query_groups": self.groups[0], "key_groups": self.groups[1:]}
        cu_seq_q, *cu_seq_k = [offsets(lengths) for lengths in self.lengths]
        max_q, *max_k = [max(lengths, default=0) for lengths in self.lengths]
        arguments = (self.query, self.keys, self.values, cu_seq_q, cu_seq_k, max_q, max_k)
        return p2c_attention_varlen(*arguments, **groups, **self.options, **{"return_lse": True, **extra})

    def dense(self, **extra):
        """The dense op of every sample, with the results packed."""
        outs, lses = [], []
        for b in range(len(self.lengths[0])):
            pieces = [slice(sum(lengths[:b]), sum(lengths[: b + 1])) for lengths in self.lengths]

            def own(tensor, p, pieces=pieces):
                return tensor[pieces[p]][None].transpose(1, 2)

            options = dict(self.options)
            if "gates" in options:
                options["gates"] = options["gates"][b : b + 1]
            if self.groups is not None:
                query_groups, *key_groups = [g[piece][None] for g, piece in zip(self.groups, pieces, strict=True)]
                options |= {"query_groups": query_groups, "key_groups": key_groups}
            keys, values = ([own(t, p + 1) for p, t in enumerate(tensors)] for tensors in (self.keys, self.values))
            out, lse = p2c_attention(own(self.query, 0), keys, values, **options, return_lse=True, **extra)
            outs.append(out[0].transpose(0, 1))
            lses.append(lse[0].transpose(0, 1))
        return torch.cat(outs), torch.cat(lses)

    def padded(self, **extra):
        """The dense op of all samples at once, with masks; the results packed."""

        def pad(tensor, p):
            lengths = self.lengths[p]
            padded = tensor.new_zeros(len(lengths), max(lengths), *tensor.shape[1:])
            index = torch.cat([torch.arange(n) + b * max(lengths) for b, n in enumerate(lengths)])
            return padded.flatten(0, 1).index_copy(0, index, tensor).unflatten(0, padded.shape[:2])

        def heads(tensor, p):
            return pad(tensor, p).transpose(1, 2)

        masks = [pad(torch.ones(sum(n), dtype=torch.bool), p) for p, n in enumerate(self.lengths)]
        options = dict(self.options, key_masks=masks[1:])
        if self.groups is not None:
            query_groups, *key_groups = [pad(g, p) for p, g in enumerate(self.groups)]
            options |= {"query_groups": query_groups, "key_groups": key_groups}
        keys, values = ([heads(t, p + 1) for p, t in enumerate(tensors)] for tensors in (self.keys, self.values))
        results = p2c_attention(heads(self.query, 0), keys, values, **options, return_lse=True, **extra)
        return tuple(tensor.transpose(1, 2)[masks[0]] for tensor in results)

    def gradients(self, out, lse):
        generator = torch.Generator().manual_seed(1)
        upstream = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in (out, lse)]
        upstream[1] = torch.where(lse > -torch.inf, upstream[1], 0.0)
        return torch.autograd.grad((out, lse), self.leaves, upstream)


@backends
@pytest.mark.parametrize("options", OPTIONS)
def test_each_sample_is_attention_of_its_own_tokens(backend, options):
    call = Packed(**OPTIONS[options])
    results, expected = call.run(backend=backend), call.dense(backend=backend)
    assert results[0].shape == call.query.shape
    torch.testing.assert_close(results, expected)
    torch.testing.assert_close(call.gradients(*results), call.gradients(*expected))


@backends
def test_both_ops_drop_the_same_pairs(backend):
    call = Packed((4, 4), ((6, 6),), dropout_p=0.5, seed=7)
    out, _ = call.run(backend=backend)

    def dense(tensor, length):
        return tensor.unflatten(0, (2, length)).transpose(1, 2)

    key, value = dense(call.keys[0], 6), dense(call.values[0], 6)
    expected = p2c_attention(dense(call.query, 4), [key], [value], dropout_p=0.5, seed=7, backend=backend)
    torch.testing.assert_close(out, expected.transpose(1, 2).flatten(0, 1), rtol=0, atol=0)


RAGGED = (70, 0, 3, 33, 1), ((5, 300, 130, 0, 48), (70, 0, 3, 33, 1))  # more than a block of queries and tile of keys


@pytest.mark.skipif("cpu" not in runnable(), reason="needs the native library")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS)
def test_bits_are_those_of_the_dense_op_with_masks(options, dtype):
    call = Packed(*RAGGED, dtype=dtype, **OPTIONS[options])
    results = call.run(backend="cpu", dropout_p=0.1, seed=3)
    grads = call.gradients(*results)
    expected = call.padded(backend="cpu", dropout_p=0.1, seed=3)
    torch.testing.assert_close(results, expected, rtol=0, atol=0)
    torch.testing.assert_close(grads, call.gradients(*expected), rtol=0, atol=0)


@pytest.mark.skipif("cpu" not in runnable(), reason="needs the native library")
@pytest.mark.parametrize("options", ["groups", "every option"])
@pytest.mark.parametrize("lengths", [RAGGED, ((400, 2), ((3, 250), (400, 2)))], ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(lengths, options):
    call, results = Packed(*lengths, dtype=torch.float32, **OPTIONS[options]), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            out, lse = call.run(backend="cpu")
            results.append((out, lse, *call.gradients(out, lse)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)


@pytest.mark.skipif("cpu" not in runnable(), reason="needs the native library")
def test_offsets_that_leave_the_tensors_are_refused_where_nothing_looked_into_them():
    """A compiled graph does not look into offsets; the kernels do."""
    compiled = torch.compile(
        lambda *given: p2c_attention_varlen(*given, [4]), fullgraph=True, backend="aot_eager", dynamic=True
    )
    query, good = torch.zeros(3, 2, 16), torch.tensor([0, 1, 3]).int()
    assert compiled(query, [query], [query], good, [good], 4).shape == query.shape
    for bad in ([0, 9, 3], [0, 1, 2], [-1, 1, 3], [1, 1, 3]):
        with pytest.raises(ValueError, match=r"cu_seq_q: expected offsets that rise from 0 to 3 by at most 4"):
            compiled(query, [query], [query], torch.tensor(bad).int(), [good], 4)


@backends
def test_longer_maxima_change_nothing(backend):
    call = Packed(gates=True)
    out, _ = call.run(backend=backend)
    cu_seq = [offsets(lengths) for lengths in call.lengths]
    options = {**call.options, "backend": backend}
    longer = p2c_attention_varlen(
        call.query, call.keys, call.values, cu_seq[0], cu_seq[1:], max_q=40, max_k=[50, 60], **options
    )
    torch.testing.assert_close(longer, out)


@backends
def test_a_sample_does_not_see_another_one(backend):
    """NaN in all tokens of the third sample leaves the others and their gradients as they were."""
    call, spoiled = Packed(gates=True), Packed(gates=True)
    with torch.no_grad():
        spoiled.query[3:8] = torch.nan
        for tensors in (spoiled.keys, spoiled.values):
            tensors[0][6:6] = torch.nan
            tensors[1][3:8] = torch.nan
    out, _ = call.run(backend=backend)
    found, _ = spoiled.run(backend=backend)
    others = torch.tensor([0, 1, 2, 8])
    torch.testing.assert_close(found[others], out[others], rtol=0, atol=0)
    grads = torch.autograd.grad(found[others].sum(), spoiled.leaves)
    expected = torch.autograd.grad(out[others].sum(), call.leaves)
    for grad, right in zip(grads[:2], expected[:2], strict=True):
        torch.testing.assert_close(grad[:3], right[:3], rtol=0, atol=0)


@backends
@pytest.mark.parametrize(
    ("queries", "keys"), [((), ((),)), ((0, 0), ((2, 3),)), ((2, 3), ((0, 0),)), ((2,), ((0,), (3,)))], ids=str
)
def test_empty_batches_and_sources(backend, queries, keys):
    call = Packed(queries, keys)
    out, lse = call.run(backend=backend)
    assert out.shape == (sum(queries), HEADS, WIDTH)
    assert lse.shape == (sum(queries), HEADS, len(keys))
    for grad, leaf in zip(call.gradients(out, lse), call.leaves, strict=True):
        assert grad.shape == leaf.shape
        assert grad.isfinite().all()


@backends
def test_backward_is_bitwise_deterministic(backend):
    call = Packed(**OPTIONS["every option"])
    first, second = (call.gradients(*call.run(backend=backend)) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.skipif(GPU_KERNELS, reason="GPU kernels have no fp64")
@pytest.mark.parametrize("options", ["gates", "every option"])
def test_gradients_can_be_differentiated_again(options):
    call = Packed((2, 1), ((1, 2), (2, 1)), **OPTIONS[options])

    def run(query):
        call.query = query
        return call.run()[0]

    assert torch.autograd.gradgradcheck(run, call.query)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cu_seq_q": torch.tensor([0, 2, 1, 3]).int()}, ValueError, "cu_seq_q: expected offsets that rise from 0"),
        ({"cu_seq_q": torch.tensor([0, 1, 2]).int()}, ValueError, "cu_seq_q: .* number of tokens, 3"),
        ({"cu_seq_q": torch.tensor([0, 1, 3])}, TypeError, "cu_seq_q: expected a tensor of torch.int32"),
        ({"cu_seq_k": [torch.tensor([0, 4]).int()]}, ValueError, r"cu_seq_k\[0\]: expected 2 samples"),
        ({"max_q": 1}, ValueError, "max_q: expected the longest sequence, 2, or more, got 1"),
        ({"max_q": 2.0}, TypeError, "max_q: expected an int"),
        ({"max_k": [1]}, ValueError, r"max_k\[0\]: expected the longest sequence, 3"),
        ({"max_k": 4}, TypeError, "max_k: expected a list or tuple"),
        ({"query": torch.zeros(1, 2, 3, 16)}, ValueError, r"query: expected 3 dimensions \(Tq, H, D\)"),
        ({"keys": [torch.zeros(4, 3, 16)]}, ValueError, r"keys\[0\]: expected \(T, 2, 16\)"),
        ({"causal": True}, ValueError, r"causal\[0\]: needs as many keys as queries in every sample"),
        ({"query_groups": torch.zeros(4).long()}, ValueError, r"query_groups: expected \(3,\)"),
        ({"gates": torch.ones(3, 1, 1)}, ValueError, r"gates: .* \(B, H, P\) = \(2, 2, 1\)"),
        (
            {"max_q": True, "query": torch.zeros(2, 2, 16), "cu_seq_q": torch.tensor([0, 1, 2]).int()},
            TypeError,
            "max_q: expected an int",
        ),
        ({"max_q": 2**31}, ValueError, "max_q: expected a length from 0 to 2"),
        ({"keys": [torch.zeros(4, 2, 16, device="meta")]}, ValueError, r"keys\[0\]: expected device cpu, got meta"),
        ({"values": [torch.zeros(4, 2, 16, device="meta")]}, ValueError, r"values\[0\]: expected device cpu, got meta"),
        ({"cu_seq_q": offsets([2, 1]).to("meta")}, ValueError, "cu_seq_q: expected device cpu, got meta"),
        ({"dropout_p": False}, TypeError, "dropout_p: expected a float"),
        ({"values": torch.zeros(1, 4, 2, 16)}, TypeError, "values: expected a list or tuple"),
        ({"values": [torch.zeros(4, 2, 16).double()]}, TypeError, r"values\[0\]: expected a tensor of torch.float32"),
        ({"gates": torch.tensor(float("inf"))}, ValueError, "gates: expected finite gates"),
        ({"backend": "triton"}, Exception, "cannot run p2c_attention_varlen"),
    ],
)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
def test_bad_arguments_are_refused_by_name(change, error, message, grad):
    arguments = {
        "query": torch.zeros(3, 2, 16),
        "keys": [torch.zeros(4, 2, 16)],
        "values": [torch.zeros(4, 2, 16)],
        "cu_seq_q": torch.tensor([0, 1, 3]).int(),
        "cu_seq_k": [torch.tensor([0, 1, 4]).int()],
        "max_q": 2,
        "max_k": [3],
    }
    if "backend" in change and "triton" in runnable():
        pytest.skip("this process runs triton on CPU tensors")
    # without gradients the kernels look at the arguments first
    with torch.set_grad_enabled(grad), pytest.raises(error, match=message):
        p2c_attention_varlen(**(arguments | change))


@pytest.mark.parametrize("options", ["plain", "gates"])
def test_without_gradients_the_result_has_the_same_bits(options):
    call = Packed(**OPTIONS[options])
    expected, _ = call.run()
    with torch.no_grad():
        assert torch.equal(call.run(return_lse=False), expected)


@pytest.mark.skipif("cpu" not in runnable(), reason="needs the native library")
@pytest.mark.parametrize("options", ["gates", "every option"])
def test_packed_ops_pass_opcheck(options):
    call = Packed(dtype=torch.float32, **OPTIONS[options])
    with recorded_ops() as recorded:
        call.gradients(*call.run(dropout_p=0.25, seed=7))
    names = [str(op) for op, _, _ in recorded]
    assert names == ["amuse_kernels.p2c_attention_forward.default", "amuse_kernels.p2c_attention_backward.default"]
    for op, arguments, keywords in recorded:
        torch.library.opcheck(op, arguments, keywords)


@pytest.mark.skipif(GPU_KERNELS, reason="about tracing")
def test_a_packed_call_can_be_exported():
    class Module(torch.nn.Module):
        def forward(self, query, key, cu_seq, longest):
            return p2c_attention_varlen(query, [key], [key], cu_seq, [cu_seq], longest, [longest])

    query, cu_seq = torch.randn(7, 2, 16), offsets([3, 4])
    exported = torch.export.export(Module(), (query, query, cu_seq, 4), strict=True)
    assert "amuse_kernels.p2c_attention_forward.default" in [str(node.target) for node in exported.graph.nodes]
    torch.testing.assert_close(exported.module()(query, query, cu_seq, 4), Module()(query, query, cu_seq, 4))


@torch.no_grad()
def test_nothing_is_read_back_from_a_gpu():
    """Fake tensors have no contents, so that a read raises."""
    pytest.importorskip("triton")
    with FakeTensorMode():
        query, key = torch.empty(7, 2, 16, device="cuda"), torch.empty(9, 2, 16, device="cuda")
        cu_seq = torch.empty(4, dtype=torch.int32, device="cuda")
        out = p2c_attention_varlen(query, [key], [key], cu_seq, [cu_seq], 5, [6])
        assert out.shape == query.shape


@pytest.mark.skipif(GPU_KERNELS, reason="about the compiler")
def test_compiles_to_one_graph_and_changing_lengths_recompile_a_handful_of_times():
    torch._dynamo.reset()
    frames = 0

    def backend(graph, _inputs):
        nonlocal frames
        frames += 1
        return graph.forward

    def run(query, keys, values, cu_seq, maxima, gates):
        return p2c_attention_varlen(
            query, keys, values, cu_seq[0], cu_seq[1:], maxima[0], maxima[1:], gates=gates, return_lse=True
        )

    compiled = torch.compile(run, fullgraph=True, backend=backend)
    for n in range(2, 12):
        call = Packed((n, n + 1, 2), ((n + 3, 2, 4), (n, n + 1, 5)), gates=True)
        arguments = (call.query, call.keys, call.values, [offsets(x) for x in call.lengths])
        maxima = [max(x) for x in call.lengths]
        torch.testing.assert_close(compiled(*arguments, maxima, call.options["gates"]), call.run())
    assert frames <= 5


def test_autocast_computes_in_the_low_precision():
    call = Packed(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, lse = call.run()
    assert out.dtype == torch.bfloat16
    assert lse.dtype == torch.float32
