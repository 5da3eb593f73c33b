"""The package's CUDA attention kernels, compiled by nvcc and launched as its own plan says, in the emulator."""

from __future__ import annotations

import pytest
import torch

from amuse_kernels.attention import cuda, reference
from amuse_kernels.attention.buffers import Gradients
from amuse_kernels.attention.inputs import ANY, SAME, AttentionInputs
from amuse_kernels.attention.varlen import check_attention_varlen
from benchmarks import large_scores
from tests.attention_cases import assert_within_budget, make_case
from tests.ptx.emulator import mutation
from tests.ptx.emulator.nvcc_kernels import nvcc
from tests.ptx.package.attention_calls import (
    ATTENTION,
    FAR_APART,
    FEW_QUERIES,
    GATE_SUMS,
    MANY_SOURCES,
    NOTHING_IN_SIGHT,
    AttentionCall,
    hide_what_is_masked,
    inputs_of,
)
from tests.ptx.package.budget import assert_clean
from tests.ptx.package.cuda_attention import Call, ForwardParams, kernels, p2c_attention_backward, p2c_attention_forward
from tests.ptx.package.cuda_launches import emulated, missing
from tests.ptx.package.padded import backward_padded, forward_padded

needs_nvcc = pytest.mark.skipif(nvcc() is None, reason="nvcc was not found on PATH nor below $CUDA_HOME")

# every call in fp16 and fp32; the wide heads, whose kernels are laid out in another way, in a sample
CALLS = [
    *((name, torch.float16, None) for name in ATTENTION),
    *((name, torch.float32, 24) for name in ATTENTION),
    *((name, torch.bfloat16, None) for name in ATTENTION if "holes" in name),
    *((name, torch.float32, None) for name in (*FAR_APART, *GATE_SUMS)),
    *((name, dtype, None) for name in FEW_QUERIES for dtype in (torch.float16, torch.float32)),
    ("20 queries, all options", torch.bfloat16, 24),
    *((name, dtype, None) for name in (*MANY_SOURCES, *NOTHING_IN_SIGHT) for dtype in (torch.float16, torch.float32)),
    ("many queries, plain", torch.float32, None),
    ("many queries, masks", torch.float16, None),
    ("ragged", torch.bfloat16, 128),
    ("joint, all options", torch.bfloat16, 72),
    ("causal", torch.float16, 256),
]


def run(call: AttentionCall, grad_lse: bool = True, **options):
    """Forward and backward; outputs, gradients, and the reports."""
    out, lse, forward = p2c_attention_forward(call.inputs, **options)
    if grad_lse:
        call.draw_upstream(lse)
    *grads, backward = p2c_attention_backward(call.grad_out, call.grad_lse, lse, call.inputs, **options)
    return (out, lse, *grads), [*forward, *backward]


def launches_of_backward(call: AttentionCall) -> int:
    _, _, queries, head_dim = call.inputs.query.shape
    return 1 if queries <= 64 and head_dim <= 64 else 2


@needs_nvcc
@pytest.mark.parametrize(("name", "dtype", "head_dim"), CALLS, ids=str)
def test_attention(name, dtype, head_dim):
    call = AttentionCall.of(name, dtype, head_dim)
    results, reports = run(call)
    assert_clean(reports)
    assert len(reports) == 1 + launches_of_backward(call)
    call.assert_within_budget(*results)


@pytest.mark.skipif(missing() is not None, reason=missing() or "")
@pytest.mark.parametrize(("name", "dtype"), [("plain", torch.float16), ("joint, all options", torch.float32)], ids=str)
def test_the_glue_of_the_backend_launches_the_same(name, dtype):
    call = AttentionCall.of(name, dtype)
    with emulated() as reports:
        out, lse = cuda.p2c_attention_forward(call.inputs)
        call.draw_upstream(lse)
        grads = cuda.p2c_attention_backward(call.grad_out, call.grad_lse, out, lse, call.inputs)
    assert_clean(reports)
    assert len(reports) == 1 + launches_of_backward(call)
    call.assert_within_budget(out, lse, *grads)


@needs_nvcc
@pytest.mark.parametrize("name", ["dropout", "50 queries, all options"])
def test_rows_at_odd_addresses_are_read_and_written_element_by_element(name):
    call = AttentionCall.of(name, torch.float16)
    aligned, _ = run(call)

    def shifted(tensor):
        return torch.cat([tensor[..., :1], tensor], -1)[..., 1:]

    given = call.inputs
    query, keys, values = shifted(given.query), [*map(shifted, given.keys)], [*map(shifted, given.values)]
    call.inputs = given._replace(query=query, keys=keys, values=values)
    results, reports = run(call, grad_lse=False)
    assert_clean(reports)
    torch.testing.assert_close(results[:5], aligned[:5], rtol=0, atol=0)


@needs_nvcc
@pytest.mark.parametrize("queries", [70, 20])
@pytest.mark.parametrize(("dim", "unit"), [(0, 64), (1, 64), (2, 64), (2, 1)])
def test_offsets_above_2_to_the_31(dim, unit, queries):
    """Rows are copied in another way where their strides are no multiples of 16 bytes."""
    call = AttentionCall.make(queries, (40, 3), 32, torch.float16, layouts=True)
    results, _ = run(call)
    far, reports = run(call.spread_out(dim, unit), grad_lse=False)
    assert_clean(reports)
    torch.testing.assert_close(far, results, rtol=0, atol=0)


@needs_nvcc
@pytest.mark.parametrize("name", ["holes, joint", "joint", "20 queries, holes, joint"])
def test_results_do_not_depend_on_the_order_of_warps_and_blocks(name):
    call = AttentionCall.of(name, torch.float16)
    first, _ = run(call, seed=0)
    second, _ = run(call, grad_lse=False, seed=3)
    torch.testing.assert_close(second, first, rtol=0, atol=0)


@needs_nvcc
@pytest.mark.parametrize("score", [419, 3_770, 15_080])
@pytest.mark.parametrize("normalization", ["per_source", "joint"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_scores_stay_within_the_error_budget(dtype, normalization, score):
    call = large_scores.Call.draw(score, normalization, dtype)
    out, lse, forward = p2c_attention_forward(call.inputs)
    query, keys, values, gates, backward = p2c_attention_backward(call.grad_out, call.grad_lse, lse, call.inputs)
    assert_clean([*forward, *backward])
    shares = call.shares([out, lse, query, *keys, *values, gates])
    # in fp32, sums in double leave most of the budget; three TF32 products alone come to 0.9 of it
    assert max(shares) <= (0.5 if dtype == torch.float32 else 1), shares


@needs_nvcc
@pytest.mark.parametrize("normalization", ["per_source", "joint"])
def test_large_scores_with_every_option_and_nan_behind_the_masks_stay_within_the_error_budget(normalization):
    case = make_case(1, 2, 50, (50, 50), 24, torch.float32, groups=True, causal=True, normalization=normalization)
    case.query *= 5_000
    readable = inputs_of(case)
    hide_what_is_masked(case)
    inputs = inputs_of(case)
    out, lse, forward = p2c_attention_forward(inputs)
    call = large_scores.Call(readable, torch.randn(out.shape), torch.randn(lse.shape) * (lse > -torch.inf))
    query, keys, values, gates, backward = p2c_attention_backward(call.grad_out, call.grad_lse, lse, inputs)
    assert_clean([*forward, *backward])
    low, exact = (call.differentiated(reference.p2c_attention, dtype) for dtype in (torch.float32, torch.float64))
    assert exact[1].abs().masked_fill(lse == -torch.inf, 0).max() > 5_000
    for index, tensors in enumerate(zip([out, lse, query, *keys, *values, gates], low, exact, strict=True)):
        assert_within_budget(*(t.masked_fill(exact[index] == -torch.inf, 0) for t in tensors), f"tensor {index}")


@needs_nvcc
@pytest.mark.parametrize("queries", [70, 40, 20])
@pytest.mark.parametrize("normalization", ["per_source", "joint"])
def test_nan_in_a_query_that_sees_no_key_reaches_no_gradient(normalization, queries):
    call = AttentionCall.make(
        queries, (45, 33), 24, torch.float32, groups=True, masks=False, normalization=normalization
    )
    blind = call.inputs.query_groups == 1
    key_groups = [torch.zeros_like(groups) for groups in call.inputs.key_groups]
    call.inputs = call.inputs._replace(key_groups=key_groups, relations=(SAME, SAME))
    results, _ = run(call)
    call.inputs.query.masked_fill_(blind[:, None, :, None], torch.nan)
    again, reports = run(call, grad_lse=False)
    assert_clean(reports)
    torch.testing.assert_close(again, results, rtol=0, atol=0)


@needs_nvcc
@pytest.mark.parametrize("relations", [(SAME, ANY, SAME), (ANY, SAME, ANY)])
@pytest.mark.parametrize("queries", [70, 40, 20])
def test_nan_in_a_query_reaches_the_keys_of_no_source_in_which_it_sees_none(queries, relations):
    call = AttentionCall.make(queries, (45, 33, 70), 24, torch.float32, groups=True, masks=False)
    blind = call.inputs.query_groups == 1
    key_groups = [torch.zeros_like(groups) for groups in call.inputs.key_groups]
    call.inputs = call.inputs._replace(key_groups=key_groups, relations=relations)
    results, _ = run(call)
    call.assert_within_budget(*results)
    (*_, keys, values, _) = results
    call.inputs.query.masked_fill_(blind[:, None, :, None], torch.nan)
    (*_, found_keys, found_values, _), reports = run(call, grad_lse=False)
    assert_clean(reports)
    for source, relation in enumerate(relations):
        if relation == ANY:
            assert found_keys[source].isnan().any()
        else:
            assert torch.equal(found_keys[source], keys[source])
            assert torch.equal(found_values[source], values[source])


@needs_nvcc
@pytest.mark.parametrize("queries", [70, 50, 20])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_keys_in_tiles_that_no_query_sees_get_gradients_of_zero(dtype, queries):
    call = AttentionCall.make(queries, (200, 70, 0, 90), 40, dtype, batch=1, masks=False)
    hidden = torch.zeros(1, 200, dtype=torch.bool), torch.ones(1, 70, dtype=torch.bool)
    hidden[0][:, 30:170] = True
    call.inputs = call.inputs._replace(key_masks=(~hidden[0], ~hidden[1], None, None))
    for mask, *tokens in zip(hidden, call.inputs.keys, call.inputs.values, strict=False):
        for tensor in tokens:
            tensor.masked_fill_(mask[:, None, :, None], torch.nan)
    results, reports = run(call)
    assert_clean(reports)
    call.assert_within_budget(*results)
    _, _, _, keys, values, _ = results
    for mask, key, value in zip(hidden, keys, values, strict=False):
        assert not any(grad.transpose(1, 2)[mask].any() for grad in (key, value))


@needs_nvcc
def test_the_only_key_of_a_row_gets_no_gradient_at_all():
    call = AttentionCall.make(5, (1, 1), 24, torch.float32, masks=False)
    (_, _, query, keys, *_), reports = run(call, grad_lse=False)
    assert_clean(reports)
    assert not query.any()
    assert not any(key.any() for key in keys)


@needs_nvcc
def test_tf32_is_coarser_and_only_on_demand():
    call = AttentionCall.of("plain", torch.float32, 24)
    exact, _, _ = p2c_attention_forward(call.inputs)
    coarse, _, reports = p2c_attention_forward(call.inputs, allow_tf32=True)
    assert_clean(reports)
    assert 1e-5 < (coarse - exact).abs().max() < 1e-2


@needs_nvcc
def test_no_queries_give_keys_and_gates_gradients_of_zero():
    call = AttentionCall.make(0, (3, 0), 24, torch.float32)
    (_, _, _, keys, values, gates), reports = run(call)
    assert_clean(reports)
    assert not any(t.any() for t in (*keys, *values, gates))


@needs_nvcc
def test_forward_and_backward_move_each_byte_once():
    """fp16, B 4, H 2, Lq 64, three streams of 64 keys, D 64."""
    call = AttentionCall.make(64, (64, 64, 64), 64, torch.float16, batch=4, gates=False, masks=False)
    out, lse, [report] = p2c_attention_forward(call.inputs)
    counters, tokens = report.counters, call.inputs.query.numel() * 2
    moved = counters["global_bytes_read"] + counters["global_bytes_written"]
    assert moved <= 1.05 * (8 * tokens + lse.numel() * 4)  # query, three keys, three values, output
    assert counters["global_sectors"] == counters["global_sectors_ideal"]
    assert counters["shared_wavefronts"] <= 1.1 * counters["shared_wavefronts_ideal"]
    *_, reports = p2c_attention_backward(out, None, lse, call.inputs)
    moved = sum(r.counters["global_bytes_read"] + r.counters["global_bytes_written"] for r in reports)
    assert moved <= 1.05 * (15 * tokens + lse.numel() * 4)  # inputs, gradient of the output, and seven gradients
    for report in reports:
        assert report.counters["shared_wavefronts"] <= 1.1 * report.counters["shared_wavefronts_ideal"]


PACKED = {
    "plain": {},
    "groups": {"groups": True, "relations": ["same", "different"]},
    "every option": {
        "normalization": "joint",
        "groups": True,
        "relations": ["any", "same"],
        "causal": [False, True],
        "dropout_p": 0.3,
        "seed": 5,
    },
}


def packed_inputs(
    dtype: torch.dtype, head_dim: int, longest: int = 70, groups: bool = False, **options
) -> AttentionInputs:
    """Samples of which one has no query, and others lack a source."""
    queries = longest, 0, 3, longest // 2
    lengths = queries, (5, 150, 70, 0), queries  # the second source may be causal
    totals = [sum(each) for each in lengths]
    query, *tokens = (torch.randn(total, 2, head_dim).to(dtype) for total in (totals[0], *totals[1:], *totals[1:]))
    cu_seq_q, *cu_seq_k = (torch.tensor([0, *each]).cumsum(0).int() for each in lengths)
    if groups:
        query_groups, *key_groups = (torch.randint(0, 2, (total,)) for total in totals)
        options |= {"query_groups": query_groups, "key_groups": key_groups}
    gates = torch.rand(4, 2, 2) + 0.1
    return check_attention_varlen(
        query, tokens[:2], tokens[2:], cu_seq_q, cu_seq_k, longest + 10, [150, longest], gates=gates, **options
    )


@needs_nvcc
@pytest.mark.parametrize("options", PACKED)
@pytest.mark.parametrize(
    ("dtype", "head_dim", "longest"),
    [(torch.float32, 24, 70), (torch.bfloat16, 64, 70), (torch.float32, 24, 50), (torch.bfloat16, 64, 20)],
    ids=str,
)
def test_packed_samples_are_the_dense_op_with_masks_bit_by_bit(dtype, head_dim, longest, options):
    inputs, reports = packed_inputs(dtype, head_dim, longest, **PACKED[options]), []

    def forward(given):
        out, lse, launched = p2c_attention_forward(given)
        reports.extend(launched)
        return out, lse

    def backward(*given):
        grad_out, grad_lse, _out, lse, inputs = given
        *grads, launched = p2c_attention_backward(grad_out, grad_lse.contiguous(), lse.contiguous(), inputs)
        reports.extend(launched)
        return Gradients(*grads)

    out, lse = forward(inputs)
    upstream = torch.randn(out.shape).to(dtype), torch.randn(lse.shape) * (lse > -torch.inf)
    found = out, lse, *backward(*upstream, None, lse, inputs)
    assert_clean(reports)
    dense = *forward_padded(forward, inputs), *backward_padded(backward, *upstream, None, lse, inputs)
    torch.testing.assert_close(found, dense, rtol=0, atol=0)


@needs_nvcc
def test_packed_samples_move_no_padding():
    """The second sample has one token: its query, key, value and output are 16 sectors of 32 bytes."""

    def sectors(lengths):
        total, cu_seq = sum(lengths), torch.tensor([0, *lengths]).cumsum(0).int()
        query, key, value = (torch.randn(total, 1, 64).half() for _ in range(3))
        inputs = check_attention_varlen(query, [key], [value], cu_seq, [cu_seq], 64, [64])
        _, _, [report] = p2c_attention_forward(inputs)
        return report.counters["global_sectors"]

    assert sectors((64, 1)) <= sectors((64,)) + 16 + 8  # offsets and lse


@pytest.mark.skipif(missing() is not None, reason=missing() or "")
def test_the_glue_of_the_backend_launches_the_same_for_packed_samples():
    inputs = packed_inputs(torch.float16, 32, **PACKED["groups"])
    out, lse, _ = p2c_attention_forward(inputs)
    *grads, _ = p2c_attention_backward(torch.ones_like(out), None, lse, inputs)
    with emulated() as reports:
        found = cuda.p2c_attention_forward(inputs)
        found_grads = cuda.p2c_attention_backward(torch.ones_like(out), None, *found, inputs)
    assert_clean(reports)
    torch.testing.assert_close((*found, *found_grads), (out, lse, *grads), rtol=0, atol=0)


# --- the plan alone, without nvcc ---


def test_a_grid_holds_more_than_65535_batches_and_heads():
    call = AttentionCall.make(70, (3,), 8, torch.float16)
    planned = Call(ForwardParams(), call.inputs, allow_tf32=False)
    planned.params.b = 50_000
    [launch], _ = planned.plan("amuse_cuda_attention_plan_forward")
    assert launch.grid == 50_000 * 2 * 2
    assert launch.entry == b"attention_forward_fp16_32"


@pytest.mark.parametrize(("field", "value"), [("dtype", 1), ("d", 264), ("d", 12), ("sources", 9), ("lq", 2**31)])
def test_calls_that_the_kernels_do_not_support_are_refused(field, value):
    planned = Call(ForwardParams(), AttentionCall.of("plain", torch.float16).inputs, allow_tf32=False)
    setattr(planned.params, field, value)
    with pytest.raises(ValueError, match="outside of the contract"):
        planned.plan("amuse_cuda_attention_plan_forward")


# --- planted bugs ---

BUGS_BY_NAME = {
    "drop barrier": {"race", "uninitialised_read", "pending_async_access"},
    "drop wait_group": {"pending_async_access"},
    "wait for one group less": {"pending_async_access"},
}


@needs_nvcc
@pytest.mark.parametrize(
    ("kernel", "queries"),
    [("forward", 70), ("forward_short", 20), ("backward_queries", 70), ("backward_keys", 70), ("backward_fused", 33)],
)
def test_planted_bugs_are_caught(kernel, queries):
    """Mutants that behave like the original are not sorted out, such as a guard dropped where it always holds."""
    call = AttentionCall.make(queries, (100, 7), 64, torch.float16, heads=1, normalization="joint")
    results, reports = run(call)
    report = next(report for report in reports if report.kernel == f"attention_{kernel}_fp16_64")
    text = kernels(torch.float16, 64)[report.kernel]
    by_kind: dict[str, list[mutation.Mutant]] = {}
    for mutant in mutation.mutants(text, report.kernel):
        if report.executions.get(mutant.line) and mutant.kind != "compare off by one":
            by_kind.setdefault(mutant.kind, []).append(mutant)
    verdicts = []
    for kind, found in by_kind.items():
        for mutant in found[:: max(1, len(found) // 2)][:2]:
            kinds = verdict(call, results, {report.kernel: mutant.text})
            verdicts.append((kind, mutant.line, kinds))
            assert not kinds or kinds & BUGS_BY_NAME.get(kind, kinds), verdicts[-1]
    assert len(verdicts) >= 9
    missed = [verdict for verdict in verdicts if not verdict[2]]
    assert len(missed) <= len(verdicts) / 4, missed


def verdict(call: AttentionCall, results, mutants: dict[str, str]) -> set[str]:
    """How mutants are caught: kinds of findings, "numbers", or nothing. `results` are those without them."""
    out, lse, *grads = results
    if "forward" in next(iter(mutants)):
        out, lse, reports = p2c_attention_forward(call.inputs, mutants=mutants)
    else:
        *grads, reports = p2c_attention_backward(call.grad_out, call.grad_lse, lse, call.inputs, mutants=mutants)
    kinds = {kind for report in reports for kind in report.kinds}
    if not kinds:
        try:
            call.assert_within_budget(out, lse, *grads)
        except AssertionError:
            kinds.add("numbers")
    return kinds
