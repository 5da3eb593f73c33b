"""The arguments of p2c_attention_varlen: packed samples, the tokens of all of them one after the other."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from amuse_kernels.attention.inputs import MAX_SOURCES, AttentionInputs, Offsets, check_attention
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
) -> AttentionInputs:
    """Validate the arguments of `p2c_attention_varlen` and lay their tokens out as a batch of 1.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value.
    """
    check_tensor("query", query, FLOATING)
    if query.dim() != 3:
        raise ValueError(f"query: expected 3 dimensions (Tq, H, D), got {shape_of(query)}")
    tokens, heads, head_dim = query.shape
    _check_offsets("q", cu_seq_q, max_q, tokens, query.device)

    keys = sequence("keys", keys)
    sources = len(keys)
    if not 1 <= sources <= MAX_SOURCES:
        raise ValueError(f"keys: expected 1 to {MAX_SOURCES} sources, got {sources}")
    values = sequence("values", values, sources)
    cu_seq_k = sequence("cu_seq_k", cu_seq_k, sources)
    max_k = sequence("max_k", max_k, sources)
    for p, (key, value) in enumerate(zip(keys, values, strict=True)):
        check_like(f"keys[{p}]", key, query.dtype, query.device)
        if key.dim() != 3 or key.shape[1:] != query.shape[1:]:
            raise ValueError(f"keys[{p}]: expected (T, {heads}, {head_dim}), got {shape_of(key)}")
        check_like(f"values[{p}]", value, query.dtype, query.device)
        if value.shape != key.shape:
            raise ValueError(f"values[{p}]: expected the shape of keys[{p}] {shape_of(key)}, got {shape_of(value)}")
        _check_offsets(f"k[{p}]", cu_seq_k[p], max_k[p], key.shape[0], query.device, cu_seq_q.shape[0] - 1)

    flags = causal if isinstance(causal, list | tuple) else [causal] * sources
    for p, (flag, cu_seq) in enumerate(zip(flags, cu_seq_k, strict=False)):
        if flag is True and cu_seq is not cu_seq_q and can_read(cu_seq) and not torch.equal(cu_seq, cu_seq_q):
            raise ValueError(
                f"causal[{p}]: needs as many keys as queries in every sample; cu_seq_k[{p}] is not cu_seq_q"
            )
    if query_groups is not None:
        check_tensor("query_groups", query_groups, INTEGERS, query.device)
        check_shape("query_groups", query_groups, (tokens,))
        query_groups = query_groups.unsqueeze(0)
    if key_groups is not None:
        groups = list(sequence("key_groups", key_groups, sources))
        for p, group in enumerate(groups):
            if group is not None:
                check_tensor(f"key_groups[{p}]", group, INTEGERS, query.device)
                check_shape(f"key_groups[{p}]", group, (keys[p].shape[0],))
                groups[p] = group.unsqueeze(0)
        key_groups = groups
    return check_attention(
        as_batch(query),
        [as_batch(key) for key in keys],
        [as_batch(value) for value in values],
        query_groups=query_groups,
        key_groups=key_groups,
        causal=causal,
        offsets=Offsets(cu_seq_q, cu_seq_k, max_q, max_k),
        **options,
    )


def of_batch(tokens: Tensor) -> Tensor:
    """The output `(1, H, T, D)` as `(T, H, D)`, the lse `(1, H, T, P)` or `(1, H, T)` as `(T, H, P)` or `(T, H)`."""
    return tokens.squeeze(0).transpose(0, 1)


def as_batch(tokens: Tensor) -> Tensor:
    """Tokens `(T, H, D)` as a batch of 1, `(1, H, T, D)`."""
    return tokens.transpose(0, 1).unsqueeze(0)


def _check_offsets(
    name: str, cu_seq: Tensor, max_len: int, tokens: int, device: torch.device, samples: int | None = None
) -> None:
    """The offsets and the maximum of one tensor; `name` is what follows `cu_seq_` and `max_`."""
    check_tensor(f"cu_seq_{name}", cu_seq, (torch.int32,), device)
    if cu_seq.dim() != 1 or cu_seq.shape[0] < 1:
        raise ValueError(f"cu_seq_{name}: expected (B + 1,) cumulative lengths, got {shape_of(cu_seq)}")
    if samples is not None and cu_seq.shape[0] != samples + 1:
        raise ValueError(f"cu_seq_{name}: expected {samples} samples as in cu_seq_q, got {shape_of(cu_seq)}")
    if isinstance(max_len, bool) or not isinstance(max_len, int | torch.SymInt):
        raise TypeError(f"max_{name}: expected an int, got {describe(max_len)}")
    if not 0 <= max_len < 2**31:
        raise ValueError(f"max_{name}: expected a length from 0 to 2^31 - 1, got {describe(max_len)}")
    if can_read(cu_seq):
        offsets = cu_seq.tolist()  # a few numbers, which Python compares sooner than tensor ops start
        lengths = [end - start for start, end in pairwise(offsets)]
        if offsets[0] != 0 or offsets[-1] != tokens or min(lengths, default=0) < 0:
            raise ValueError(
                f"cu_seq_{name}: expected offsets that rise from 0 to the number of tokens, {tokens}; got {offsets}"
            )
        if max(lengths, default=0) > max_len:
            raise ValueError(f"max_{name}: expected the longest sequence, {max(lengths)}, or more, got {max_len}")
