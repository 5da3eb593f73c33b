"""The sources of a layer: their tokens as given, and the keys and values that layers make of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from amuse_kernels.checks import can_read
from amuse_kernels.nn.checks import check_floating
from amuse_kernels.nn.packed import Packed, as_packed

if TYPE_CHECKING:
    from amuse_kernels.nn.attention import PeripheralCentralAttention

# Tokens of one source in any form, or a pair of key tokens and value tokens.
Source = Tensor | Packed | tuple[Tensor | Packed, Tensor | Packed]


class ProjectedSource(NamedTuple):
    """Keys and values of one source: `(B, H, Lp, D)`; packed `(Tp, H, D)`, with offsets and maximum as in `Packed`."""

    key: Tensor
    value: Tensor
    cu_seq: Tensor | None = None
    max_len: int | None = None


class SourceTokens(NamedTuple):
    """Tokens of one source, batch first: `(B, Lp, width)`; packed `(Tp, width)`, with `cu_seq` and `max_len`."""

    key: Tensor
    value: Tensor
    cu_seq: Tensor | None
    max_len: int | None

    @classmethod
    def read(
        cls, name: str, source: Any, widths: tuple[int, int], *, batch_first: bool, batch: int | None = None
    ) -> "SourceTokens":
        """Tokens of `source`; `widths` of key and value tokens, `batch` None where any will do.

        Raises:
            TypeError, ValueError: naming the argument, what it was and what was expected.
        """
        is_pair = isinstance(source, tuple | list) and len(source) == 2 and not isinstance(source, Packed)
        parts = tuple(source) if is_pair else (source, source)
        key = as_packed(name, parts[0])
        value = key if parts[1] is parts[0] else as_packed(name, parts[1])
        if (key is None) != (value is None):
            raise TypeError(f"{name}: expected key and value tokens that are both packed, or neither")
        if key is not None and value is not None:
            same = key.cu_seq is value.cu_seq or not can_read(key.cu_seq) or torch.equal(key.cu_seq, value.cu_seq)
            if not same:
                raise ValueError(f"{name}: expected key and value tokens that are packed alike, their offsets differ")
            tokens = cls(key.values, value.values, key.cu_seq, key.max_len)
        else:
            for part in parts:
                check_floating(name, part)
                if part.dim() != 3:
                    raise ValueError(f"{name}: expected 3 dimensions, got {tuple(part.shape)}")
            first = parts[0] if batch_first else parts[0].transpose(0, 1)
            second = parts[1] if batch_first else parts[1].transpose(0, 1)
            tokens = cls(first, first if parts[1] is parts[0] else second, None, None)
        for role, part, width in zip(("key", "value"), tokens[:2], widths, strict=True):
            if tokens.cu_seq is not None:
                fits, expected = part.dim() == 2, f"packed (T, {width})"
            else:
                fits = part.dim() == 3 and batch in (None, part.shape[0])
                expected = f"({'B' if batch is None else batch}, L, {width})"
            if not fits or part.shape[-1] != width:
                raise ValueError(f"{name} ({role}): expected {expected}, got {tuple(part.shape)}")
        return tokens


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """`(B, L, H * D)` as `(B, H, L, D)`; packed `(T, H * D)` as `(T, H, D)`."""
    split = tokens.unflatten(-1, (heads, tokens.shape[-1] // heads))
    return split if tokens.dim() == 2 else split.transpose(1, 2)


def project_sources(
    layers: Sequence["PeripheralCentralAttention"], sources: Sequence[Source]
) -> list[list[ProjectedSource]]:
    """Keys and values of the same sources for several layers, in one matrix product per source.

    Args:
        layers: with the same `source_dims`; their heads may differ.
        sources: per source the argument of a layer's `forward`. A pair of key tokens and value tokens takes two
            products.

    Returns:
        Per layer the argument of its `forward` in place of `sources`. Differentiable in sources and weights.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what was expected.
    """
    if not layers:
        raise ValueError("layers: expected at least one")
    source_dims, batch_first = layers[0].source_dims, layers[0].batch_first
    for i, layer in enumerate(layers):
        if layer.source_dims != source_dims:
            raise ValueError(f"layers[{i}]: expected source_dims {source_dims}, got {layer.source_dims}")
        if layer.batch_first != batch_first:
            raise ValueError(f"layers[{i}]: expected batch_first={batch_first} as in layers[0]")
    if len(sources) != len(source_dims):
        raise ValueError(f"sources: expected {len(source_dims)} entries, got {len(sources)}")
    found: list[list[ProjectedSource]] = [[] for _ in layers]
    for p, source in enumerate(sources):
        tokens = SourceTokens.read(f"sources[{p}]", source, source_dims[p], batch_first=batch_first)
        key_linears: list[Any] = [layer.k_proj[p] for layer in layers]
        value_linears: list[Any] = [layer.v_proj[p] for layer in layers]
        if tokens.key is tokens.value:
            projected = _project(key_linears + value_linears, tokens.key)
        else:
            projected = [*_project(key_linears, tokens.key), *_project(value_linears, tokens.value)]
        keys, values = projected[: len(layers)], projected[len(layers) :]
        for layer, of_layer, key, value in zip(layers, found, keys, values, strict=True):
            heads = split_heads(key, layer.num_heads), split_heads(value, layer.num_heads)
            of_layer.append(ProjectedSource(*heads, tokens.cu_seq, tokens.max_len))
    return found


def _project(linears: Sequence[nn.Linear], tokens: Tensor) -> list[Tensor]:
    """The output of each linear map, computed in one product."""
    weight = torch.cat([linear.weight for linear in linears])
    no_bias = weight.new_zeros(weight.shape[0])
    biases: list[Tensor] = [no_bias[: x.out_features] if x.bias is None else x.bias for x in linears]
    bias = None if all(linear.bias is None for linear in linears) else torch.cat(biases)
    return list(nn.functional.linear(tokens, weight, bias).split([linear.out_features for linear in linears], -1))
