"""Shared glue of the native kernels, for the CPU and for CUDA."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from amuse_kernels.dispatch import native_module

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # csrc/dtype.h


def module() -> ModuleType:
    found = native_module()
    if found is None:
        raise RuntimeError("the native library is not built; `python -m amuse_kernels.info` says why")
    return found


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def run(plan: Any, device: torch.device) -> None:
    """Queue a plan on the current stream of `device`; RuntimeError with CUDA's name of the error."""
    plan.run(device.index, torch.cuda.current_stream(device).cuda_stream)
