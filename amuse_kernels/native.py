"""Shared glue of the native kernels, for the CPU and for CUDA."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from amuse_kernels.dispatch import native_module


def module() -> ModuleType:
    found = native_module()
    if found is None:
        raise RuntimeError("the native library is not built; `python -m amuse_kernels.info` says why")
    return found


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class Workspace:
    """Memory that kernels work in, on the device of a tensor; to be kept until they are queued."""

    def __init__(self, like: Tensor) -> None:
        self._like = like

    def allocate(self, size: int) -> int:
        """The address of `size` bytes."""
        self._memory = self._like.new_empty(size, dtype=torch.uint8)
        return address(self._memory)


def run(plan: Any, device: torch.device) -> None:
    """Queue a plan on the current stream of `device`; RuntimeError with CUDA's name of the error."""
    plan.run(device.index, torch.cuda.current_stream(device).cuda_stream)
