"""The fixtures as ready-made launches: inputs, launch, comparison with float64, for tests, mutation and counters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from .launch import run
from .nvcc_kernels import compile_nvcc
from .poison import poisoned
from .report import Report

HEADS, HEAD_DIM = 2, 64
CUDA_SOURCE = Path(__file__).parent / "fixtures" / "attention.cu"
LOG2_E = 1.4426950408889634
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 1e-2}  # float32 is tf32 in the tensor cores


@dataclass
class Launch:
    """One kernel launch with its PTX, so that the text can be changed and run again."""

    name: str
    ptx: str
    entry: str
    grid: tuple[int, ...]
    block: int
    args: list[Any]
    readonly: list[torch.Tensor]
    dynamic_shared: int = 0

    def run(self, ptx: str | None = None, **options: Any) -> Report:
        return run(
            ptx or self.ptx,
            self.entry,
            self.grid,
            self.block,
            self.args,
            dynamic_shared=self.dynamic_shared,
            readonly=self.readonly,
            **options,
        )


@dataclass
class Problem:
    """Attention inputs, and what float64 says about them."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    do: torch.Tensor
    causal: bool

    @staticmethod
    def random(dtype: torch.dtype, seqlen_q: int, seqlen_k: int, causal: bool = False, seed: int = 0) -> Problem:
        generator = torch.Generator().manual_seed(seed)
        q, k, v, do = (
            torch.randn(HEADS, length, HEAD_DIM, generator=generator).to(dtype)
            for length in (seqlen_q, seqlen_k, seqlen_k, seqlen_q)
        )
        return Problem(q, k, v, do, causal)

    def reference(self) -> dict[str, torch.Tensor]:
        q, k, v = (tensor.double().requires_grad_() for tensor in (self.q, self.k, self.v))
        scores = q @ k.transpose(1, 2) / math.sqrt(HEAD_DIM)
        if self.causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
        out = scores.softmax(-1) @ v
        out.backward(self.do.double())
        return {"o": out.detach(), "lse": scores.logsumexp(-1).detach(), "dq": q.grad, "dk": k.grad, "dv": v.grad}  # type: ignore[dict-item]

    def error(self, outputs: dict[str, torch.Tensor]) -> float:
        """Largest error in units of the tolerance: up to 1 is right, NaN counts as infinite."""
        reference = self.reference()
        tolerance = TOLERANCE[self.q.dtype]
        worst = 0.0
        for name, tensor in outputs.items():
            scale = max(1.0, reference[name].abs().max().item())
            error = (tensor.double() - reference[name]).abs().max().item() / (tolerance * scale)
            worst = max(worst, math.inf if math.isnan(error) else error)
        return worst


def nvcc_forward(problem: Problem, arch: str = "sm_80") -> tuple[Launch, dict[str, torch.Tensor]]:
    q, k, v = problem.q, problem.k, problem.v
    o, lse = poisoned(q.shape, q.dtype), poisoned(q.shape[:2])
    args = [q, k, v, o, lse, q.shape[1], k.shape[1], LOG2_E / math.sqrt(HEAD_DIM)]
    text = compile_nvcc(CUDA_SOURCE, arch)
    launch = Launch("nvcc forward", text, "attention_forward", (-(-q.shape[1] // 64), HEADS), 128, args, [q, k, v])
    return launch, {"o": o, "lse": lse}


def _triton(
    name: str,
    kernel: Any,
    grid: tuple[int, ...],
    args: list[Any],
    readonly: list[torch.Tensor],
    arch: int,
    **options: Any,
) -> Launch:
    from .triton_kernels import compile_triton

    compiled, taken, _ = compile_triton(kernel, *args, arch=arch, **options)
    return Launch(
        name,
        compiled.asm["ptx"],
        compiled.metadata.name,
        grid,
        32 * compiled.metadata.num_warps,
        taken,
        readonly,
        compiled.metadata.shared,
    )


def triton_forward(
    problem: Problem, arch: int = 80, block_m: int = 64, block_n: int = 32
) -> tuple[Launch, dict[str, torch.Tensor]]:
    from .fixtures.attention_triton import attention_forward

    q, k, v = problem.q, problem.k, problem.v
    o, lse = poisoned(q.shape, q.dtype), poisoned(q.shape[:2])
    args = [
        q,
        k,
        v,
        o,
        lse,
        q.shape[1],
        k.shape[1],
        LOG2_E / math.sqrt(HEAD_DIM),
        block_m,
        block_n,
        HEAD_DIM,
        problem.causal,
    ]
    launch = _triton(
        "Triton forward",
        attention_forward,
        (-(-q.shape[1] // block_m), HEADS),
        args,
        [q, k, v],
        arch,
        num_warps=4,
        num_stages=2,
    )
    return launch, {"o": o, "lse": lse}


def triton_backward(problem: Problem, arch: int = 80, block: int = 32) -> tuple[list[Launch], dict[str, torch.Tensor]]:
    from .fixtures.attention_triton import attention_backward, attention_delta

    q, k, v, do = problem.q, problem.k, problem.v, problem.do
    reference = problem.reference()
    o, lse = reference["o"].to(q.dtype), reference["lse"].float()
    delta, dq = poisoned(q.shape[:2]), torch.zeros(q.shape)
    dk, dv = poisoned(k.shape, k.dtype), poisoned(v.shape, v.dtype)
    grid = (-(-q.shape[1] // block), HEADS)
    first = _triton(
        "Triton delta", attention_delta, grid, [o, do, delta, q.shape[1], block, HEAD_DIM], [o, do], arch, num_warps=4
    )
    args = [
        q,
        k,
        v,
        do,
        lse,
        delta,
        dq,
        dk,
        dv,
        q.shape[1],
        k.shape[1],
        1 / math.sqrt(HEAD_DIM),
        block,
        block,
        HEAD_DIM,
        problem.causal,
    ]
    second = _triton(
        "Triton backward",
        attention_backward,
        (-(-k.shape[1] // block), HEADS),
        args,
        [q, k, v, do, lse, delta],
        arch,
        num_warps=4,
        num_stages=2,
    )
    return [first, second], {"dq": dq, "dk": dk, "dv": dv}


def package_forward(problem: Problem, arch: int = 80) -> tuple[list[Launch], dict[str, torch.Tensor]]:
    """The package's kernel with one tile for all lengths, over the problem's keys in two streams."""
    from amuse_kernels.attention.triton import plans as attention
    from amuse_kernels.attention.triton.tiles import Tile

    inputs = _two_streams(problem)
    out, lse = poisoned(inputs.query.shape, inputs.query.dtype), poisoned(inputs.query.shape[:3])
    attention.forget_plans()
    with mock.patch.object(attention, "choose_tile", return_value=Tile(64, 32, 4, 2)):
        launch = attention.forward_launch(inputs, out, lse, arch)
    return [_of_package(launch, arch)], {"o": out[0], "lse": lse[0]}


def package_backward(problem: Problem, arch: int = 80) -> tuple[list[Launch], dict[str, torch.Tensor]]:
    """The package's kernel for a tile that holds all queries, which here are at most 128."""
    from amuse_kernels.attention.triton import plans as attention
    from amuse_kernels.attention.triton.tiles import Tile

    inputs = _two_streams(problem)
    dq, dk, dv = (poisoned((1, *tensor.shape), tensor.dtype) for tensor in (problem.q, problem.k, problem.v))
    n = problem.k.shape[1] // 2
    grads = attention.Gradients(dq, [dk[:, :, :n], dk[:, :, n:]], [dv[:, :, :n], dv[:, :, n:]], None)
    lse = problem.reference()["lse"].float()[None]
    attention.forget_plans()
    with mock.patch.object(attention, "choose_tile", return_value=Tile(128, 32, 8, 2)):
        [launch] = attention.backward_launches(inputs, grads, problem.do[None], lse, None, arch)
    return [_of_package(launch, arch)], {"dq": dq[0], "dk": dk[0], "dv": dv[0]}


def _two_streams(problem: Problem) -> Any:
    """One softmax over two halves of the keys, all of them visible, is attention over all keys."""
    from amuse_kernels.attention.triton.plans import Attention

    n = problem.k.shape[1] // 2
    keys = [problem.k[None, :, :n], problem.k[None, :, n:]]
    return Attention(
        query=problem.q[None],
        keys=keys,
        values=[problem.v[None, :, :n], problem.v[None, :, n:]],
        gates=None,
        key_masks=[torch.ones(1, key.shape[2], dtype=torch.bool) for key in keys],
        query_groups=None,
        key_groups=[None, None],
        relations=[0, 0],
        causal=[False, False],
        joint=True,
        softmax_scale=HEAD_DIM**-0.5,
        dropout_p=0.0,
        seed=None,
    )


def _of_package(launch: Any, arch: int) -> Launch:
    return _triton(launch.kernel.fn.__name__, launch.kernel, (launch.grid,), [*launch.args], [], arch, **launch.options)
