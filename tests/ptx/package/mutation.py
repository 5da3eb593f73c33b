"""The package's kernels as subjects of mutation: `python -m tests.ptx.package.mutation`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch

from amuse_kernels.attention import cpu
from tests.ptx.emulator.fixtures import cases
from tests.ptx.emulator.launch import Launch
from tests.ptx.emulator.mutation import Build, Subject, main, of_fixture
from tests.ptx.emulator.nvcc_kernels import nvcc
from tests.ptx.package import cuda_attention, cuda_launches
from tests.ptx.package.attention_calls import AttentionCall
from tests.ptx.package.fusion_calls import FusionCall


def subjects_by_name(part: str = "") -> list[Subject]:
    """Kernels that can be compiled here, of those whose name contains `part`."""
    builds: list[tuple[str, Build, int]] = []
    if nvcc():
        builds += [("CUDA forward", _cuda_forward, 0)]
        builds += [("CUDA backward, queries", _cuda_backward, 0), ("CUDA backward, keys", _cuda_backward, 1)]
    if cuda_launches.missing() is None:
        names = ("forward", "backward", "weights", "sums of weights")
        builds += [(f"CUDA fusion {name}", _cuda_fusion, which) for which, name in enumerate(names)]
    if importlib.util.find_spec("triton"):
        from tests.ptx.package import triton_subjects

        builds += [("Triton forward", of_fixture(triton_subjects.forward), 0)]
        builds += [("Triton backward", of_fixture(triton_subjects.backward), 0)]
    return [Subject.of(name, build, which) for name, build, which in builds if part in name]


def _attention_call(pair: tuple[int, int]) -> tuple[AttentionCall, torch.Tensor, torch.Tensor]:
    """A call and its out and lse: two streams; joint with gates and masks for an odd number of queries, else plain."""
    torch.manual_seed(0)
    queries, keys = pair
    odd = bool(queries % 2)
    options = {"normalization": "joint" if odd else "per_source", "gates": odd, "masks": odd}
    call = AttentionCall.make(queries, (keys, keys // 2), cases.HEAD_DIM, torch.float16, batch=1, **options)
    out, lse = cpu.p2c_attention_forward(call.inputs)
    call.draw_upstream(lse)
    return call, out, lse


def _cuda_forward(pair: tuple[int, int]) -> tuple[list[Launch], Callable[[], float]]:
    call, *expected = _attention_call(pair)
    launches, out, lse = cuda_attention.forward_launches(call.inputs)
    gradients = cpu.p2c_attention_backward(call.grad_out, call.grad_lse, *expected, call.inputs)
    return launches, lambda: _error(lambda: call.assert_within_budget(out, lse, *gradients))


def _cuda_backward(pair: tuple[int, int]) -> tuple[list[Launch], Callable[[], float]]:
    call, out, lse = _attention_call(pair)
    launches, gradients = cuda_attention.backward_launches(call.grad_out, call.grad_lse, lse, call.inputs)
    return launches, lambda: _error(lambda: call.assert_within_budget(out, lse, *gradients))


def _cuda_fusion(pair: tuple[int, int]) -> tuple[list[Launch], Callable[[], float]]:
    """Three modalities with a gate; rows of whole 16 bytes, which one kernel serves at every length."""
    torch.manual_seed(0)
    rows, width = pair
    call = FusionCall("gate", rows, 3, 8 * width, torch.float16)
    results, launches = call.launches()
    for launch in launches:
        for tensor in launch.args[0].writable:
            tensor.view(torch.uint8).fill_(0xFF)  # NaN: what an earlier run left would look right
    return launches, lambda: _error(lambda: call.check(results))


def _error(check: Callable[[], None]) -> float:
    try:
        check()
    except AssertionError:
        return float("inf")
    return 0.0


if __name__ == "__main__":
    main(subjects_by_name)
