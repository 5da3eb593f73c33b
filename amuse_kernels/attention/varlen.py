"""p2c_attention of packed samples: the tokens of all samples one after the other, without padding between them.

The kernels are those of the dense op: tokens are laid out as `(B, H, L, D)` around them, with key masks for what a
sample does not have. Nothing here reads a tensor's contents on a GPU.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amuse_kernels.attention.inputs import MAX_SOURCES, AttentionInputs, check_attention
from amuse_kernels.checks import (
    FLOATING,
    INTEGERS,
    can_read,
    check_like,
    check_shape,
    check_tensor,
    describe,
    sequence,
    shape_of,
)


class Packing(NamedTuple):
    """How tokens are packed: sample b has those from `cu_seq[b]` to `cu_seq[b + 1]`, at most `max_len`."""

    cu_seq: Tensor
    max_len: int

    @property
    def samples(self) -> int:
        return self.cu_seq.shape[0] - 1

    def pad(self, tokens: Tensor) -> Tensor:
        """`(T, ...)` as `(B, max_len, ...)`, zeros where a sample has no token."""
        rows = torch.cat([tokens, tokens.new_zeros((1, *tokens.shape[1:]))])  # the last one is the padding
        places = torch.where(self.mask(), self._places(), tokens.shape[0]).flatten()
        return rows.index_select(0, places).unflatten(0, (self.samples, self.max_len))

    def unpad(self, padded: Tensor, tokens: int) -> Tensor:
        """The inverse of `pad`: the first dimension has `tokens` entries again."""
        places = torch.arange(tokens, device=padded.device)
        sample = torch.searchsorted(self._ends(), places.to(self.cu_seq.dtype), right=True)
        sample = sample.clamp(max=self.samples - 1)  # offsets that are wrong must not leave the tensor
        rows = sample * self.max_len + (places - self.cu_seq.index_select(0, sample)).clamp(0, max(self.max_len - 1, 0))
        return padded.flatten(0, 1).index_select(0, rows)

    def unpad_outputs(self, out: Tensor, lse: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """Output `(B, H, L, D)` and lse `(B, H, L, P)` or `(B, H, L)` as `(T, H, D)`, `(T, H, P)` or `(T, H)`."""
        return self.unpad(out.transpose(1, 2), tokens), self.unpad(lse.transpose(1, 2), tokens)

    def mask(self) -> Tensor:
        """Bool `(B, max_len)`: which places hold a token."""
        return self._places() < self._ends().unsqueeze(1)

    def _places(self) -> Tensor:
        starts = self.cu_seq.narrow(0, 0, self.samples)
        return starts.unsqueeze(1) + torch.arange(self.max_len, device=self.cu_seq.device)

    def _ends(self) -> Tensor:
        return self.cu_seq.narrow(0, 1, self.samples)


def check_attention_varlen(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    cu_seq_q: Tensor,
    cu_seq_k: Sequence[Tensor],
    max_q: int,
    max_k: Sequence[int],
    *,
    query_groups: Tensor | None = None,
    key_groups: Sequence[Tensor | None] | None = None,
    causal: bool | Sequence[bool] = False,
    **options: Any,
) -> tuple[AttentionInputs, Packing]:
    """Validate the arguments of `p2c_attention_varlen`; the inputs of the dense op, and how queries are packed.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value.
    """
    check_tensor("query", query, FLOATING)
    if query.dim() != 3:
        raise ValueError(f"query: expected 3 dimensions (Tq, H, D), got {shape_of(query)}")
    tokens, heads, head_dim = query.shape
    packing = _packing("q", cu_seq_q, max_q, tokens, query.device)

    keys = sequence("keys", keys)
    if not 1 <= len(keys) <= MAX_SOURCES:
        raise ValueError(f"keys: expected 1 to {MAX_SOURCES} sources, got {len(keys)}")
    values = sequence("values", values, len(keys))
    cu_seq_k = sequence("cu_seq_k", cu_seq_k, len(keys))
    max_k = sequence("max_k", max_k, len(keys))
    packings = []
    for p, (key, value) in enumerate(zip(keys, values, strict=True)):
        check_like(f"keys[{p}]", key, query.dtype, query.device)
        if key.dim() != 3 or key.shape[1:] != query.shape[1:]:
            raise ValueError(f"keys[{p}]: expected (T, {heads}, {head_dim}), got {shape_of(key)}")
        check_like(f"values[{p}]", value, query.dtype, query.device)
        if value.shape != key.shape:
            raise ValueError(f"values[{p}]: expected the shape of keys[{p}] {shape_of(key)}, got {shape_of(value)}")
        packings.append(_packing(f"k[{p}]", cu_seq_k[p], max_k[p], key.shape[0], query.device, packing.samples))

    if query_groups is not None:
        check_tensor("query_groups", query_groups, INTEGERS, query.device)
        check_shape("query_groups", query_groups, (tokens,))
        query_groups = packing.pad(query_groups)
    if key_groups is not None:
        groups = list(sequence("key_groups", key_groups, len(keys)))
        for p, group in enumerate(groups):
            if group is not None:
                check_tensor(f"key_groups[{p}]", group, INTEGERS, query.device)
                check_shape(f"key_groups[{p}]", group, (keys[p].shape[0],))
                groups[p] = packings[p].pad(group)
        key_groups = groups
    flags = causal if isinstance(causal, list | tuple) else [causal] * len(keys)
    for p, flag in enumerate(flags):
        if flag is True and p < len(keys):
            packings[p] = _same_lengths(p, packing, packings[p])

    def tokens_of(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [packed.pad(tensor).transpose(1, 2) for packed, tensor in zip(packings, tensors, strict=True)]

    inputs = check_attention(
        packing.pad(query).transpose(1, 2),
        tokens_of(keys),
        tokens_of(values),
        key_masks=[packed.mask() for packed in packings],
        query_groups=query_groups,
        key_groups=key_groups,
        causal=causal,
        **options,
    )
    return inputs, packing


def _packing(
    name: str, cu_seq: Tensor, max_len: int, tokens: int, device: torch.device, samples: int | None = None
) -> Packing:
    """The offsets and the maximum of one tensor; `name` is what follows `cu_seq_` and `max_`."""
    check_tensor(f"cu_seq_{name}", cu_seq, (torch.int32,), device)
    if cu_seq.dim() != 1 or cu_seq.shape[0] < 1:
        raise ValueError(f"cu_seq_{name}: expected (B + 1,) cumulative lengths, got {shape_of(cu_seq)}")
    if samples is not None and cu_seq.shape[0] != samples + 1:
        raise ValueError(f"cu_seq_{name}: expected {samples} samples as in cu_seq_q, got {shape_of(cu_seq)}")
    if isinstance(max_len, bool) or not isinstance(max_len, int | torch.SymInt):
        raise TypeError(f"max_{name}: expected an int, got {describe(max_len)}")
    if max_len < 0:
        raise ValueError(f"max_{name}: expected 0 or more, got {max_len}")
    if can_read(cu_seq):
        lengths = cu_seq.diff()
        if int(cu_seq[0]) != 0 or int(cu_seq[-1]) != tokens or bool((lengths < 0).any()):
            raise ValueError(
                f"cu_seq_{name}: expected offsets that rise from 0 to the number of tokens, {tokens}; "
                f"got {cu_seq.tolist()}"
            )
        if bool((lengths > max_len).any()):
            raise ValueError(f"max_{name}: expected the longest sequence, {int(lengths.max())}, or more, got {max_len}")
    return Packing(cu_seq, max_len)


def _same_lengths(p: int, queries: Packing, keys: Packing) -> Packing:
    """The keys of a causal source, laid out as the queries are: position by position."""
    if can_read(queries.cu_seq) and not torch.equal(queries.cu_seq, keys.cu_seq):
        raise ValueError(f"causal[{p}]: needs as many keys as queries in every sample; cu_seq_k[{p}] is not cu_seq_q")
    return Packing(keys.cu_seq, queries.max_len)
