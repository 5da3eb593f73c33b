"""Uninitialised outputs of p2c_attention."""

from torch import Tensor

from amuse_kernels.buffers import accumulation_dtype


def attention_outputs(query: Tensor, sources: int, joint: bool) -> tuple[Tensor, Tensor]:
    """Output and lse of p2c_attention; the heads of an output row are neighbours in memory."""
    batch, heads, queries, width = query.shape
    out = query.new_empty_strided(query.shape, (queries * heads * width, width, heads * width, 1))
    shape = (batch, heads, queries) if joint else (batch, heads, queries, sources)
    return out, query.new_empty(shape, dtype=accumulation_dtype(query.dtype))
