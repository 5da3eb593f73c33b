"""Argument checks of the public ops: every error names the argument, what it was and what was expected.

They look at shapes, dtypes, devices and Python values; at the contents of a tensor only where that neither waits for
a GPU nor breaks a trace.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch._subclasses.fake_tensor import FakeTensor

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
MAX_SOURCES = 8
MAX_MODALITIES = 8
MAX_HEAD_DIM = 256
LARGEST_FP32, LARGEST_FP64 = torch.finfo(torch.float32).max, torch.finfo(torch.float64).max
NORMALIZATIONS = ("per_source", "joint")
RELATIONS = ("any", "same", "different")
_SEQUENCES = (list, tuple, Sequence)  # the common ones first: a look at an abstract class takes longer


class AttentionInputs(NamedTuple):
    """Validated arguments of p2c_attention, in one form: an entry per source, seed a tensor.

    Gates are `(B, H, P)` in the dtype of the computation.
    """

    query: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...] | None
    gates: Tensor | None
    key_masks: tuple[Tensor | None, ...]
    query_groups: Tensor | None
    key_groups: tuple[Tensor | None, ...]
    relations: tuple[str, ...]
    causal: tuple[bool, ...]
    normalization: str
    softmax_scale: float
    dropout_p: float
    seed: Tensor | None


def check_attention(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor] | None,
    gates: Tensor | None,
    key_masks: Sequence[Tensor | None] | None,
    query_groups: Tensor | None,
    key_groups: Sequence[Tensor | None] | None,
    relations: Sequence[str] | None,
    causal: bool | Sequence[bool],
    normalization: str,
    softmax_scale: float | None,
    dropout_p: float,
    seed: int | None,
) -> AttentionInputs:
    """Validate and normalise the arguments of `p2c_attention` (SPEC: see its docstring).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value.
    """
    _check_tensor("query", query, FLOATING)
    dtype, device, shape = query.dtype, query.device, query.shape
    if len(shape) != 4:
        raise ValueError(f"query: expected 4 dimensions (B, H, Lq, D), got {_shape(query)}")
    batch, heads, queries, head_dim = shape
    if head_dim % 8 or not 8 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"query: head dim must be a multiple of 8 from 8 to {MAX_HEAD_DIM}, got {head_dim}")

    keys = _sequence("keys", keys)
    sources = len(keys)
    if not 1 <= sources <= MAX_SOURCES:
        raise ValueError(f"keys: expected 1 to {MAX_SOURCES} sources, got {sources}")
    lengths = []
    for p, key in enumerate(keys):
        _check_like(f"keys[{p}]", key, dtype, device)
        shape = key.shape
        if len(shape) != 4 or shape[0] != batch or shape[1] != heads or shape[3] != head_dim:
            raise ValueError(f"keys[{p}]: expected ({batch}, {heads}, L, {head_dim}), got {_shape(key)}")
        lengths.append(shape[2])
    if values is not None:
        values = _sequence("values", values, sources)
        for p, value in enumerate(values):
            _check_like(f"values[{p}]", value, dtype, device)
            if value.shape != keys[p].shape:
                raise ValueError(f"values[{p}]: expected the shape of keys[{p}] {_shape(keys[p])}, got {_shape(value)}")

    if gates is not None:
        _check_tensor("gates", gates, FLOATING, device)
        computed_in = torch.float64 if dtype == torch.float64 else torch.float32
        try:
            # in this order, so that the gradients of a broadcast gate are added up before they are rounded to its dtype
            gates = gates.to(computed_in).expand(batch, heads, sources)
        except RuntimeError:
            raise ValueError(
                f"gates: expected a shape that broadcasts to (B, H, P) = ({batch}, {heads}, {sources}), "
                f"got {_shape(gates)}"
            ) from None
        if normalization == "joint" and _can_read(gates) and bool((gates < 0).any()):
            raise ValueError(f"gates: expected no negative gate with normalization='joint', got {float(gates.min())}")

    masks = (None,) * sources
    if key_masks is not None:
        masks = _sequence("key_masks", key_masks, sources)
        for p, mask in enumerate(masks):
            if mask is not None:
                check_mask(f"key_masks[{p}]", mask, (batch, lengths[p]), device, "attend")

    if query_groups is not None:
        _check_tensor("query_groups", query_groups, INTEGERS, device)
        _check_shape("query_groups", query_groups, (batch, queries))
    groups = (None,) * sources
    if key_groups is not None:
        groups = _sequence("key_groups", key_groups, sources)
        for p, group in enumerate(groups):
            if group is not None:
                _check_tensor(f"key_groups[{p}]", group, INTEGERS, device)
                _check_shape(f"key_groups[{p}]", group, (batch, lengths[p]))
    relation_names = _relations(relations, sources)
    for p, relation in enumerate(relation_names):
        if relation != "any" and (query_groups is None or groups[p] is None):
            missing = "query_groups" if query_groups is None else f"key_groups[{p}]"
            raise ValueError(f"{missing}: expected an integer tensor, since relations[{p}] is {relation!r}")

    dropout_p = _probability(dropout_p)
    largest = LARGEST_FP64 if dtype == torch.float64 else LARGEST_FP32  # of the dtype in which scores are computed
    return AttentionInputs(
        query=query,
        keys=keys,
        values=values,
        gates=gates,
        key_masks=masks,
        query_groups=query_groups,
        key_groups=groups,
        relations=relation_names,
        causal=_causal(causal, queries, lengths),
        normalization=_choice("normalization", normalization, NORMALIZATIONS),
        softmax_scale=head_dim**-0.5 if softmax_scale is None else _number("softmax_scale", softmax_scale, largest),
        dropout_p=dropout_p,
        seed=_seed(seed, device) if dropout_p > 0 else None,
    )


def check_fusion(
    descriptors: Tensor,
    alpha: Tensor | None,
    pair_weight: Tensor | None,
    pair_bias: Tensor | None,
    present: Tensor | None,
) -> None:
    """Validate the arguments of `adaptive_fusion`.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape or device, or neither or both of alpha and the gate.
    """
    _check_tensor("descriptors", descriptors, FLOATING)
    if descriptors.dim() < 2:
        raise ValueError(f"descriptors: expected (..., M, d), got {_shape(descriptors)}")
    *batch, modalities, width = descriptors.shape
    if not 1 <= modalities <= MAX_MODALITIES:
        raise ValueError(f"descriptors: expected 1 to {MAX_MODALITIES} modalities in (..., M, d), got {modalities}")
    if width == 0:
        raise ValueError(f"descriptors: expected a width d of at least 1, got {_shape(descriptors)}")
    if (alpha is None) == (pair_weight is None) or (pair_weight is None) != (pair_bias is None):
        given = [
            name
            for name, value in (("alpha", alpha), ("pair_weight", pair_weight), ("pair_bias", pair_bias))
            if value is not None
        ]
        raise ValueError(
            "alpha: expected either alpha, or both pair_weight and pair_bias; "
            f"got {' and '.join(given) or 'none of them'}"
        )
    if alpha is not None:
        _check_like("alpha", alpha, descriptors.dtype, descriptors.device)
        scalar, elementwise = (*batch, modalities, modalities), (*batch, modalities, modalities, width)
        if alpha.shape not in (scalar, elementwise):
            raise ValueError(f"alpha: expected {scalar} or {elementwise}, got {_shape(alpha)}")
    if pair_weight is not None and pair_bias is not None:
        pairs = modalities * (modalities - 1)
        _check_tensor("pair_weight", pair_weight, FLOATING, descriptors.device)
        _check_shape("pair_weight", pair_weight, (pairs, 2, width))
        _check_tensor("pair_bias", pair_bias, FLOATING, descriptors.device)
        _check_shape("pair_bias", pair_bias, (pairs,))
    if present is not None:
        check_mask("present", present, (*batch, modalities), descriptors.device, "has this modality")


def check_interpolation(a: Tensor, b: Tensor, grad_b: Tensor, epsilon: float) -> None:
    """Validate the arguments of `interpolation_coefficients`: three tensors `(..., d)` alike, a finite epsilon."""
    _check_tensor("a", a, FLOATING)
    if a.dim() < 1 or a.shape[-1] == 0:
        raise ValueError(f"a: expected (..., d) with d of at least 1, got {_shape(a)}")
    for name, tensor in (("b", b), ("grad_b", grad_b)):
        _check_like(name, tensor, a.dtype, a.device)
        _check_shape(name, tensor, tuple(a.shape))
    _number("epsilon", epsilon, LARGEST_FP64 if a.dtype == torch.float64 else LARGEST_FP32)


def check_mask(name: str, mask: Tensor, shape: tuple[int, ...], device: torch.device, meaning: str) -> None:
    """Reject a mask that is not bool of `shape` on `device`: an integer or additive mask would change its meaning."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"{name}: expected a torch.bool tensor (True = {meaning}), got {_describe(mask)}")
    _check_dense(name, mask)
    _check_device(name, mask, device)
    _check_shape(name, mask, shape)


def check_flag(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {_describe(value)}")


def _check_tensor(
    name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], device: torch.device | None = None
) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype not in dtypes:
        raise TypeError(f"{name}: expected a tensor of {_names(dtypes)}, got {_describe(tensor)}")
    _check_dense(name, tensor)
    if device is not None:
        _check_device(name, tensor, device)


def _check_like(name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    """Of the first argument's dtype and device."""
    if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
        raise TypeError(f"{name}: expected a tensor of {dtype} as the first argument, got {_describe(tensor)}")
    _check_dense(name, tensor)
    _check_device(name, tensor, device)


def _check_dense(name: str, tensor: Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise TypeError(f"{name}: expected a dense tensor, got {'a nested one' if tensor.is_nested else tensor.layout}")


def _check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name}: expected device {device}, got {tensor.device}")


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected {shape}, got {_shape(tensor)}")


def _sequence(name: str, entries: Sequence, length: int | None = None) -> tuple:
    if not isinstance(entries, _SEQUENCES) or isinstance(entries, Tensor):
        raise TypeError(f"{name}: expected a list or tuple with one entry per source, got {_describe(entries)}")
    if length is not None and len(entries) != length:
        raise ValueError(f"{name}: expected {length} entries, one per source, got {len(entries)}")
    return tuple(entries)


def _relations(relations: Sequence[str] | None, sources: int) -> tuple[str, ...]:
    if relations is None:
        return ("any",) * sources
    if isinstance(relations, str):
        raise TypeError(f"relations: expected a list or tuple with one entry per source, got {relations!r}")
    names = _sequence("relations", relations, sources)
    for p, name in enumerate(names):
        _choice(f"relations[{p}]", name, RELATIONS)
    return names


def _causal(causal: bool | Sequence[bool], queries: int, lengths: list[int]) -> tuple[bool, ...]:
    flags = (causal,) * len(lengths) if isinstance(causal, bool) else _sequence("causal", causal, len(lengths))
    for p, flag in enumerate(flags):
        if not isinstance(flag, bool):
            raise TypeError(f"causal[{p}]: expected a bool, got {_describe(flag)}")
        if flag and lengths[p] != queries:
            raise ValueError(f"causal[{p}]: needs as many keys as queries, got {lengths[p]} keys, {queries} queries")
    return flags


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def _number(name: str, value: float, largest: float = LARGEST_FP64) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a float, got {_describe(value)}")
    if not abs(value) <= largest:
        got = value if isinstance(value, float) else f"an integer of {value.bit_length()} bits"
        raise ValueError(f"{name}: expected a finite number, at most {largest:.3g}, got {got}")
    return float(value)


def _probability(value: float) -> float:
    if not 0 <= _number("dropout_p", value) < 1:
        raise ValueError(f"dropout_p: expected a probability in [0, 1), got {value}")
    return float(value)


def _seed(seed: int | None, device: torch.device) -> Tensor:
    """A tensor, so that a drawn seed neither waits for a GPU nor breaks a trace."""
    if seed is None:
        return torch.randint(2**63 - 1, (), device=device)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: expected an int or None, got {_describe(seed)}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed: expected an int in [0, 2**63), got {seed}")
    return torch.full((), seed, dtype=torch.int64, device=device)


def _can_read(tensor: Tensor) -> bool:
    traced = torch.compiler.is_compiling() or isinstance(tensor, FakeTensor) or is_batchedtensor(tensor)
    return tensor.device.type == "cpu" and not traced


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return " | ".join(str(dtype) for dtype in dtypes)


def _describe(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} {value!r}"
    return f"{value.dtype}, nested" if value.is_nested else f"{value.dtype} {_shape(value)}"
