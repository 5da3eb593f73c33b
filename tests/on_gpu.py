"""Kernels of a GPU backend on CPU tensors: copied to the GPU, run there, the results copied back.

For a process started with AMUSE_TEST_GPU=triton (or another GPU backend), where they take the place of the C++
kernels. So the promises, whose inputs are on the CPU, are kept by kernels on real hardware. `pytest -m gpu` starts
such processes.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map_only


def requested() -> str | None:
    """The backend whose kernels this process is to run on the GPU."""
    return os.environ.get("AMUSE_TEST_GPU")


def carried(kernel: Callable[..., Any], device: str = "cuda") -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        results = kernel(*tree_map_only(torch.Tensor, lambda t: _moved(t, device), arguments))
        return tree_map_only(torch.Tensor, lambda t: _moved(t, "cpu"), results)

    return run


def _moved(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """A copy with the same strides, but for broadcast tensors."""
    if 0 in tensor.stride():
        return tensor.to(device)
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device).copy_(tensor)
