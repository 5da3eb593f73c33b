"""interpolation_coefficients by the C++ CPU kernels; outputs are allocated here."""

import torch
from torch import Tensor

from amuse_kernels.buffers import dense
from amuse_kernels.native import module


def interpolation_coefficients_forward(a: Tensor, b: Tensor, grad_b: Tensor, epsilon: float) -> Tensor:
    """a, b, grad_b `(N, d)`; see `amuse_kernels.interpolation_coefficients`."""
    a, b, grad_b = dense(a, b, grad_b)
    out = a.new_empty(a.shape)
    module().interpolation_coefficients_forward(a, b, grad_b, out, epsilon, torch.get_num_threads())
    return out


def interpolation_coefficients_backward(
    grad: Tensor, a: Tensor, b: Tensor, grad_b: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and grad_b."""
    grad, a, b, grad_b = dense(grad, a, b, grad_b)
    grads = (a.new_empty(a.shape), a.new_empty(a.shape), a.new_empty(a.shape))
    module().interpolation_coefficients_backward(grad, a, b, grad_b, *grads, epsilon, torch.get_num_threads())
    return grads
