"""Sizes of interpolation_coefficients in the form that the native module reads."""

from torch import Tensor

from amuse_kernels.native import DTYPES


def interpolation_sizes(a: Tensor, epsilon: float) -> tuple[int, int, float, int]:
    """n, d, epsilon, dtype; `a` `(N, d)`."""
    return *a.shape, epsilon, DTYPES[a.dtype]
