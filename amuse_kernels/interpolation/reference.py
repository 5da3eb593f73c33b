"""The specification of interpolation_coefficients (paper Eq. 6) in plain PyTorch, twice differentiable."""

import torch
from torch import Tensor

from amuse_kernels.buffers import accumulation_dtype


def interpolation_coefficients(a: Tensor, b: Tensor, grad_b: Tensor, epsilon: float) -> Tensor:
    """epsilon ||a - b|| grad_b / ||grad_b|| divided by (a - b), clipped to [0, 1]; 0 where that is undefined.

    All `(..., d)`; returns `(..., d)` in the dtype of `a`.
    """
    dtype = accumulation_dtype(a.dtype)
    difference, gradient = a.to(dtype) - b.to(dtype), grad_b.to(dtype)
    distance = torch.linalg.vector_norm(difference, dim=-1, keepdim=True)
    length = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
    defined = (difference != 0) & (length != 0)
    # denominators of 1 keep the derivatives of the branch that `where` does not take finite
    step = epsilon * distance * gradient / torch.where(length == 0, 1.0, length)
    coefficient = (step / torch.where(difference == 0, 1.0, difference)).clamp(0.0, 1.0)
    return torch.where(defined, coefficient, 0.0).to(a.dtype)
