"""Sizes of adaptive_fusion in the form that the native module reads."""

from torch import Tensor

from amuse_kernels.native import DTYPES

SCALAR, ELEMENTWISE, GATE = 0, 1, 2  # AlphaKind in csrc/fusion.h


def fusion_sizes(descriptors: Tensor, alpha: Tensor | None) -> tuple[int, ...]:
    """n, m, d, stride_n, stride_m, dtype, alpha_kind; descriptors `(N, M, d)`."""
    kind = GATE if alpha is None else SCALAR if alpha.dim() == 3 else ELEMENTWISE
    return *descriptors.shape, descriptors.stride(0), descriptors.stride(1), DTYPES[descriptors.dtype], kind
