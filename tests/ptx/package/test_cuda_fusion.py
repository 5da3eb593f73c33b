"""The CUDA C++ kernels of fusion and interpolation, compiled by nvcc, in the emulator.

Launched as their plans say, they stay within the error budget, are clean of every check, and move no byte twice.
"""

from __future__ import annotations

import pytest
import torch

from amuse_kernels import reference
from amuse_kernels.fusion import cuda
from amuse_kernels.interpolation import cuda as interpolation_cuda
from tests.ptx.emulator import mutation
from tests.ptx.package.budget import assert_clean, within_budget
from tests.ptx.package.cuda_launches import emulated, kernel, missing, recorded
from tests.ptx.package.fusion_calls import FusionCall

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")

KINDS = ("scalar", "elementwise", "gate")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


# modalities, width, rows: one, four and eight modalities; widths that 16 bytes divide and others; one lane to several
# warps a row, two rows of two warps in a block, and a row of several passes
SHAPES = [(1, 8, 3), (3, 17, 70), (4, 64, 37), (8, 40, 9), (2, 50, 9), (3, 400, 9), (3, 600, 5), (2, 1100, 2)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("modalities", "width", "rows"), SHAPES)
def test_adaptive_fusion(kind, modalities, width, rows):
    dtype = DTYPES[(KINDS.index(kind) + modalities) % 3]
    problem = FusionCall(kind, rows, modalities, width, dtype)
    found, reports = problem.run()
    assert_clean(reports)
    problem.check(found)
    assert len(reports) == (4 if kind == "gate" and modalities > 1 else 3 if kind == "gate" else 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_strided_descriptors_are_read_in_place(kind, dtype):
    problem = FusionCall(kind, 20, 3, 32, dtype, strided=True)
    found, reports = problem.run()
    assert_clean(reports)
    problem.check(found)


def test_rows_of_whole_16_bytes_take_wide_accesses_and_others_do_not():
    def entries(width, **options):
        with recorded() as launches:
            problem = FusionCall("elementwise", 4, 3, width, torch.float16, **options)
            cuda.adaptive_fusion_forward(*problem.arguments, problem.present)
        return [entry for entry, *_ in launches]

    assert entries(32) == entries(32, strided=True) == ["amuse_fusion_forward_elementwise_f16_m4"]
    assert entries(33) == ["amuse_fusion_forward_elementwise_f16_plain"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_launch_nothing_but_leave_zero_weight_gradients(kind):
    found, reports = FusionCall(kind, 0, 3, 16, torch.float32, absent=False).run()
    assert len(reports) == (kind == "gate")
    if kind == "gate":
        assert all((grad == 0).all() for grad in found[-2:])


@pytest.mark.parametrize("kind", ["scalar", "elementwise"])
def test_every_byte_is_moved_once_by_whole_sectors(kind):
    problem = FusionCall(kind, 64, 3, 256, torch.float16, absent=False)
    _, reports = problem.run()
    assert_clean(reports)
    for counters in (report.counters for report in reports):
        assert counters["global_bytes_written"] == counters["global_bytes_written_distinct"]
        assert counters["global_bytes_read"] == counters["global_bytes_read_distinct"]
        assert counters["global_sectors"] <= 1.02 * counters["global_sectors_ideal"]
        assert counters["bank_conflicts"] == 0


def test_the_gate_reads_descriptors_once_and_its_parameters_once_per_row():
    rows, width, pairs = 64, 256, 6
    problem = FusionCall("gate", rows, 3, width, torch.float16, absent=False)
    _, (forward, backward, *weights) = problem.run(grad_alpha=False)
    descriptors, parameters = rows * 3 * width * 2, rows * pairs * 4 * (2 * width + 1)
    assert forward.counters["global_bytes_read"] == descriptors + parameters
    # with the gradients of the fused rows; the weights are used twice
    assert backward.counters["global_bytes_read"] == 2 * descriptors + parameters + rows * pairs * 4 * 2 * width
    for report in (forward, backward, *weights):
        assert report.counters["global_bytes_written"] == report.counters["global_bytes_written_distinct"]
        assert report.counters["bank_conflicts"] == 0


@pytest.mark.parametrize("entry", ["amuse_fusion_backward_scalar_f16_m4", "amuse_fusion_backward_elementwise_f16_m4"])
def test_planted_bugs_are_caught(entry):
    problem = FusionCall("scalar" if "scalar" in entry else "elementwise", 5, 3, 248, torch.float16)
    text = kernel(entry)
    _, reports = problem.run()
    executed = next(report.executions for report in reports if report.kernel == entry)
    by_kind: dict[str, list[mutation.Mutant]] = {}
    for mutant in mutation.mutants(text, entry):
        if executed.get(mutant.line) and mutant.kind != "compare off by one":  # which few sizes show
            by_kind.setdefault(mutant.kind, []).append(mutant)
    sample = [mutant for found in by_kind.values() for mutant in found[:: max(1, len(found) // 3)][:3]]
    assert len(sample) >= 3
    missed = [f"{mutant.kind}: {mutant.original}" for mutant in sample if not is_caught(problem, entry, mutant)]
    assert not missed


def is_caught(problem: FusionCall, entry: str, mutant: mutation.Mutant) -> bool:
    found, reports = problem.run(mutant={entry: mutant.text})
    if any(report.findings for report in reports):
        return True
    try:
        problem.check(found)
    except AssertionError:
        return True
    return False


def test_weight_gradients_do_not_depend_on_the_order_of_blocks():
    problem = FusionCall("gate", 70, 3, 24, torch.bfloat16)
    first, second = (problem.run(seed=seed)[0] for seed in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "width"),
    # of 50, 200 or 400 columns a block has two rows of two warps, by dtype
    [(7, 5), (9, 50), (33, 64), (9, 200), (9, 256), (9, 400), (3, 1000), (2, 2500)],
)
def test_interpolation_coefficients(rows, width, dtype):
    a, b, g = (torch.randn(rows, width).to(dtype) for _ in range(3))
    a[0, 0] = b[0, 0]
    a[1] = b[1]
    g[-1] = 0
    upstream = torch.randn(rows, width).to(dtype)
    with emulated(readonly=[a, b, g, upstream]) as reports:
        out = interpolation_cuda.interpolation_coefficients_forward(a, b, g, 0.2)
        grads = interpolation_cuda.interpolation_coefficients_backward(upstream, a, b, g, 0.2)
    assert_clean(reports)
    within_budget([out, *grads], [a, b, g], lambda t: (reference.interpolation_coefficients(*t, 0.2),), [upstream])
    if width <= 1000 and width % 8 == 0:
        for report in reports:
            assert report.counters["global_bytes_read"] == report.counters["global_bytes_read_distinct"]
