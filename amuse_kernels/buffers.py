"""What every backend's launch glue shares: inputs in a layout that kernels read, and uninitialised outputs."""

from typing import Any

import torch
from torch import Tensor

from amuse_kernels.reference import accumulation_dtype


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


def attention_outputs(query: Tensor, sources: int, joint: bool) -> tuple[Tensor, Tensor]:
    """Output and lse of p2c_attention; the heads of an output row are neighbours in memory."""
    batch, heads, queries, width = query.shape
    out = query.new_empty_strided(query.shape, (queries * heads * width, width, heads * width, 1))
    shape = (batch, heads, queries) if joint else (batch, heads, queries, sources)
    return out, query.new_empty(shape, dtype=accumulation_dtype(query.dtype))


def grad_like(tensor: Tensor) -> Tensor:
    """In the memory order of `tensor`, so that the views it came from need no copy of its gradient."""
    like = torch.empty_like(tensor)
    return like if like.stride(-1) == 1 else tensor.new_empty(tensor.shape)


def fusion_outputs(descriptors: Tensor, alpha: Tensor | None) -> tuple[Tensor, Tensor]:
    """The fused descriptors and the alpha used."""
    rows, modalities, _ = descriptors.shape
    alpha_shape = (rows, modalities, modalities) if alpha is None else alpha.shape
    return descriptors.new_empty(descriptors.shape), descriptors.new_empty(alpha_shape)
