"""Schema, fakes and autograd of adaptive_fusion."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from amuse_kernels.buffers import accumulation_dtype
from amuse_kernels.fusion import reference
from amuse_kernels.fusion.buffers import fusion_outputs
from amuse_kernels.library import graph_gradients, implement, library, needs_a_graph, needs_grad

library.define(
    "adaptive_fusion_forward("
    "Tensor descriptors, Tensor? alpha, Tensor? pair_weight, Tensor? pair_bias, Tensor? present, *, "
    "bool cuda_cpp=False) -> (Tensor fused, Tensor alpha)"
)
library.define(
    "adaptive_fusion_backward("
    "Tensor grad_fused, Tensor? grad_alpha, "
    "Tensor descriptors, Tensor? alpha, Tensor? pair_weight, Tensor? pair_bias, Tensor? present, *, "
    "bool cuda_cpp=False) -> (Tensor descriptors, Tensor alpha, Tensor pair_weight, Tensor pair_bias)"
)


def kernels(backend: ModuleType) -> dict[str, Callable[..., Any]]:
    """The functions of a backend by the name of the op."""
    return {name: getattr(backend, name) for name in ("adaptive_fusion_forward", "adaptive_fusion_backward")}


implement("amuse_kernels.fusion", kernels)


@torch.library.register_fake("amuse_kernels::adaptive_fusion_forward", lib=library)
def _fusion_forward_fake(
    descriptors: Tensor,
    alpha: Tensor | None,
    pair_weight: Tensor | None,
    pair_bias: Tensor | None,
    present: Tensor | None,
    *,
    cuda_cpp: bool = False,
) -> tuple[Tensor, Tensor]:
    return fusion_outputs(descriptors, alpha)


@torch.library.register_fake("amuse_kernels::adaptive_fusion_backward", lib=library)
def _fusion_backward_fake(
    grad_fused: Tensor,
    grad_alpha: Tensor | None,
    descriptors: Tensor,
    alpha: Tensor | None,
    pair_weight: Tensor | None,
    pair_bias: Tensor | None,
    present: Tensor | None,
    *,
    cuda_cpp: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def like(tensor: Tensor | None) -> Tensor:
        return descriptors.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)

    return like(descriptors), like(alpha), like(pair_weight), like(pair_bias)


class _AdaptiveFusion(torch.autograd.Function):
    @staticmethod
    def forward(ctx, descriptors, alpha, pair_weight, pair_bias, present, cuda_cpp):
        ctx.save_for_backward(descriptors, alpha, pair_weight, pair_bias, present)
        ctx.set_materialize_grads(False)
        ctx.cuda_cpp = cuda_cpp
        return torch.ops.amuse_kernels.adaptive_fusion_forward(
            descriptors, alpha, pair_weight, pair_bias, present, cuda_cpp=cuda_cpp
        )

    @staticmethod
    def backward(ctx, grad_fused, grad_alpha):
        descriptors, alpha, pair_weight, pair_bias, present = ctx.saved_tensors
        if needs_a_graph(grad_fused, grad_alpha):
            inputs = (descriptors, alpha, pair_weight, pair_bias)
            grads = graph_gradients(
                lambda: reference.adaptive_fusion(*inputs, present), (grad_fused, grad_alpha), inputs
            )
            return *grads, None, None
        if grad_fused is None:
            grad_fused = torch.zeros_like(descriptors)
        grads = torch.ops.amuse_kernels.adaptive_fusion_backward(
            grad_fused, grad_alpha, descriptors, alpha, pair_weight, pair_bias, present, cuda_cpp=ctx.cuda_cpp
        )
        inputs = (descriptors, alpha, pair_weight, pair_bias)
        return (*(None if tensor is None else grad for tensor, grad in zip(inputs, grads, strict=True)), None, None)


def adaptive_fusion(
    descriptors: Tensor,
    alpha: Tensor | None,
    pair_weight: Tensor | None,
    pair_bias: Tensor | None,
    present: Tensor | None,
    cuda_cpp: bool = False,
) -> tuple[Tensor, Tensor]:
    """`reference.adaptive_fusion` by the fused kernels of the tensors' device."""
    *batch, modalities, width = descriptors.shape
    rows = math.prod(batch)
    dtype = accumulation_dtype(descriptors.dtype)
    arguments = (
        descriptors.reshape(rows, modalities, width),
        None if alpha is None else alpha.reshape(rows, *alpha.shape[len(batch) :]),
        None if pair_weight is None else pair_weight.to(dtype),
        None if pair_bias is None else pair_bias.to(dtype),
        None if present is None else present.reshape(rows, modalities),
    )
    if needs_grad(descriptors, alpha, pair_weight, pair_bias):
        fused, alpha = _AdaptiveFusion.apply(*arguments, cuda_cpp)
    else:
        fused, alpha = torch.ops.amuse_kernels.adaptive_fusion_forward(*arguments, cuda_cpp=cuda_cpp)
    return fused.reshape(descriptors.shape), alpha.reshape(*batch, *alpha.shape[1:])
