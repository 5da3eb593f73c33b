"""The checks of interpolation_coefficients' arguments."""

import torch
from torch import Tensor

from amuse_kernels.checks import (
    FLOATING,
    LARGEST_FP32,
    LARGEST_FP64,
    check_like,
    check_shape,
    check_tensor,
    number,
    shape_of,
)


def check_interpolation(a: Tensor, b: Tensor, grad_b: Tensor, epsilon: float) -> None:
    """Validate the arguments of `interpolation_coefficients`: three tensors `(..., d)` alike, a finite epsilon."""
    check_tensor("a", a, FLOATING)
    if a.dim() < 1 or a.shape[-1] == 0:
        raise ValueError(f"a: expected (..., d) with d of at least 1, got {shape_of(a)}")
    for name, tensor in (("b", b), ("grad_b", grad_b)):
        check_like(name, tensor, a.dtype, a.device)
        check_shape(name, tensor, tuple(a.shape))
    number("epsilon", epsilon, LARGEST_FP64 if a.dtype == torch.float64 else LARGEST_FP32)
