"""Tokens of several samples without padding, as the layers take them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from amuse_kernels.buffers import accumulation_dtype
from amuse_kernels.checks import check_tensor, describe, shape_of
from amuse_kernels.dispatch import has_tangent
from amuse_kernels.nn.checks import check_floating


class Packed(NamedTuple):
    """The tokens of B samples one after the other.

    Attributes:
        values: `(T, dim)`.
        cu_seq: int32 `(B + 1,)` on the device of the values: cumulative lengths, 0 first and T last.
        max_len: the longest sequence, or more; a host number, so that nothing waits for a GPU.
    """

    values: Tensor
    cu_seq: Tensor
    max_len: int


def as_packed(name: str, tokens: object) -> Packed | None:
    """A `Packed` or a jagged nested tensor as `Packed`; None for anything else.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what was expected.
    """
    if isinstance(tokens, Packed):
        check_floating(f"{name}.values", tokens.values)
        check_tensor(f"{name}.cu_seq", tokens.cu_seq, (torch.int32,), tokens.values.device)
        if tokens.cu_seq.dim() != 1 or tokens.cu_seq.shape[0] < 1:
            raise ValueError(f"{name}.cu_seq: expected (B + 1,) cumulative lengths, got {shape_of(tokens.cu_seq)}")
        if isinstance(tokens.max_len, bool) or not isinstance(tokens.max_len, int | torch.SymInt):
            raise TypeError(f"{name}.max_len: expected an int, got {describe(tokens.max_len)}")
        return tokens
    if not is_jagged(tokens):
        return None
    nested: Any = tokens
    if nested.dim() != 3 or nested._ragged_idx != 1:
        raise ValueError(f"{name}: expected a jagged nested tensor (B, ragged, dim), got {tuple(nested.shape)}")
    if nested.lengths() is not None:
        raise ValueError(f"{name}: expected a jagged nested tensor without holes; .contiguous() makes one")
    check_floating(name, nested.values())
    return Packed(nested.values(), nested.offsets().to(torch.int32), nested._get_max_seqlen())


def like(tokens: Any, values: Tensor) -> Any:
    """`values` packed as `tokens` are, of the same kind."""
    if isinstance(tokens, Packed):
        return tokens._replace(values=values)
    # the very offsets, so that the result can be added to `tokens`
    return torch.nested.nested_tensor_from_jagged(values, tokens.offsets(), max_seqlen=tokens._get_max_seqlen())


def values_of(tokens: Any) -> Any:
    """The values of what is packed; anything else as it is."""
    if isinstance(tokens, Packed):
        return tokens.values
    return tokens.values() if is_jagged(tokens) else tokens


def is_jagged(tokens: object) -> bool:
    return isinstance(tokens, Tensor) and tokens.is_nested and tokens.layout is torch.jagged


def average(tokens: Packed) -> Tensor:
    """Average token of each sample, `(B, dim)`; 0 of none."""
    offsets, values = tokens.cu_seq, tokens.values.to(accumulation_dtype(tokens.values.dtype))
    if has_tangent(values):  # segment_reduce, which adds in the same order on every run, has no forward mode
        places = torch.arange(values.shape[0], device=values.device, dtype=offsets.dtype)
        sample = torch.searchsorted(offsets.narrow(0, 1, offsets.shape[0] - 1), places, right=True)
        summed = values.new_zeros(offsets.shape[0] - 1, values.shape[1]).index_add(0, sample, values)
    else:
        summed = torch.segment_reduce(values, "sum", offsets=offsets, axis=0, unsafe=True, initial=0)
    return (summed / offsets.diff().clamp(min=1).unsqueeze(1)).to(tokens.values.dtype)
