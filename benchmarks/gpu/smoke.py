"""Lists what is installed, then runs forward and backward of two tiles on every backend, element type and head dim."""

import time
from collections.abc import Iterator
from functools import partial

import torch

from amuse_kernels import adaptive_fusion, interpolation_coefficients
from amuse_kernels.info import info
from benchmarks.gpu.checked import check_attention
from benchmarks.gpu.journal import Record
from benchmarks.gpu.stage import Context, Item
from benchmarks.measure import machine

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
HEAD_DIMS = (64, 32, 128, 256)  # the model's own first
SOURCES = (130, 45)  # keys
QUERIES = (70, 50, 20)  # the CUDA C++ kernels of few queries, up to D 64, are others


def items(context: Context) -> Iterator[Item]:
    yield Item(
        "info", lambda: [machine() | context.device.describe() | {"info": info(), "dry_run": context.device.dry}]
    )
    for head_dim in HEAD_DIMS[:1] if context.device.dry else HEAD_DIMS:
        for backend in context.backends:
            for name, dtype in DTYPES.items():
                run = partial(_attention, context, backend, dtype, head_dim)
                yield Item(f"attention {backend} {name} D{head_dim}", run)
    for backend in context.backends:
        for name, dtype in DTYPES.items():
            yield Item(f"fusion {backend} {name}", partial(_fusion, context, backend, dtype))


def _attention(context: Context, backend: str, dtype: torch.dtype, head_dim: int) -> Iterator[Record]:
    few = backend == "cuda" and head_dim <= 64
    for queries in (5,) if context.device.dry else QUERIES if few else QUERIES[:1]:
        lengths = (7, 3) if context.device.dry else SOURCES
        began = time.perf_counter()
        found = check_attention(
            context.device, backend, dtype, queries=queries, lengths=lengths, head_dim=head_dim, masks="holes"
        )
        yield found | {"queries": queries, "seconds": time.perf_counter() - began}


def _fusion(context: Context, backend: str, dtype: torch.dtype) -> Iterator[Record]:
    """Fusion with a gate, and interpolation coefficients, against the reference in fp64."""
    device = context.device.device
    tensors = [torch.randn(shape).to(dtype) for shape in ((70, 3, 40), (70, 40), (6, 2, 40), (6,))]
    results = []
    for name, kind in ((backend, dtype), ("reference", torch.float64)):
        descriptors, feature = (t.to(device, kind).requires_grad_() for t in tensors[:2])
        weight, bias = (t.to(device, torch.promote_types(kind, torch.float32)).requires_grad_() for t in tensors[2:])
        fused, _ = adaptive_fusion(descriptors, pair_weight=weight, pair_bias=bias, backend=name)
        mixed = interpolation_coefficients(descriptors[:, 0], descriptors[:, 1], feature, 0.2, backend=name)
        grads = torch.autograd.grad(fused.sum() + mixed.sum(), [descriptors, feature, weight, bias])
        results.append([fused, mixed, *grads])
    names = ("fused", "coefficients", "d descriptors", "d feature", "d weight", "d bias")
    for tensor, found, exact in zip(names, *results, strict=True):
        error = float(((found.double() - exact).abs().max() / exact.abs().max()).detach())
        limit = 64 * torch.finfo(dtype).eps
        record: Record = {"contender": f"ours, {backend}", "tensor": tensor, "relative_error": error}
        wrong = {"status": "wrong", "reason": f"{tensor}: relative error {error:.3g} above {limit:.3g}"}
        yield record if error <= limit else record | wrong
