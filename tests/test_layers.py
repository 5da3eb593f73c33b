"""Promises of the drop-in layers."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from amuse_kernels.nn import AdaptiveFusion, PeripheralCentralAttention, project_sources


def make_layer(**options):
    return PeripheralCentralAttention(32, 2, [16, (8, 12)], **options)


def make_sources(batch=3, queries=4):
    query = torch.randn(batch, queries, 32)
    return query, [torch.randn(batch, 5, 16), (torch.randn(batch, 6, 8), torch.randn(batch, 6, 12))]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", [{}, {"kdim": 16, "vdim": 24}])
def test_it_gives_the_output_of_the_multihead_attention_it_was_made_from(batch_first, bias, dims):
    mha = nn.MultiheadAttention(32, 4, bias=bias, batch_first=batch_first, **dims).eval()
    if bias:
        nn.init.normal_(mha.in_proj_bias)
        nn.init.normal_(mha.out_proj.bias)
    layer = PeripheralCentralAttention.from_multihead_attention(mha)
    query = torch.randn(3, 3, 32)
    key, value = torch.randn(3, 3, mha.kdim), torch.randn(3, 3, mha.vdim)
    expected, expected_weights = mha(query, key, value)
    out, weights = layer(query, [(key, value)], need_weights=True)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(weights[0], expected_weights)
    hidden = torch.zeros(3, 3, dtype=torch.bool)
    hidden[:, 2] = True
    expected, _ = mha(query, key, value, key_padding_mask=hidden)
    torch.testing.assert_close(layer(query, [(key, value)], key_masks=[~hidden])[0], expected)
    assert not layer.training


@pytest.mark.parametrize("option", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_it_refuses_a_multihead_attention_it_cannot_equal(option):
    with pytest.raises(ValueError, match="mha: add_bias_kv and add_zero_attn"):
        PeripheralCentralAttention.from_multihead_attention(nn.MultiheadAttention(32, 4, **option))


@pytest.mark.parametrize("gate", ["mean", "learned", "input", 0.5])
@pytest.mark.parametrize("head_merge", ["concat", "mean"])
@pytest.mark.parametrize("normalization", ["per_source", "joint"])
def test_every_option_trains(gate, head_merge, normalization):
    layer = make_layer(gate=gate, head_merge=head_merge, normalization=normalization, dropout=0.2)
    query, sources = make_sources()
    out, weights = layer(query, sources)
    assert out.shape == (3, 4, 32)
    assert weights is None
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_trainable_gates_start_at_the_papers_mean():
    query, sources = make_sources()
    mean = make_layer(gate="mean")
    learned = make_layer(gate="learned")
    learned.load_state_dict(mean.state_dict(), strict=False)
    torch.testing.assert_close(learned(query, sources)[0], mean(query, sources)[0])
    assert float(mean.gates(query, None)[0]) == pytest.approx(1 / 3)


def test_input_gates_differ_between_instances_and_ignore_padding():
    layer = make_layer(gate="input")
    query, _sources = make_sources()
    gates = layer.gates(query)
    assert (gates[0] != gates[1]).all()
    padded = torch.cat([query, torch.full((3, 2, 32), math.nan)], dim=1)
    mask = torch.arange(6).expand(3, 6) < 4
    torch.testing.assert_close(layer.gates(padded, mask), gates)


def test_an_absent_source_contributes_nothing():
    layer = make_layer(gate=1.0)
    query, sources = make_sources()
    masks = [torch.ones(3, 5, dtype=torch.bool), torch.zeros(3, 6, dtype=torch.bool)]
    out, _ = layer(query, sources, key_masks=masks)
    other = (torch.randn(3, 6, 8), torch.randn(3, 6, 12))
    assert torch.equal(out, layer(query, [sources[0], other], key_masks=masks)[0])


def test_weights_are_per_head_on_request():
    query, sources = make_sources()
    _, weights = make_layer()(query, sources, need_weights=True, average_attn_weights=False)
    assert [w.shape for w in weights] == [(3, 2, 4, 5), (3, 2, 4, 6)]
    torch.testing.assert_close(sum(w.sum(-1) for w in weights), torch.full((3, 2, 4), 2 / 3))


def test_dropout_acts_in_training_only():
    layer = make_layer(dropout=0.5)
    query, sources = make_sources()
    assert not torch.equal(layer(query, sources)[0], layer(query, sources)[0])
    layer.eval()
    assert torch.equal(layer(query, sources)[0], layer(query, sources)[0])


LAYERS = {
    "attention": (lambda: make_layer(gate="input"), lambda m: m(*make_sources_fixed())[0]),
    "fusion": (lambda: AdaptiveFusion(16, 3), lambda m: m(torch.linspace(-1, 1, 192).reshape(4, 3, 16))[0]),
}


def make_sources_fixed():
    g = torch.Generator().manual_seed(1)
    query = torch.randn(3, 4, 32, generator=g)
    return query, [
        torch.randn(3, 5, 16, generator=g),
        (torch.randn(3, 6, 8, generator=g), torch.randn(3, 6, 12, generator=g)),
    ]


@pytest.fixture(params=LAYERS)
def layer_and_call(request):
    make, call = LAYERS[request.param]
    return make(), call


def test_state_dict_pickle_and_deepcopy_round_trips(layer_and_call):
    layer, call = layer_and_call
    expected = call(layer)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = copy.deepcopy(layer)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for other in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(call(other), expected)


def test_meta_device(layer_and_call):
    layer, call = layer_and_call
    expected = call(layer)
    state = layer.state_dict()
    empty = copy.deepcopy(layer).to("meta").to_empty(device="cpu")
    empty.reset_parameters()
    empty.load_state_dict(state)
    assert torch.equal(call(empty), expected)
    with torch.device("meta"):
        assert next(make_layer().parameters()).device.type == "meta"
    query, sources = torch.empty(2, 3, 32, device="meta"), torch.empty(2, 3, 16, device="meta")
    made = PeripheralCentralAttention(32, 2, [16], device="meta")
    assert made(query, [sources])[0].shape == (2, 3, 32)
    assert AdaptiveFusion(8, 2, device="meta")(torch.empty(5, 2, 8, device="meta"))[0].shape == (5, 2, 8)


def test_compiles_to_one_graph(layer_and_call):
    layer, call = layer_and_call
    expected = call(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    out = call(compiled)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(layer_and_call, dtype):
    layer, call = layer_and_call
    expected = call(layer)
    with torch.autocast("cpu", dtype=dtype):
        out = call(layer)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0.05)
    out.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


def test_activation_checkpointing(layer_and_call):
    layer, call = layer_and_call
    call(layer).square().sum().backward()
    grads = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    checkpoint(call, layer, use_reentrant=False).square().sum().backward()
    for parameter, grad in zip(layer.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_coefficients_start_near_the_equal_mix_and_differ_between_instances():
    layer = AdaptiveFusion(64, 3)
    _, alpha = layer(0.3 * torch.randn(100, 3, 64))
    off_diagonal = alpha[:, ~torch.eye(3, dtype=torch.bool)]
    assert ((off_diagonal > 0) & (off_diagonal < 1)).all()
    assert abs(off_diagonal.mean() - 0.5) < 0.1
    assert off_diagonal.std(0).min() > 0.01


def test_given_coefficients_take_the_gates_place():
    layer = AdaptiveFusion(16, 3)
    descriptors, alpha = torch.randn(4, 3, 16), torch.rand(4, 3, 3)
    _, used = layer(descriptors, alpha=alpha)
    off_diagonal = ~torch.eye(3, dtype=torch.bool)
    assert torch.equal(used[:, off_diagonal], alpha[:, off_diagonal])


def test_sources_projected_for_several_layers_at_once_give_the_same():
    layers = [
        PeripheralCentralAttention(32, heads, [24, (16, 8)], bias=bias) for heads, bias in ((2, True), (4, False))
    ]
    query, tokens = torch.randn(2, 5, 32), torch.randn(2, 4, 24)
    pair = torch.randn(2, 3, 16), torch.randn(2, 3, 8)
    for layer, projected in zip(layers, project_sources(layers, [tokens, pair]), strict=True):
        found, expected = layer(query, projected)[0], layer(query, [tokens, pair])[0]
        torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match=r"layers\[1\]: expected source_dims"):
        project_sources([layers[0], PeripheralCentralAttention(32, 2, [8, 8])], [tokens, pair])


def test_gates_can_be_constants_per_source_or_given_for_one_call():
    layer = PeripheralCentralAttention(32, 2, [32, 32], gate=[0.25, 0.0])
    query, sources = torch.randn(2, 5, 32), [torch.randn(2, 4, 32), torch.randn(2, 3, 32)]
    expected = layer(query, sources)[0]
    changed = [sources[0], torch.randn(2, 3, 32)]
    torch.testing.assert_close(layer(query, changed)[0], expected)
    closed = torch.tensor([0.0, 0.0])
    torch.testing.assert_close(layer(query, sources, gates=closed)[0], layer.out_proj.bias.expand(2, 5, 32))
    with pytest.raises(ValueError, match="gate: expected 2 finite numbers, one per source"):
        PeripheralCentralAttention(32, 2, [32, 32], gate=[0.5])


@pytest.mark.parametrize("gate", [1.0, [1.0, 1]], ids=str)
def test_gates_that_are_constantly_1_are_left_out(gate):
    layer = PeripheralCentralAttention(32, 2, [32, 32], gate=gate)
    query, sources = torch.randn(2, 5, 32), [torch.randn(2, 4, 32), torch.randn(2, 3, 32)]
    assert layer.gates(query) is None
    assert torch.equal(layer(query, sources)[0], layer(query, sources, gates=torch.ones(2))[0])


@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gate", ["mean", 1 / 3, [1 / 3, 0.1]], ids=str)
def test_constant_gates_do_not_depend_on_the_default_dtype(gate, dtype, default):
    layer = PeripheralCentralAttention(32, 2, [32, 32], gate=gate, dtype=dtype)
    constants = {"mean": [1 / 3, 1 / 3]}.get(gate, [1 / 3, 1 / 3]) if not isinstance(gate, list) else gate
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        found = layer.gates(torch.zeros(1, 1, 32, dtype=dtype))
    finally:
        torch.set_default_dtype(before)
    torch.testing.assert_close(found, torch.tensor(constants, dtype=dtype), rtol=0, atol=0)
