"""What the glue of the native kernels shares, those of the CPU and those of CUDA: codes, sizes and addresses."""

from types import ModuleType

import torch
from torch import Tensor

from amuse_kernels.dispatch import native_module

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # csrc/dtype.h
SCALAR, ELEMENTWISE, GATE = 0, 1, 2  # AlphaKind in csrc/fusion.h


def module() -> ModuleType:
    found = native_module()
    if found is None:
        raise RuntimeError("the native library is not built; `python -m amuse_kernels.info` says why")
    return found


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def fusion_sizes(descriptors: Tensor, alpha: Tensor | None) -> tuple[int, ...]:
    """n, m, d, stride_n, stride_m, dtype, alpha_kind; descriptors `(N, M, d)`."""
    kind = GATE if alpha is None else SCALAR if alpha.dim() == 3 else ELEMENTWISE
    return *descriptors.shape, descriptors.stride(0), descriptors.stride(1), DTYPES[descriptors.dtype], kind


def interpolation_sizes(a: Tensor, epsilon: float) -> tuple[int, int, float, int]:
    """n, d, epsilon, dtype; `a` `(N, d)`."""
    return *a.shape, epsilon, DTYPES[a.dtype]
