"""The package's Triton kernels, compiled, in the emulator: within the error budget, and clean of every check."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from amuse_kernels import reference
from tests.attention_cases import Case, assert_within_budget, make_case
from tests.test_adaptive_fusion import make_inputs

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from amuse_kernels.checks import AttentionInputs, check_attention
from amuse_kernels.triton import attention, fusion, interpolation
from tests.ptx.package_launches import emulated

on_every_architecture = pytest.mark.parametrize(
    ("arch", "dtype"), [(80, torch.float16), (90, torch.bfloat16), (120, torch.float32)], ids=str
)


def assert_clean(reports) -> None:
    for report in reports:
        report.assert_clean()


def within_budget(outputs, inputs, function, upstream) -> None:
    """Outputs and gradients of a kernel against those of `function` in fp64 and in the precision of the inputs."""
    results = []
    for dtype in (inputs[0].dtype, torch.float64):
        leaves = [t.detach().to(dtype, copy=True).requires_grad_() for t in inputs]
        outs = function(leaves)
        torch.autograd.backward(outs, [g.to(o.dtype) for g, o in zip(upstream, outs, strict=True)])
        results.append([*(o.detach() for o in outs), *(leaf.grad for leaf in leaves)])
    for index, (out, low, ref64) in enumerate(zip(outputs, *results, strict=True)):
        assert_within_budget(out, low.to(out.dtype), ref64, f"tensor {index}")


# --- attention ---

# name -> lengths (queries, keys of each source), head dim, options of make_case
ATTENTION = {
    "plain": ((64, (64, 64, 64)), 64, {"gates": False, "masks": False}),
    "ragged": ((17, (33, 1, 0)), 64, {}),
    "groups": ((70, (45, 129)), 32, {"groups": True}),
    "causal": ((77, (77, 77)), 64, {"causal": True, "groups": True}),
    "joint": ((33, (100, 7)), 64, {"normalization": "joint"}),
    "dropout": ((65, (40, 70)), 32, {"dropout_p": 0.3, "seed": 5}),
    "joint, all options": (
        (70, (70, 70)),
        40,
        {"normalization": "joint", "causal": True, "groups": True, "dropout_p": 0.3, "seed": 5},
    ),
}


def inputs_of(case: Case) -> AttentionInputs:
    options = {"gates": None, "key_masks": None, "query_groups": None, "key_groups": None, "relations": None}
    options |= {"causal": False, "normalization": "per_source", "softmax_scale": None, "dropout_p": 0.0, "seed": None}
    return check_attention(case.query, case.keys, case.values, **(options | case.options))


def op_arguments(inputs: AttentionInputs) -> tuple:
    names = ("any", "same", "different")
    gates = None if inputs.gates is None else inputs.gates.float()
    return (
        *(inputs.query, inputs.keys, inputs.values, gates, inputs.key_masks, inputs.query_groups, inputs.key_groups),
        *([names.index(r) for r in inputs.relations], inputs.causal, inputs.normalization == "joint"),
        *(inputs.softmax_scale, inputs.dropout_p, inputs.seed),
    )


@pytest.mark.parametrize("name", ATTENTION)
@on_every_architecture
def test_attention(name, arch, dtype):
    (queries, lengths), head_dim, options = ATTENTION[name]
    case = make_case(2, 2, queries, lengths, head_dim, dtype, **options)
    hide_what_is_masked(case)
    inputs = inputs_of(case)
    joint = inputs.normalization == "joint"
    grad_out = torch.randn(inputs.query.shape).to(dtype)
    with emulated(arch, seed=1) as reports:
        out, lse = attention.p2c_attention_forward(*op_arguments(inputs))
        visible = lse > -torch.inf
        grad_lse = torch.randn(lse.shape) * visible
        grads = attention.p2c_attention_backward(grad_out, grad_lse, out if joint else None, lse, *op_arguments(inputs))
    assert_clean(reports)

    def function(leaves):
        sources = len(lengths)
        values = [v.masked_fill(~v.isfinite(), 0) for v in leaves]
        low = inputs._replace(
            query=values[0],
            keys=tuple(values[1 : 1 + sources]),
            values=tuple(values[1 + sources : 1 + 2 * sources]),
            gates=values[-1] if inputs.gates is not None else None,
        )
        out, lse = eager_attention(low)
        return out, torch.where(visible, lse, 0.0)

    tensors = [inputs.query, *inputs.keys, *inputs.values, *([] if inputs.gates is None else [inputs.gates])]
    gates = [] if inputs.gates is None else [grads[3]]
    outputs = [out, torch.where(visible, lse, 0.0), grads[0], *grads[1], *grads[2], *gates]
    within_budget(outputs, tensors, function, (grad_out, grad_lse))


def hide_what_is_masked(case: Case) -> None:
    """NaN in every key and value behind a mask."""
    for mask, *tokens in zip(case.options.get("key_masks") or [], case.keys, case.values, strict=False):
        for tensor in tokens:
            tensor.masked_fill_(~mask[:, None, :, None], torch.nan)


def eager_attention(inputs: AttentionInputs):
    """The formula as a user would write it, in the precision of the inputs."""
    weights, sums = [], []
    for p, key in enumerate(inputs.keys):
        visible = reference.visible_pairs(inputs, p)
        scores = inputs.softmax_scale * (inputs.query @ key.transpose(-1, -2))
        weights.append(torch.where(visible, scores.exp(), 0.0))
        sums.append(weights[-1].sum(-1, keepdim=True))
    gates = [1.0] * len(weights) if inputs.gates is None else [g[..., None, None] for g in inputs.gates.unbind(-1)]
    total = sum(g * s for g, s in zip(gates, sums, strict=True))
    out = 0
    for p, (gate, weight, value) in enumerate(zip(gates, weights, inputs.values, strict=True)):
        norm = total if inputs.normalization == "joint" else sums[p]
        weight = gate * weight / torch.where(norm == 0, 1.0, norm)
        if inputs.dropout_p:
            kept = reference.keep_mask(inputs.seed, inputs.dropout_p, weight.shape, p)
            weight = weight * kept / (1 - inputs.dropout_p)
        out = out + weight @ value
    sums = total if inputs.normalization == "joint" else torch.cat(sums, -1)
    lse = torch.where(sums == 0, 1.0, sums).log()  # of rows without a visible key the caller takes no lse
    return out, lse[..., 0] if inputs.normalization == "joint" else lse


def test_attention_moves_each_byte_once():
    """fp16, B 4, H 2, Lq 64, three streams of 64 keys, D 64."""
    case = make_case(4, 2, 64, (64, 64, 64), 64, torch.float16, gates=False, masks=False)
    inputs = inputs_of(case)
    tokens, lse_bytes = 4 * 2 * 64 * 64 * 2, 4 * 2 * 64 * 3 * 4
    with emulated(80) as forward:
        out, lse = attention.p2c_attention_forward(*op_arguments(inputs))
    with emulated(80) as backward:
        attention.p2c_attention_backward(out, None, None, lse, *op_arguments(inputs))
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
