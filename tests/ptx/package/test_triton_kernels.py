"""The package's Triton kernels, compiled, in the emulator: within the error budget, and clean of every check."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from amuse_kernels import reference
from amuse_kernels.attention import reference as specified
from amuse_kernels.attention.inputs import SAME
from amuse_kernels.attention.varlen import check_attention_varlen
from benchmarks import large_scores
from tests import global_state
from tests.attention_cases import assert_within_budget, make_case
from tests.ptx.package.attention_calls import (
    ATTENTION,
    FAR_APART,
    GATE_SUMS,
    MANY_QUERIES,
    AttentionCall,
    hide_what_is_masked,
    inputs_of,
)
from tests.ptx.package.budget import assert_clean, within_budget
from tests.ptx.package.padded import backward_padded, forward_padded
from tests.test_adaptive_fusion import make_inputs

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from amuse_kernels.attention.triton import plans as attention
from amuse_kernels.fusion import triton as fusion
from amuse_kernels.interpolation import triton as interpolation
from tests.ptx.package.triton_launches import emulated

TARGETS = [(80, torch.float16), (90, torch.bfloat16), (120, torch.float32)]
# options of make_case
HEAD_DIM_OPTIONS = {
    "masks": {},
    "joint, all options": {"normalization": "joint", "groups": True, "dropout_p": 0.3, "seed": 5},
}
on_every_architecture = pytest.mark.parametrize(("arch", "dtype"), TARGETS, ids=str)


# --- attention ---


@pytest.mark.parametrize(
    ("name", "arch", "dtype"),
    [
        *((name, *target) for target in TARGETS for name in ATTENTION),
        *((name, 80, torch.float16) for name in MANY_QUERIES),
        *((name, 120, torch.float32) for name in (*FAR_APART, *GATE_SUMS)),
        *((name, 90, torch.bfloat16) for name in FAR_APART),
        # on sm_80 the backward in fp32 too is of three TF32 products
        *((name, 80, torch.float32) for name in ("ragged", "joint, all options", *FAR_APART)),
    ],
    ids=str,
)
def test_attention(name, arch, dtype):
    emulate(AttentionCall.of(name, dtype), arch)


HEAD_DIMS = [
    (head_dim, name, arch, dtype)
    for head_dim in (32, 128, 256)
    for name in HEAD_DIM_OPTIONS
    for arch, dtype in [*TARGETS, (80, torch.float32), (90, torch.float32), (120, torch.float16)]
]


# all of them: AMUSE_PTX=every pytest tests/ptx/package/test_triton_kernels.py -k head_dims
@pytest.mark.parametrize(
    ("head_dim", "name", "arch", "dtype"),
    HEAD_DIMS if os.environ.get("AMUSE_PTX") == "every" else HEAD_DIMS[9::13],
    ids=str,
)
def test_attention_of_other_head_dims(head_dim, name, arch, dtype):
    emulate(AttentionCall.make(70, (45, 3), head_dim, dtype, batch=1, **HEAD_DIM_OPTIONS[name]), arch)
    emulate(AttentionCall.make(13, (45, 3), head_dim, dtype, batch=1, **HEAD_DIM_OPTIONS[name]), arch)


def emulate(call, arch):
    """Forward and backward: clean, and within the error budget."""
    out, lse, grads = run(call, arch)
    call.assert_within_budget(out, lse, *grads)


def run(call, arch=80):
    """Output, lse and gradients, with a drawn gradient of lse unless the call has one."""
    with emulated(arch, seed=1, readonly=call.read_only()) as reports:
        out, lse = attention.p2c_attention_forward(call.inputs)
        if call.grad_lse is None:
            call.draw_upstream(lse)
        saved = out if call.inputs.joint else None
        grads = attention.p2c_attention_backward(call.grad_out, call.grad_lse, saved, lse, call.inputs)
    assert_clean(reports)
    return out, lse, grads


@pytest.mark.parametrize("queries", [64, 128])
@pytest.mark.parametrize("normalization", ["per_source", "joint"])
@pytest.mark.parametrize(("arch", "dtype"), [*TARGETS, (80, torch.float32)], ids=str)
def test_large_scores_stay_within_the_error_budget(arch, dtype, normalization, queries, monkeypatch):
    monkeypatch.setattr(large_scores, "QUERIES", queries)  # one launch backward, or two, of 16-bit inputs
    call = large_scores.Call.draw(15_080, normalization, dtype)
    out, lse, grads = run(AttentionCall(*call), arch)
    shares = call.shares([out, lse, grads.query, *grads.keys, *grads.values, grads.gates])
    assert max(shares) <= 1, shares


@pytest.mark.parametrize("normalization", ["per_source", "joint"])
@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_large_scores_with_every_option_and_nan_behind_the_masks_stay_within_the_error_budget(normalization, scale):
    options = {"groups": True, "causal": True, "normalization": normalization, "softmax_scale": scale * 24**-0.5}
    case = make_case(1, 2, 50, (50, 50), 24, torch.float32, **options)
    case.query *= 5_000
    readable = inputs_of(case)
    hide_what_is_masked(case)
    hidden = AttentionCall(inputs_of(case), torch.randn(case.query.shape))
    out, lse, grads = run(hidden)
    call = large_scores.Call(readable, hidden.grad_out, hidden.grad_lse)
    found = [out, lse, grads.query, *grads.keys, *grads.values, grads.gates]
    low, exact = (call.differentiated(specified.p2c_attention, dtype) for dtype in (torch.float32, torch.float64))
    assert exact[1].abs().masked_fill(lse == -torch.inf, 0).max() > 5_000
    for index, tensors in enumerate(zip(found, low, exact, strict=True)):
        assert_within_budget(*(t.masked_fill(exact[index] == -torch.inf, 0) for t in tensors), f"tensor {index}")


def test_tf32_is_coarser_and_only_on_demand():
    call = AttentionCall.make(20, (40,), 32, torch.float32)
    fine, _ = call.worst(*flat(run(call)))
    with global_state.restored():
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        coarse, _ = call.worst(*flat(run(call)))
    assert fine < 0.2
    assert coarse > 2


def flat(results):
    out, lse, grads = results
    return out, lse, *grads


@pytest.mark.parametrize("queries", [13, 70])
@pytest.mark.parametrize("normalization", ["per_source", "joint"])
def test_nan_in_a_query_that_sees_no_key_reaches_no_gradient(normalization, queries):
    call = AttentionCall.make(
        queries, (45, 33), 24, torch.float32, groups=True, masks=False, normalization=normalization
    )
    blind = call.inputs.query_groups == 1
    key_groups = [torch.zeros_like(groups) for groups in call.inputs.key_groups]
    call.inputs = call.inputs._replace(key_groups=key_groups, relations=(SAME, SAME))
    results = run(call)
    for tensor in (call.inputs.query, call.grad_out):
        tensor.masked_fill_(blind[:, None, :, None], torch.nan)
    torch.testing.assert_close(run(call), results, rtol=0, atol=0)


@pytest.mark.parametrize("queries", [13, 70])
def test_without_an_open_source_every_result_of_joint_is_zero(queries):
    call = AttentionCall.make(queries, (45, 33), 24, torch.float32, masks=False, normalization="joint")
    call.inputs = call.inputs._replace(gates=torch.zeros(call.inputs.gates.shape))
    for tensor in (call.inputs.keys[0], call.inputs.values[1]):
        tensor[..., 0] = torch.nan
    out, lse, grads = run(call)
    assert (lse == -torch.inf).all()
    for tensor in (out, grads.query, *grads.keys, *grads.values, grads.gates):
        assert (tensor == 0).all()


@pytest.mark.parametrize("normalization", ["per_source", "joint"])
def test_without_a_query_no_key_or_value_gets_a_gradient(normalization):
    call = AttentionCall.make(0, (45, 3), 24, torch.float32, masks=False, normalization=normalization)
    for tensor in (*call.inputs.keys, *call.inputs.values):
        tensor.fill_(torch.nan)
    _, _, grads = run(call)
    for tensor in (*grads.keys, *grads.values, grads.gates):
        assert (tensor == 0).all()


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("queries", [20, 150], ids=["one tile", "two tiles"])
def test_offsets_above_2_to_the_31(dim, queries):
    call = AttentionCall.make(queries, (40, 3), 32, torch.float16, layouts=True)
    emulate(call, 80)
    emulate(call.spread_out(dim), 80)


def test_rows_of_a_slice_farther_apart_than_2_to_the_31_are_refused():
    call = AttentionCall.make(20, (40, 3), 32, torch.float16).spread_out(dim=2)
    readonly = call.read_only()
    with emulated(80, readonly=readonly) as reports, pytest.raises(ValueError, match=r"within 2\^31 elements"):
        attention.p2c_attention_forward(call.inputs)
    assert not reports


PACKED = {
    "joint": {"normalization": "joint"},
    "all options": {"causal": [True, False], "relations": ["same", "different"], "dropout_p": 0.3, "seed": 5},
}


def packed(queries, keys, head_dim, dtype, **options):
    """Inputs of samples with that many queries and, for each source, keys."""

    def tokens(lengths):
        return torch.randn(sum(lengths), 2, head_dim).to(dtype)

    def offsets(lengths):
        return torch.tensor([0, *lengths]).cumsum(0).int()

    if "relations" in options:
        options["query_groups"] = torch.randint(0, 2, (sum(queries),))
        options["key_groups"] = [torch.randint(0, 2, (sum(lengths),)) for lengths in keys]
    return check_attention_varlen(
        *(tokens(queries), [*map(tokens, keys)], [*map(tokens, keys)], offsets(queries), [*map(offsets, keys)]),
        *(max(queries), [*map(max, keys)]),
        gates=torch.rand(len(queries), 2, len(keys)) + 0.1,
        **options,
    )


@pytest.mark.parametrize("queries", [(9, 5, 0, 13), (70, 5, 0, 33)], ids=["one tile", "two tiles"])
@pytest.mark.parametrize("options", PACKED)
@pytest.mark.parametrize(("arch", "dtype"), [TARGETS[0], TARGETS[2]], ids=str)
def test_packed_samples_are_those_of_a_padded_batch(arch, dtype, options, queries):
    inputs = packed(queries, (queries, (1, 70, 6, 0)), 40, dtype, **PACKED[options])
    call = AttentionCall(inputs, torch.randn(inputs.query.shape).to(dtype))
    out, lse, grads = run(call, arch)
    with emulated(arch):
        padded = forward_padded(attention.p2c_attention_forward, inputs)
        upstream = (call.grad_out, call.grad_lse, padded[0] if inputs.joint else None, padded[1])
        expected = (*padded, backward_padded(attention.p2c_attention_backward, *upstream, inputs))
    tolerance = {torch.float16: 4e-3, torch.float32: 3e-5}[dtype]  # other tiles, other orders of sums
    torch.testing.assert_close((out, lse, grads), expected, rtol=tolerance, atol=tolerance)


def test_packed_samples_move_no_more_than_their_tokens():
    """fp16, H 2, D 64: one sample of 64 tokens and seven of 4, in two sources."""
    lengths = (64, *[4] * 7)
    inputs = packed(lengths, (lengths, lengths), 64, torch.float16)
    with emulated(80) as reports:
        out, lse = attention.p2c_attention_forward(inputs)
    tokens = inputs.query.numel() * 2
    assert 32 * sum(r.counters["global_sectors"] for r in reports) <= 1.2 * (6 * tokens + lse.numel() * 4)
    with emulated(80) as reports:
        attention.p2c_attention_backward(out, None, None, lse, inputs)
    assert 32 * sum(r.counters["global_sectors"] for r in reports) <= 1.6 * (11 * tokens + lse.numel() * 4)


def test_attention_moves_each_byte_once():
    """fp16, B 4, H 2, Lq 64, three streams of 64 keys, D 64."""
    case = make_case(4, 2, 64, (64, 64, 64), 64, torch.float16, gates=False, masks=False)
    inputs = inputs_of(case)
    tokens, lse_bytes = 4 * 2 * 64 * 64 * 2, 4 * 2 * 64 * 3 * 4
    with emulated(80) as forward:
        out, lse = attention.p2c_attention_forward(inputs)
    with emulated(80) as backward:
        attention.p2c_attention_backward(out, None, None, lse, inputs)
    assert len(forward) == 1
    assert len(backward) <= 3
    counters = forward[0].counters
    moved = sum(r.counters["global_bytes_read"] + r.counters["global_bytes_written"] for r in forward)
    assert moved <= 1.05 * (8 * tokens + lse_bytes)  # query, three keys, three values, output
    assert counters["global_sectors"] == counters["global_sectors_ideal"]
    assert counters["shared_wavefronts"] <= 1.1 * counters["shared_wavefronts_ideal"]
    moved = sum(r.counters["global_bytes_read"] + r.counters["global_bytes_written"] for r in backward)
    assert moved <= 1.6 * (15 * tokens + lse_bytes)  # inputs, gradient of the output, and seven gradients


# --- fusion ---


@pytest.mark.parametrize("kind", ["scalar", "elementwise", "gate"])
@pytest.mark.parametrize(("modalities", "width", "rows"), [(3, 17, 150), (8, 64, 9)])
@on_every_architecture
def test_adaptive_fusion(kind, modalities, width, rows, arch, dtype):
    inputs = make_inputs(kind, rows, modalities, width, dtype)
    present = inputs.pop("present")
    names = list(inputs)
    inputs["descriptors"][~present] = torch.nan
    parameters = {name: t.float() if "pair" in name else t for name, t in inputs.items()}
    arguments = [parameters.get(name) for name in ("descriptors", "alpha", "pair_weight", "pair_bias")]
    shapes = (rows, modalities, width), arguments[1].shape if kind != "gate" else (rows, modalities, modalities)
    upstream = [torch.randn(shape).to(dtype) for shape in shapes]
    with emulated(arch, seed=1) as reports:
        outputs = fusion.adaptive_fusion_forward(*arguments, present)
        grads = fusion.adaptive_fusion_backward(*upstream, *arguments, present)
    assert_clean(reports)

    def function(leaves):
        given = dict(zip(names, leaves, strict=True))
        return reference.adaptive_fusion(
            given["descriptors"], given.get("alpha"), given.get("pair_weight"), given.get("pair_bias"), present
        )

    found = [grad for grad, argument in zip(grads, arguments, strict=True) if argument is not None]
    within_budget([*outputs, *found], [inputs[name] for name in names], function, upstream)


def test_fusion_reads_every_descriptor_and_coefficient_once_and_coalesced():
    inputs = make_inputs("elementwise", 20, 3, 64, torch.float16, absent=False)
    arguments = (inputs["descriptors"], inputs["alpha"], None, None, None)
    with emulated(80) as reports:
        fused, _ = fusion.adaptive_fusion_forward(*arguments)
        fusion.adaptive_fusion_backward(fused, None, *arguments)
    assert len(reports) == 2
    for counters in (report.counters for report in reports):
        assert counters["global_bytes_read"] == counters["global_bytes_read_distinct"]
        assert counters["global_bytes_written"] == counters["global_bytes_written_distinct"]
        assert counters["global_sectors"] <= 1.15 * counters["global_sectors_ideal"]


@pytest.mark.parametrize(("rows", "width"), [(7, 5), (3, 1000)])
@on_every_architecture
def test_interpolation_coefficients(rows, width, arch, dtype):
    a, b, g = (torch.randn(rows, width).to(dtype) for _ in range(3))
    a[0, 0] = b[0, 0]
    g[-1] = 0
    upstream = torch.randn(rows, width).to(dtype)
    with emulated(arch, seed=1) as reports:
        out = interpolation.interpolation_coefficients_forward(a, b, g, 0.2)
        grads = interpolation.interpolation_coefficients_backward(upstream, a, b, g, 0.2)
    assert_clean(reports)

    def function(leaves):
        return (reference.interpolation_coefficients(*leaves, 0.2),)

    within_budget([out, *grads], [a, b, g], function, [upstream])
