"""p2c_attention by Triton: outputs, arguments and tile sizes of the launches.

`forward_launch`, `backward_launches` and nothing else decide what is launched; `p2c_attention_forward` and
`p2c_attention_backward` run it.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from amuse_kernels.buffers import attention_outputs, grad_like, int64, rows_dense
from amuse_kernels.checks import RELATIONS
from amuse_kernels.dropout import drop_threshold
from amuse_kernels.triton.attention_backward import attention_backward_keys, attention_backward_queries
from amuse_kernels.triton.attention_config import Need, choose_tile
from amuse_kernels.triton.attention_forward import attention_forward
from amuse_kernels.triton.launch import Launch, architecture, pack

_LOG2_E = 1.4426950408889634


class Attention(NamedTuple):
    """The arguments that forward and backward share, as the ops take them (see `ops.py`)."""

    query: Tensor
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    gates: Tensor | None  # (B, H, P) fp32
    key_masks: Sequence[Tensor | None]
    query_groups: Tensor | None
    key_groups: Sequence[Tensor | None]
    relations: Sequence[int]  # 0 any, 1 same, 2 different
    causal: Sequence[bool]
    joint: bool
    softmax_scale: float
    dropout_p: float
    seed: Tensor | None


def p2c_attention_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """See `cpu.p2c_attention_forward`."""
    attention = _in_place(Attention(*arguments))
    out, lse = attention_outputs(attention.query, len(attention.keys), attention.joint)
    device = attention.query.device
    forward_launch(attention, out, lse, architecture(device)).run(device)
    return out, lse


def p2c_attention_backward(
    grad_out: Tensor, grad_lse: Tensor | None, out: Tensor | None, lse: Tensor, *arguments: Any
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """See `cpu.p2c_attention_backward`; `out` is not used."""
    attention = _in_place(Attention(*arguments))
    query, gates = attention.query, attention.gates
    grads = Gradients(
        grad_like(query),
        [grad_like(key) for key in attention.keys],
        [grad_like(value) for value in attention.values],
        None if gates is None else lse.new_empty(gates.shape),
    )
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    launches = backward_launches(
        attention, grads, rows_dense(grad_out), lse.contiguous(), grad_lse, architecture(query.device)
    )
    for launch in launches:
        launch.run(query.device)
    return grads.query, grads.keys, grads.values, lse.new_empty(0) if grads.gates is None else grads.gates


class Gradients(NamedTuple):
    query: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    gates: Tensor | None  # (B, H, P) contiguous


def forward_launch(attention: Attention, out: Tensor, lse: Tensor, arch: int) -> Launch:
    """The one launch of the forward pass; tensors have a contiguous last dim, lse is contiguous."""
    query = attention.query
    tile = choose_tile(_need("forward", attention, arch))
    unit = _unit([query, out, *attention.keys, *attention.values])
    shared = _shared(attention, unit)
    scale = attention.softmax_scale
    args = (
        *(out, lse, *shared.tensors, _strides(out, unit), *shared.strides, *shared.sizes),
        *(abs(scale) * _LOG2_E if scale else 1.0, *shared.dropout),
    )
    constexprs = shared.constexprs | {
        "SIGN": (scale > 0) - (scale < 0),
        "BLOCK_P": triton.next_power_of_2(len(attention.keys)),
        "BLOCK_Q": tile.queries,
        "BLOCK_K": tile.keys,
    }
    grid = query.shape[0] * query.shape[1] * triton.cdiv(query.shape[2], tile.queries)
    return Launch(attention_forward, grid, args, constexprs, tile.num_warps, tile.num_stages)


def backward_launches(
    attention: Attention, grads: Gradients, grad_out: Tensor, lse: Tensor, grad_lse: Tensor | None, arch: int
) -> list[Launch]:
    """One launch where one tile holds all queries, else one for queries and one for keys and gates."""
    query, keys = attention.query, attention.keys
    batch, heads, queries, _ = query.shape
    tile = choose_tile(_need("backward", attention, arch))
    key_tile = choose_tile(_need("backward keys", attention, arch))
    single = queries <= tile.queries
    unit = _unit([query, grad_out, grads.query, *keys, *attention.values, *grads.keys, *grads.values])
    shared = _shared(attention, unit)
    scale = attention.softmax_scale
    scalars = (scale, scale * _LOG2_E, *shared.dropout)
    shifts = deltas = gate_rows = None
    if not single:
        sources = len(keys)
        rows = (batch, heads, 1 if attention.joint else sources, queries)
        shifts, deltas = lse.new_empty(rows), lse.new_empty(rows)  # both aligned, unlike halves of one
        gate_rows = lse.new_empty((batch, heads, sources, queries)) if attention.joint else deltas
    grad_keys, grad_values = tuple(grads.keys), tuple(grads.values)
    key_strides = tuple(_strides(k, unit) for k in grad_keys), tuple(_strides(v, unit) for v in grad_values)
    whole = (grad_keys, grad_values, grads.gates) if single else (None, None, None)
    by_queries = Launch(
        attention_backward_queries,
        batch * heads * (1 if single else triton.cdiv(queries, tile.queries)),
        (
            *(grads.query, *whole, shifts, deltas, gate_rows, grad_out, lse, grad_lse, *shared.tensors),
            *(_strides(grads.query, unit), *(key_strides if single else (None, None)), _strides(grad_out, unit)),
            *(*shared.strides, *shared.sizes, *scalars),
        ),
        shared.constexprs
        | {"ALL": single, "BLOCK_P": triton.next_power_of_2(len(keys))}
        | {"BLOCK_Q": tile.queries, "BLOCK_K": tile.keys},
        tile.num_warps,
        tile.num_stages,
    )
    if single:
        return [by_queries]
    tiles = sum(max(1, triton.cdiv(key.shape[2], key_tile.keys)) for key in keys)
    by_keys = Launch(
        attention_backward_keys,
        batch * heads * tiles,
        (
            *(grad_keys, grad_values, grads.gates, shifts, deltas, gate_rows, grad_out, grad_lse, *shared.tensors),
            *(*key_strides, _strides(grad_out, unit), *shared.strides, *shared.sizes, *scalars, tiles),
        ),
        shared.constexprs | {"BLOCK_Q": key_tile.queries, "BLOCK_K": key_tile.keys},
        key_tile.num_warps,
        key_tile.num_stages,
    )
    return [by_queries, by_keys]


def _need(kernel: str, attention: Attention, arch: int) -> Need:
    options = "plain"
    if attention.gates is not None or any(mask is not None for mask in attention.key_masks):
        options = "masks"
    if any(attention.relations) or any(attention.causal) or attention.dropout_p > 0:
        options = "all options"
    query = attention.query
    return Need(kernel, arch, query.element_size(), options, query.shape[3], query.shape[2])


class _Shared(NamedTuple):
    """Arguments of every kernel, in the order of their signatures."""

    tensors: tuple[Any, ...]
    strides: tuple[Any, ...]
    sizes: tuple[Any, ...]
    dropout: tuple[float, int]
    constexprs: dict[str, Any]


def _shared(attention: Attention, unit: int) -> _Shared:
    query, keys, values, gates, relations = attention[0], *attention[1:4], attention.relations
    masks = attention.key_masks
    a_mask = next((mask for mask in masks if mask is not None), None)  # stands in for those that are not there
    grouped = any(relations)
    groups = attention.key_groups if grouped else ()
    a_group = next((group for group, relation in zip(groups, relations, strict=False) if relation), None)
    tensors = (
        query,
        tuple(keys),
        tuple(values),
        gates,
        None if a_mask is None else tuple((a_mask if m is None else m).view(torch.uint8) for m in masks),
        attention.query_groups if grouped else None,
        tuple(a_group if g is None else g for g in groups) if grouped else None,
        attention.seed if attention.dropout_p > 0 else None,
    )
    strides = (
        _strides(query, unit),
        tuple(_strides(key, unit) for key in keys),
        tuple(_strides(value, unit) for value in values),
        None if gates is None else pack(gates.stride()),
        None if a_mask is None else pack([0 if mask is None else mask.stride(0) for mask in masks]),
    )
    sizes = (
        pack([key.shape[2] for key in keys]),
        query.shape[1],
        query.shape[2],
        _bits(mask is not None for mask in masks),
        _bits(relations) if grouped else None,
        _bits(RELATIONS[relation] == "different" for relation in relations),
        _bits(attention.causal) if any(attention.causal) else None,
    )
    width = query.shape[3]
    constexprs = {
        "JOINT": attention.joint,
        # what PyTorch's own products of fp32 matrices have; its older switches set this one too
        "PRECISION": "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee",
        "UNIT": unit,
        "D": width,
        "BLOCK_D": max(16, triton.next_power_of_2(width)),
    }
    return _Shared(
        tensors, strides, sizes, (1 / (1 - attention.dropout_p), drop_threshold(attention.dropout_p)), constexprs
    )


def _in_place(attention: Attention) -> Attention:
    """With tensors that kernels can read: a contiguous last dim, groups int64 and contiguous."""
    groups = attention.query_groups, attention.key_groups
    if any(attention.relations):
        groups = int64(groups[0]), [int64(group) for group in groups[1]]
    return attention._replace(
        query=rows_dense(attention.query),
        keys=[rows_dense(key) for key in attention.keys],
        values=[rows_dense(value) for value in attention.values],
        key_masks=[None if mask is None else rows_dense(mask) for mask in attention.key_masks],
        query_groups=groups[0],
        key_groups=groups[1],
    )


def _unit(tensors: list[Tensor]) -> int:
    """Elements in 16 bytes if every row of every tensor starts at a multiple of 16 bytes, else 1."""
    unit = 16 // tensors[0].element_size()
    for tensor in tensors:
        s_b, s_h, s_l, _ = tensor.stride()
        if (s_b | s_h | s_l) % unit or tensor.data_ptr() % 16:
            return 1
    return unit


def _strides(tensor: Tensor, unit: int) -> tuple[int, ...]:
    s_b, s_h, s_l, _ = tensor.stride()
    # inside of one (batch, head) slice the kernels count in 32 bits
    if tensor.shape[2] * s_l >= 2**31:
        raise ValueError(
            f"backend='triton': expected the rows of one (batch, head) slice within 2^31 elements, got shape "
            f"{tuple(tensor.shape)} with strides {tensor.stride()}"
        )
    return pack((s_b // unit, s_h // unit, s_l // unit))


def _bits(flags: Iterable[Any]) -> int:
    return sum(1 << i for i, flag in enumerate(flags) if flag)
