"""The package's kernels as subjects of mutation: `python -m tests.ptx.package.mutation`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from amuse_kernels import reference
from amuse_kernels.attention import cpu
from amuse_kernels.interpolation import cuda as interpolation_cuda
from tests.ptx.emulator.fixtures import cases
from tests.ptx.emulator.launch import Launch
from tests.ptx.emulator.mutation import Build, Subject, main, of_fixture
from tests.ptx.emulator.nvcc_kernels import nvcc
from tests.ptx.package import cuda_attention, cuda_launches
from tests.ptx.package.attention_calls import AttentionCall
from tests.ptx.package.budget import within_budget
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
Built = tuple[list[Launch], Callable[[], float]]  # as of `Build`


def subjects_by_name(part: str = "") -> list[Subject]:
    """Kernels that can be compiled here, of those whose name contains `part`; in fp16 unless it says "fp32".

    "options" are the kernels with groups, causality and dropout.
    """
    builds: list[tuple[str, Build, int]] = []
    if nvcc():
        for suffix, chosen in (
            ("", {"options": False}),
            (", options", {"options": True}),
            (", fp32", {"options": False, "dtype": torch.float32}),
        ):
            for name, (call, which, queries) in CUDA_KERNELS.items():
                build = _cuda_forward if call == "forward" else _cuda_backward
                builds += [(f"CUDA {name}{suffix}", partial(build, queries=queries, **chosen), which)]
    names, of_interpolation = ("forward", "backward", "weights", "sums of weights"), ("forward", "backward")
    if cuda_launches.missing() is None:
        builds += [(f"CUDA fusion {name}", _cuda_fusion, which) for which, name in enumerate(names)]
        for which, name in enumerate(of_interpolation):
            builds += [(f"CUDA interpolation {name}", _cuda_interpolation, which)]
    if importlib.util.find_spec("triton"):
        from tests.ptx.package import triton_subjects

        builds += [("Triton forward", of_fixture(triton_subjects.forward), 0)]
        builds += [("Triton backward", of_fixture(triton_subjects.backward), 0)]
        for suffix, options, dtype in ((", options", True, torch.float16), (", fp32", False, torch.float32)):
            call = partial(_attention_call, options=options, joint=False, dtype=dtype)
            builds += [(f"Triton forward{suffix}", partial(_triton_forward, call=call), 0)]
            one, two = (partial(_triton_backward, call=call, queries=queries) for queries in (128, 16))
            builds += [(f"Triton backward, one launch{suffix}", one, 0)]
            builds += [(f"Triton backward, {of}{suffix}", two, which) for which, of in enumerate(("queries", "keys"))]
        for which, name in enumerate(names[:2]):
            builds += [(f"Triton fusion {name}", partial(_triton_fusion, kind="elementwise"), which)]
        for which, name in enumerate(names[:3]):
            builds += [(f"Triton fusion {name}, gate", partial(_triton_fusion, kind="gate"), which)]
        for which, name in enumerate(of_interpolation):
            builds += [(f"Triton interpolation {name}", _triton_interpolation, which)]
    return [Subject.of(name, build, which) for name, build, which in builds if part in name]


def _attention_call(
    pair: tuple[int, int], options: bool = False, joint: bool | None = None, dtype: torch.dtype = torch.float16
) -> tuple[AttentionCall, torch.Tensor, torch.Tensor]:
    """A call and its out and lse: two streams; joint with gates and masks for an odd number of queries, else plain.

    Where `joint` is given, for every number of queries with gates and masks. With options the first stream is causal,
    and every call has gates, masks, groups and dropout too. Some calls of fp32 have scores that are summed in fp64.
    """
    torch.manual_seed(0)
    queries, keys = pair
    odd = bool(queries % 2)
    given = odd or options or joint is not None
    joint = odd if joint is None else joint
    chosen: dict[str, Any] = {
        "normalization": "joint" if joint else "per_source",
        "gates": given,
        "masks": given,
    }
    if options:
        relations = ["same", "different" if odd else "any"]  # with "any" there are tiles that every query sees
        chosen |= {"causal": [True, False], "groups": True, "relations": relations, "dropout_p": 0.3, "seed": 5}
    if odd and dtype == torch.float32:
        chosen |= {"score_offsets": (50, 49)}
    lengths = (queries, keys) if options else (keys, keys // 2)
    call = AttentionCall.make(queries, lengths, cases.HEAD_DIM, dtype, batch=1 + options, **chosen)
    out, lse = cpu.p2c_attention_forward(call.inputs)
    call.draw_upstream(lse)
    return call, out, lse


def _within(pair: tuple[int, int], queries: tuple[int, int]) -> tuple[int, int]:
    """Lengths with as many queries as a kernel serves, odd where they were."""
    least, most = queries
    count = most - least + 1
    assert count % 2 == 0
    return least + (pair[0] - least) % count, pair[1]


def _cuda_forward(pair: tuple[int, int], queries: tuple[int, int], **chosen: Any) -> Built:
    call, *expected = _attention_call(_within(pair, queries), **chosen)
    launches, out, lse = cuda_attention.forward_launches(call.inputs)
    return launches, _of_forward(call, expected, out, lse)


def _cuda_backward(pair: tuple[int, int], queries: tuple[int, int], **chosen: Any) -> Built:
    call, out, lse = _attention_call(_within(pair, queries), **chosen)
    launches, gradients = cuda_attention.backward_launches(call.grad_out, call.grad_lse, lse, call.inputs)
    return launches, lambda: _error(lambda: call.assert_within_budget(out, lse, *gradients))


def _triton_forward(pair: tuple[int, int], call: Callable[..., Any]) -> Built:
    from tests.ptx.package import triton_subjects

    called, *expected = call(pair)
    launch, out, lse = triton_subjects.forward_launch(called.inputs)
    return [launch], _of_forward(called, expected, out, lse)


def _triton_backward(pair: tuple[int, int], call: Callable[..., Any], queries: int) -> Built:
    """`queries`: of a tile; where it does not hold all of them there are two launches."""
    from tests.ptx.package import triton_subjects

    # as many queries as fill the one tile, or several
    called, out, lse = call((pair[0] + 28, pair[1]) if queries == 128 else _within(pair, (17, 160)))
    launches, grads = triton_subjects.backward_launches(called, lse, queries)
    return launches, lambda: _error(lambda: called.assert_within_budget(out, lse, *grads))


def _of_forward(call: AttentionCall, expected, out: torch.Tensor, lse: torch.Tensor) -> Callable[[], float]:
    """The error of a forward's results, completed by the CPU's gradients."""
    gradients = cpu.p2c_attention_backward(call.grad_out, call.grad_lse, *expected, call.inputs)
    return lambda: _error(lambda: call.assert_within_budget(out, lse, *gradients))


def _cuda_fusion(pair: tuple[int, int]) -> Built:
    """Three modalities with a gate; rows of whole 16 bytes, which one kernel serves at every length."""
    torch.manual_seed(0)
    rows, width = pair
    call = FusionCall("gate", rows, 3, 8 * width, torch.float16)
    results, launches = call.launches()
    for launch in launches:
        for tensor in launch.args[0].writable:
            tensor.view(torch.uint8).fill_(0xFF)  # NaN: what an earlier run left would look right
    return launches, lambda: _error(lambda: call.check(results))


def _triton_fusion(pair: tuple[int, int], kind: str) -> Built:
    """Three modalities."""
    from tests.ptx.package import triton_subjects

    torch.manual_seed(0)
    rows, width = pair
    call = FusionCall(kind, rows, 3, _of_one_kernel(width), torch.float16)
    launches, results = triton_subjects.fusion(call)
    return launches, lambda: _error(lambda: call.check(results()))


def _of_one_kernel(width: int) -> int:
    """A width of those that one of Triton's kernels serves: odd, since multiples of 16 have their own."""
    return 131 + 2 * (width // 4)


class _Interpolation:
    """One problem, some of whose differences and gradients are 0."""

    def __init__(self, rows: int, width: int) -> None:
        torch.manual_seed(0)
        self.given = [torch.randn(rows, width).half() for _ in range(3)]
        a, b, g = self.given
        a[0, 0], a[rows // 2], g[-1] = b[0, 0], b[rows // 2], 0
        self.upstream = torch.randn(rows, width).half()

    def results(self, backend: Any) -> list[torch.Tensor]:
        """Coefficients and gradients of a backend's module."""
        out = backend.interpolation_coefficients_forward(*self.given, 0.2)
        return [out, *backend.interpolation_coefficients_backward(self.upstream, *self.given, 0.2)]

    def check(self, found: list[torch.Tensor]) -> None:
        within_budget(
            found, self.given, lambda given: (reference.interpolation_coefficients(*given, 0.2),), [self.upstream]
        )


def _cuda_interpolation(pair: tuple[int, int]) -> Built:
    """Rows of whole 16 bytes."""
    rows, width = pair
    problem = _Interpolation(rows, 8 * width)
    with cuda_launches.prepared(readonly=[*problem.given, problem.upstream]) as launches:
        results = problem.results(interpolation_cuda)
    for tensor in results:
        tensor.fill_(torch.nan)
    return launches, lambda: _error(lambda: problem.check(results))


def _triton_interpolation(pair: tuple[int, int]) -> Built:
    from tests.ptx.package import triton_subjects

    rows, width = pair
    problem = _Interpolation(rows, _of_one_kernel(width))
    launches, results = triton_subjects.interpolation(problem.results)
    return launches, lambda: _error(lambda: problem.check(results))


def _error(check: Callable[[], None]) -> float:
    try:
        check()
    except AssertionError:
        return float("inf")
    return 0.0


if __name__ == "__main__":
    main(subjects_by_name)
