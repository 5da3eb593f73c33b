"""Shared launch glue of all backends: inputs in the layout that kernels read, types and precision."""

from typing import Any

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def fp32_products() -> str | None:
    """PyTorch's setting for fp32 matrix products on a GPU: "ieee", "tf32", or None where it is not set.

    This switch follows the global one and the older ones, whose getters raise once the newer ones have been set.
    """
    said = torch.backends.cuda.matmul.fp32_precision
    return None if said == "none" else said


def multiplies_as_tf32() -> bool:
    """Whether products of fp32 on a GPU are computed as tf32: as PyTorch's own are."""
    return fp32_products() == "tf32"


def rows_dense(tensor: Tensor) -> Tensor:
    """With a contiguous last dim; a copy only where that is not so."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def dense(*tensors: Tensor | None) -> Any:
    """All contiguous, None where None."""
    return tuple(None if t is None else t.contiguous() for t in tensors)


def int64(group: Tensor | None) -> Tensor | None:
    if group is None or (group.dtype == torch.int64 and group.is_contiguous()):
        return group
    return group.to(torch.int64).contiguous()


def grad_like(tensor: Tensor) -> Tensor:
    """In the memory order of `tensor`, so that the views it came from need no copy of its gradient."""
    like = torch.empty_like(tensor)
    return like if like.stride(-1) == 1 else tensor.new_empty(tensor.shape)
