"""The package's kernels as subjects of mutation: `python -m tests.ptx.package.mutation`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from amuse_kernels.attention import cpu
from tests.ptx.emulator.fixtures import cases
from tests.ptx.emulator.launch import Launch
from tests.ptx.emulator.mutation import Build, Subject, main, of_fixture
from tests.ptx.emulator.nvcc_kernels import nvcc
from tests.ptx.package import cuda_attention, cuda_launches
from tests.ptx.package.attention_calls import AttentionCall
from tests.ptx.package.fusion_calls import FusionCall

# The package's CUDA kernels of attention, by name: which launch of which call, and from how many queries to how many
CUDA_KERNELS = {
    "forward": ("forward", 0, (33, 160)),
    "forward, short": ("forward", 0, (1, 32)),
    "backward, queries": ("backward", 0, (65, 160)),
    "backward, keys": ("backward", 1, (65, 160)),
    "backward, fused": ("backward", 0, (33, 64)),
    "backward, fused, short": ("backward", 0, (1, 32)),
}


def subjects_by_name(part: str = "") -> list[Subject]:
    """Kernels that can be compiled here, of those whose name contains `part`.

    "options" are the kernels with groups, causality and dropout.
    """
    builds: list[tuple[str, Build, int]] = []
    for suffix, options in (("", False), (", options", True)):
        if nvcc():
            for name, (call, which, queries) in CUDA_KERNELS.items():
                build = _cuda_forward if call == "forward" else _cuda_backward
                builds += [(f"CUDA {name}{suffix}", partial(build, options=options, queries=queries), which)]
    names = ("forward", "backward", "weights", "sums of weights")
    if cuda_launches.missing() is None:
        builds += [(f"CUDA fusion {name}", _cuda_fusion, which) for which, name in enumerate(names)]
    if importlib.util.find_spec("triton"):
        from tests.ptx.package import triton_subjects

        builds += [("Triton forward", of_fixture(triton_subjects.forward), 0)]
        builds += [("Triton backward", of_fixture(triton_subjects.backward), 0)]
        builds += [("Triton forward, options", _triton_forward, 0)]
        builds += [("Triton backward, one launch, options", partial(_triton_backward, queries=128), 0)]
        two = partial(_triton_backward, queries=16)
        builds += [(f"Triton backward, {of}, options", two, which) for which, of in enumerate(("queries", "keys"))]
        builds += [(f"Triton fusion {name}", _triton_fusion, which) for which, name in enumerate(names[:2])]
    return [Subject.of(name, build, which) for name, build, which in builds if part in name]


def _attention_call(
    pair: tuple[int, int], options: bool = False, joint: bool | None = None
) -> tuple[AttentionCall, torch.Tensor, torch.Tensor]:
    """A call and its out and lse: two streams; joint with gates and masks for an odd number of queries, else plain.

    With options the first stream is causal, and every call has gates, masks, groups and dropout too.
    """
    torch.manual_seed(0)
    queries, keys = pair
    odd = bool(queries % 2)
    joint = odd if joint is None else joint
    chosen: dict[str, Any] = {
        "normalization": "joint" if joint else "per_source",
        "gates": odd or options,
        "masks": odd or options,
    }
    if options:
        chosen |= {"causal": [True, False], "groups": True, "dropout_p": 0.3, "seed": 5}
    lengths = (queries, keys) if options else (keys, keys // 2)
    call = AttentionCall.make(queries, lengths, cases.HEAD_DIM, torch.float16, batch=1 + options, **chosen)
    out, lse = cpu.p2c_attention_forward(call.inputs)
    call.draw_upstream(lse)
    return call, out, lse


def _within(pair: tuple[int, int], queries: tuple[int, int]) -> tuple[int, int]:
    """Lengths with as many queries as a kernel serves, odd where they were."""
    least, most = queries
    count = most - least + 1
    assert count % 2 == 0
    return least + (pair[0] - least) % count, pair[1]


def _cuda_forward(
    pair: tuple[int, int], options: bool, queries: tuple[int, int]
) -> tuple[list[Launch], Callable[[], float]]:
    call, *expected = _attention_call(_within(pair, queries), options)
    launches, out, lse = cuda_attention.forward_launches(call.inputs)
    return launches, _of_forward(call, expected, out, lse)


def _cuda_backward(
    pair: tuple[int, int], options: bool, queries: tuple[int, int]
) -> tuple[list[Launch], Callable[[], float]]:
    call, out, lse = _attention_call(_within(pair, queries), options)
    launches, gradients = cuda_attention.backward_launches(call.grad_out, call.grad_lse, lse, call.inputs)
    return launches, lambda: _error(lambda: call.assert_within_budget(out, lse, *gradients))


def _triton_forward(pair: tuple[int, int]) -> tuple[list[Launch], Callable[[], float]]:
    from tests.ptx.package import triton_subjects

    call, *expected = _attention_call(pair, options=True, joint=False)
    launch, out, lse = triton_subjects.forward_launch(call.inputs)
    return [launch], _of_forward(call, expected, out, lse)


def _triton_backward(pair: tuple[int, int], queries: int) -> tuple[list[Launch], Callable[[], float]]:
    """`queries`: of a tile; where it does not hold all of them there are two launches. per_source only."""
    from tests.ptx.package import triton_subjects

    call, out, lse = _attention_call(pair, options=True, joint=False)
    launches, grads = triton_subjects.backward_launches(call, lse, queries)
    return launches, lambda: _error(lambda: call.assert_within_budget(out, lse, *grads))


def _of_forward(call: AttentionCall, expected, out: torch.Tensor, lse: torch.Tensor) -> Callable[[], float]:
    """The error of a forward's results, completed by the CPU's gradients."""
    gradients = cpu.p2c_attention_backward(call.grad_out, call.grad_lse, *expected, call.inputs)
    return lambda: _error(lambda: call.assert_within_budget(out, lse, *gradients))


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


def _triton_fusion(pair: tuple[int, int]) -> tuple[list[Launch], Callable[[], float]]:
    """Three modalities with coefficients for each element; the gradients of a gate end in sums by PyTorch."""
    from tests.ptx.package import triton_subjects

    torch.manual_seed(0)
    rows, width = pair
    call = FusionCall("elementwise", rows, 3, 130 + width // 2, torch.float16)  # widths of one kernel
    launches, results = triton_subjects.fusion(call)
    return launches, lambda: _error(lambda: call.check(results))


def _error(check: Callable[[], None]) -> float:
    try:
        check()
    except AssertionError:
        return float("inf")
    return 0.0


if __name__ == "__main__":
    main(subjects_by_name)
