"""Schema, fakes and autograd of interpolation_coefficients."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from amuse_kernels.interpolation import reference
from amuse_kernels.library import graph_gradients, implement, library, needs_a_graph, needs_grad

library.define(
    "interpolation_coefficients_forward(Tensor a, Tensor b, Tensor grad_b, float epsilon, *, bool cuda_cpp=False)"
    " -> Tensor"
)
library.define(
    "interpolation_coefficients_backward(Tensor grad, Tensor a, Tensor b, Tensor grad_b, float epsilon, *, "
    "bool cuda_cpp=False) -> (Tensor a, Tensor b, Tensor grad_b)"
)


def kernels(backend: ModuleType) -> dict[str, Callable[..., Any]]:
    """The functions of a backend by the name of the op."""
    return {
        name: getattr(backend, name)
        for name in ("interpolation_coefficients_forward", "interpolation_coefficients_backward")
    }


implement("amuse_kernels.interpolation", kernels)


@torch.library.register_fake("amuse_kernels::interpolation_coefficients_forward", lib=library)
def _interpolation_forward_fake(
    a: Tensor, b: Tensor, grad_b: Tensor, epsilon: float, *, cuda_cpp: bool = False
) -> Tensor:
    return a.new_empty(a.shape)


@torch.library.register_fake("amuse_kernels::interpolation_coefficients_backward", lib=library)
def _interpolation_backward_fake(
    grad: Tensor, a: Tensor, b: Tensor, grad_b: Tensor, epsilon: float, *, cuda_cpp: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape), b.new_empty(b.shape), grad_b.new_empty(grad_b.shape)


class _InterpolationCoefficients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, grad_b, epsilon, cuda_cpp):
        ctx.save_for_backward(a, b, grad_b)
        ctx.epsilon, ctx.cuda_cpp = epsilon, cuda_cpp
        return torch.ops.amuse_kernels.interpolation_coefficients_forward(a, b, grad_b, epsilon, cuda_cpp=cuda_cpp)

    @staticmethod
    def backward(ctx, grad):
        a, b, grad_b = ctx.saved_tensors
        if needs_a_graph(grad):
            inputs = (a, b, grad_b)
            grads = graph_gradients(
                lambda: (reference.interpolation_coefficients(*inputs, ctx.epsilon),), (grad,), inputs
            )
            return *grads, None, None
        backward = torch.ops.amuse_kernels.interpolation_coefficients_backward
        return *backward(grad, a, b, grad_b, ctx.epsilon, cuda_cpp=ctx.cuda_cpp), None, None


def interpolation_coefficients(a: Tensor, b: Tensor, grad_b: Tensor, epsilon: float, cuda_cpp: bool = False) -> Tensor:
    """`reference.interpolation_coefficients` by the fused kernels of the tensors' device."""
    rows = (math.prod(a.shape[:-1]), a.shape[-1])
    arguments = (a.reshape(rows), b.reshape(rows), grad_b.reshape(rows), epsilon)
    if needs_grad(a, b, grad_b):
        out = _InterpolationCoefficients.apply(*arguments, cuda_cpp)
    else:
        out = torch.ops.amuse_kernels.interpolation_coefficients_forward(*arguments, cuda_cpp=cuda_cpp)
    return out.reshape(a.shape)
