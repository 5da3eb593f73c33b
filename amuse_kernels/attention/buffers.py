"""Uninitialised outputs and gradients of p2c_attention."""

from typing import NamedTuple

from torch import Tensor

from amuse_kernels.attention.inputs import AttentionInputs
from amuse_kernels.buffers import accumulation_dtype, grad_like


class Gradients(NamedTuple):
    """In the order of the op's schema; the gates' is `(B, H, P)`, empty where there are none."""

    query: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    gates: Tensor


def empty_outputs(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """Output and lse; the heads of an output row are neighbours in memory."""
    query = inputs.query
    batch, heads, queries, width = query.shape
    out = query.new_empty_strided(query.shape, (queries * heads * width, width, heads * width, 1))
    shape = (batch, heads, queries) if inputs.joint else (batch, heads, queries, len(inputs.keys))
    return out, query.new_empty(shape, dtype=accumulation_dtype(query.dtype))


def empty_gradients(inputs: AttentionInputs) -> Gradients:
    """Gradients laid out as the inputs that they belong to."""
    gates = 0 if inputs.gates is None else inputs.gates.shape
    return Gradients(
        grad_like(inputs.query),
        [grad_like(key) for key in inputs.keys],
        [grad_like(value) for value in inputs.values],
        inputs.query.new_empty(gates, dtype=accumulation_dtype(inputs.query.dtype)),
    )
