"""Rounding errors of the ops against the formula in fp64, next to those of plain PyTorch in the same precision.

python -m benchmarks.errors [--backend cpu]      the table of docs/numerics.md
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from amuse_kernels import adaptive_fusion
from benchmarks import workloads
from benchmarks.workloads import Attention

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def errors(
    run: Callable[[], Tensor], leaves: list[Tensor], exact: list[Tensor], upstream: Tensor
) -> tuple[float, float]:
    """Largest error of the output, and of any gradient, relative to the largest entry of each."""
    out = run()
    found = [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]
    relative = [
        float((got.double() - want).abs().max() / want.abs().max()) for got, want in zip(found, exact, strict=True)
    ]
    return relative[0], max(relative[1:])


def attention(shape: tuple, normalization: str, dtype: torch.dtype, backend: str) -> list[tuple[float, float]]:
    """Errors of our kernels and of the eager formula, on the same inputs."""
    case = Attention.draw(shape, normalization, dtype=dtype)
    double = [leaf.detach().double().requires_grad_() for leaf in case.leaves]
    count = len(case.keys) + 1
    keys, values = double[1:count], double[count:-1]
    exact = Attention(normalization, double[0], keys, values, double[-1], case.key_masks, case.groups)
    out = exact.ours("reference")
    upstream = torch.randn_like(out).to(dtype).double()
    wanted = [out.detach(), *torch.autograd.grad(out, double, upstream)]
    return [errors(run, case.leaves, wanted, upstream) for run in (lambda: case.ours(backend), case.eager)]


def fusion(dtype: torch.dtype, backend: str) -> list[tuple[float, float]]:
    work = workloads.fusion(backend=backend, dtype=dtype)
    double = [leaf.detach().double().requires_grad_() for leaf in work.leaves]
    out = adaptive_fusion(double[0], pair_weight=double[1], pair_bias=double[2], backend="reference")[0]
    upstream = torch.randn_like(out).to(dtype).double()
    wanted = [out.detach(), *torch.autograd.grad(out, double, upstream)]
    return [errors(work.contenders[name], work.leaves, wanted, upstream) for name in ("ours", "eager")]


def table(backend: str) -> str:
    torch.manual_seed(0)
    lines = [
        "| op | dtype | output: ours | output: plain PyTorch | gradients: ours | gradients: plain PyTorch |",
        "|---|---|---|---|---|---|",
    ]
    for dtype in DTYPES:
        rows = {
            f"p2c_attention, {normalization}": attention(workloads.SHAPES["3"], normalization, dtype, backend)
            for normalization in ("per_source", "joint")
        }
        rows["adaptive_fusion, gate"] = fusion(dtype, backend)
        for name, ((out, grad), (eager_out, eager_grad)) in rows.items():
            cells = (out, eager_out, grad, eager_grad)
            lines.append(f"| {name} | {str(dtype).removeprefix('torch.')} | {' | '.join(f'{c:.1e}' for c in cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="cpu")
    print(table(parser.parse_args().backend))
