"""The inputs of p2c_attention as one value, and the checks that make it."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from amuse_kernels.checks import (
    FLOATING,
    INTEGERS,
    LARGEST_FP32,
    LARGEST_FP64,
    can_read,
    check_like,
    check_mask,
    check_shape,
    check_tensor,
    choice,
    describe,
    number,
    sequence,
    shape_of,
)

MAX_SOURCES = 8
MAX_HEAD_DIM = 256
NORMALIZATIONS = ("per_source", "joint")
RELATIONS = ("any", "same", "different")
ANY, SAME, DIFFERENT = range(3)  # their places


class Offsets(NamedTuple):
    """How the tokens of B samples are packed, see `p2c_attention_varlen`."""

    cu_seq_q: Tensor
    cu_seq_k: Sequence[Tensor]
    max_q: int
    max_k: Sequence[int]


class AttentionInputs(NamedTuple):
    """Validated arguments of p2c_attention in one form, in the order of the op's schema.

    Packed samples, of `p2c_attention_varlen`, have a batch size of 1: sample b has the tokens from `cu_seq[b]` to
    `cu_seq[b + 1]` of every tensor's length. Only the gates have B entries, and there are no masks.

    Attributes:
        query: `(B, H, Lq, D)`.
        keys, values: P tensors each, `(B, H, Lp, D)`; no values where only the weights are wanted.
        gates: `(B, H, P)` in the dtype of the computation, or None for ones.
        key_masks: P entries, bool `(B, Lp)` or None.
        query_groups: integers `(B, Lq)` or None.
        key_groups: P entries, integers `(B, Lp)` or None.
        relations: P entries of ANY, SAME and DIFFERENT.
        causal: P flags.
        joint: one softmax over all sources.
        seed: int64 scalar tensor, None without dropout.
        cu_seq_q: int32 `(B + 1,)`; None unless samples are packed, as are the fields below.
        cu_seq_k: P such tensors.
        max_q, max_k: the longest sequence of the queries and of each source, or more.
    """

    query: Tensor
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    gates: Tensor | None
    key_masks: Sequence[Tensor | None]
    query_groups: Tensor | None
    key_groups: Sequence[Tensor | None]
    relations: Sequence[int]
    causal: Sequence[bool]
    joint: bool
    softmax_scale: float
    dropout_p: float
    seed: Tensor | None
    cu_seq_q: Tensor | None = None
    cu_seq_k: Sequence[Tensor] | None = None
    max_q: int = 0
    max_k: Sequence[int] | None = None

    @property
    def packed(self) -> bool:
        return self.cu_seq_q is not None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The arguments of the op; those of packed samples are left to their defaults where there are none."""
        return self if self.packed else self[:_DENSE_FIELDS]

    @property
    def samples(self) -> int:
        """B, also of packed samples."""
        return self.query.shape[0] if self.cu_seq_q is None else self.cu_seq_q.shape[0] - 1

    @property
    def differentiable(self) -> tuple[Tensor | None, ...]:
        """The inputs that have derivatives."""
        return self.query, *self.keys, *self.values, self.gates

    def flat(self) -> tuple[Any, ...]:
        """The number of sources and every entry of every field: autograd does not look inside sequences."""
        entries: list[Any] = [len(self.keys)]
        for is_per_source, field in zip(_PER_SOURCE, self.arguments, strict=False):
            if is_per_source:
                entries += field
            else:
                entries.append(field)
        return tuple(entries)

    @classmethod
    def from_flat(cls, entries: Sequence[Any]) -> Self:
        """The inverse of `flat`."""
        sources, place = entries[0], 1
        fields: list[Any] = []
        for is_per_source in _PER_SOURCE:
            if place == len(entries):
                break  # the rest is of packed samples
            fields.append(tuple(entries[place : place + sources]) if is_per_source else entries[place])
            place += sources if is_per_source else 1
        return cls(*fields)


_NAMES_PER_SOURCE = ("keys", "values", "key_masks", "key_groups", "relations", "causal", "cu_seq_k", "max_k")
_PER_SOURCE = tuple(name in _NAMES_PER_SOURCE for name in AttentionInputs._fields)
_DENSE_FIELDS = AttentionInputs._fields.index("cu_seq_q")


def check_attention(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor] | None,
    *,
    gates: Tensor | None = None,
    key_masks: Sequence[Tensor | None] | None = None,
    query_groups: Tensor | None = None,
    key_groups: Sequence[Tensor | None] | None = None,
    relations: Sequence[str] | None = None,
    causal: bool | Sequence[bool] = False,
    normalization: str = "per_source",
    softmax_scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    offsets: Offsets | None = None,
) -> AttentionInputs:
    """Validate and normalise the arguments of `p2c_attention`; `values` None for its weights alone.

    With `offsets`, which the caller has checked, the samples are packed in a batch of 1.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value.
    """
    check_tensor("query", query, FLOATING)
    dtype, device, shape = query.dtype, query.device, query.shape
    if len(shape) != 4:
        raise ValueError(f"query: expected 4 dimensions (B, H, Lq, D), got {shape_of(query)}")
    batch, heads, queries, head_dim = shape
    if head_dim % 8 or not 8 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"query: head dim must be a multiple of 8 from 8 to {MAX_HEAD_DIM}, got {head_dim}")

    keys = sequence("keys", keys)
    sources = len(keys)
    if not 1 <= sources <= MAX_SOURCES:
        raise ValueError(f"keys: expected 1 to {MAX_SOURCES} sources, got {sources}")
    lengths = []
    for p, key in enumerate(keys):
        check_like(f"keys[{p}]", key, dtype, device)
        shape = key.shape
        if len(shape) != 4 or shape[0] != batch or shape[1] != heads or shape[3] != head_dim:
            raise ValueError(f"keys[{p}]: expected ({batch}, {heads}, L, {head_dim}), got {shape_of(key)}")
        lengths.append(shape[2])
    values = () if values is None else sequence("values", values, sources)
    for p, value in enumerate(values):
        check_like(f"values[{p}]", value, dtype, device)
        if value.shape != keys[p].shape:
            raise ValueError(f"values[{p}]: expected the shape of keys[{p}] {shape_of(keys[p])}, got {shape_of(value)}")

    joint = choice("normalization", normalization, NORMALIZATIONS) == "joint"
    masks = (None,) * sources
    if key_masks is not None:
        masks = sequence("key_masks", key_masks, sources)
        for p, mask in enumerate(masks):
            if mask is not None:
                check_mask(f"key_masks[{p}]", mask, (batch, lengths[p]), device, "attend")

    if query_groups is not None:
        check_tensor("query_groups", query_groups, INTEGERS, device)
        check_shape("query_groups", query_groups, (batch, queries))
    groups = (None,) * sources
    if key_groups is not None:
        groups = sequence("key_groups", key_groups, sources)
        for p, group in enumerate(groups):
            if group is not None:
                check_tensor(f"key_groups[{p}]", group, INTEGERS, device)
                check_shape(f"key_groups[{p}]", group, (batch, lengths[p]))

    dropout_p = _probability(dropout_p)
    samples = batch if offsets is None else offsets.cu_seq_q.shape[0] - 1
    largest = LARGEST_FP64 if dtype == torch.float64 else LARGEST_FP32  # for the dtype in which scores are computed
    return AttentionInputs(
        query=query,
        keys=keys,
        values=values,
        gates=None if gates is None else spread_gates(gates, query, (samples, heads, sources), joint),
        key_masks=masks,
        query_groups=query_groups,
        key_groups=groups,
        relations=_relations(relations, query_groups, groups),
        causal=_causal(causal, queries, lengths),
        joint=joint,
        softmax_scale=head_dim**-0.5 if softmax_scale is None else number("softmax_scale", softmax_scale, largest),
        dropout_p=dropout_p,
        seed=_seed(seed, device) if dropout_p > 0 else None,
        **({} if offsets is None else offsets._asdict()),
    )


def spread_gates(gates: Tensor, query: Tensor, shape: tuple[int, int, int], joint: bool = False) -> Tensor:
    """The gates in the dtype of the computation, spread to `shape` (B, H, P).

    Raises:
        TypeError, ValueError: they are not floating, do not broadcast, or are infinite or, for joint, negative.
    """
    check_tensor("gates", gates, FLOATING, query.device)
    computed_in = torch.float64 if query.dtype == torch.float64 else torch.float32
    try:
        # in this order, so that the gradients of a broadcast gate are added up before they are rounded to its dtype
        gates = gates.to(computed_in).expand(shape)
    except RuntimeError:
        raise ValueError(
            f"gates: expected a shape that broadcasts to (B, H, P) = {shape}, got {shape_of(gates)}"
        ) from None
    if can_read(gates):
        if bool(torch.isinf(gates).any()):
            raise ValueError("gates: expected finite gates, got an infinite one")
        if joint and bool((gates < 0).any()):
            raise ValueError(f"gates: expected no negative gate with normalization='joint', got {float(gates.min())}")
    return gates


def _relations(
    relations: Sequence[str] | None, query_groups: Tensor | None, key_groups: Sequence[Tensor | None]
) -> tuple[int, ...]:
    if relations is None:
        return (ANY,) * len(key_groups)
    if isinstance(relations, str):
        raise TypeError(f"relations: expected a list or tuple with one entry per source, got {relations!r}")
    names = sequence("relations", relations, len(key_groups))
    found = [RELATIONS.index(choice(f"relations[{p}]", name, RELATIONS)) for p, name in enumerate(names)]
    for p, relation in enumerate(found):
        if relation != ANY and (query_groups is None or key_groups[p] is None):
            missing = "query_groups" if query_groups is None else f"key_groups[{p}]"
            raise ValueError(f"{missing}: expected an integer tensor, since relations[{p}] is {names[p]!r}")
    return tuple(found)


def _causal(causal: bool | Sequence[bool], queries: int, lengths: Sequence[int]) -> tuple[bool, ...]:
    flags = (causal,) * len(lengths) if isinstance(causal, bool) else sequence("causal", causal, len(lengths))
    for p, flag in enumerate(flags):
        if not isinstance(flag, bool):
            raise TypeError(f"causal[{p}]: expected a bool, got {describe(flag)}")
        if flag and lengths[p] != queries:
            raise ValueError(f"causal[{p}]: needs as many keys as queries, got {lengths[p]} keys, {queries} queries")
    return flags


def _probability(value: float) -> float:
    if not 0 <= number("dropout_p", value) < 1:
        raise ValueError(f"dropout_p: expected a probability in [0, 1), got {value}")
    return float(value)


def _seed(seed: int | None, device: torch.device) -> Tensor:
    """A tensor, so that a drawn seed neither waits for a GPU nor breaks a trace."""
    if seed is None:
        return torch.randint(2**63 - 1, (), device=device)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: expected an int or None, got {describe(seed)}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed: expected an int in [0, 2**63), got {seed}")
    return torch.full((), seed, dtype=torch.int64, device=device)
