"""Launches of the attention kernels: arguments, tile sizes, outputs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amuse_kernels.cpu import _dense, _int64, _rows_dense  # TODO
from amuse_kernels.dropout import drop_threshold
from amuse_kernels.triton.attention_forward import attention_forward
from amuse_kernels.triton.launch import Launch, architecture, pack

_LOG2_E = 1.4426950408889634
_SAME, _DIFFERENT = 1, 2


def forward_launch(
    out: Tensor,
    lse: Tensor,
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    gates: Tensor | None,
    key_masks: Sequence[Tensor | None],
    query_groups: Tensor | None,
    key_groups: Sequence[Tensor | None],
    relations: Sequence[int],
    causal: Sequence[bool],
    joint: bool,
    softmax_scale: float,
    dropout_p: float,
    seed: Tensor | None,
    arch: int,
) -> Launch:
    batch, heads, queries, width = query.shape
    masks = [m if m is None or m.stride(-1) == 1 else m.contiguous() for m in key_masks]
    some_mask = next((m for m in masks if m is not None), None)
    related = any(relations)
    groups = [_int64(g) for g in key_groups] if related else []
    some_group = next((g for g in groups if g is not None), None)
    unit = _unit([query, out, *keys, *values])
    block_q, block_k, num_warps, num_stages = _forward_config(query, arch)
    args = (
        out,
        lse,
        query,
        tuple(keys),
        tuple(values),
        gates,
        None if some_mask is None else tuple((some_mask if m is None else m).view(torch.uint8) for m in masks),
        _int64(query_groups) if related else None,
        tuple(some_group if g is None else g for g in groups) if related else None,
        seed if dropout_p > 0 else None,
        _strides(out, unit),
        _strides(query, unit),
        tuple(_strides(k, unit) for k in keys),
        tuple(_strides(v, unit) for v in values),
        None if gates is None else pack(gates.stride()),
        None if some_mask is None else pack([0 if m is None else m.stride(0) for m in masks]),
        pack([k.shape[2] for k in keys]),
        heads,
        queries,
        _bits(m is not None for m in masks),
        _bits(relations) or None,
        _bits(r == _DIFFERENT for r in relations),
        _bits(causal) or None,
        abs(softmax_scale) * _LOG2_E if softmax_scale else 1.0,
        1 / (1 - dropout_p),
        drop_threshold(dropout_p),
    )
    constexprs: dict[str, Any] = {
        "SIGN": (softmax_scale > 0) - (softmax_scale < 0),
        "JOINT": joint,
        "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
        "UNIT": unit,
        "D": width,
        "BLOCK_D": max(16, _power_of_two(width)),
        "BLOCK_P": _power_of_two(len(keys)),
        "BLOCK_Q": block_q,
        "BLOCK_K": block_k,
    }
    tiles = -(-queries // block_q)
    return Launch(attention_forward, batch * heads * tiles, args, constexprs, num_warps, num_stages)


def p2c_attention_forward(query, keys, values, gates, *options):
    batch, heads, queries, width = query.shape
    joint = options[5]
    query, keys, values = _rows_dense(query), [*map(_rows_dense, keys)], [*map(_rows_dense, values)]
    out = query.new_empty((batch, queries, heads, width)).transpose(1, 2)
    lse = query.new_empty(
        (batch, heads, queries) if joint else (batch, heads, queries, len(keys)), dtype=torch.float32
    )
    forward_launch(out, lse, query, keys, values, gates, *options, architecture(query.device)).run(query.device)
    return out, lse


def _forward_config(query, arch):
    if query.device.type == "cpu":
        return 16, 16, 4, 2
    return 64, 64, 4, 2


def _unit(tensors):
    """Elements in 16 bytes where every row of every tensor starts at a multiple of 16 bytes, else 1."""
    unit = 16 // tensors[0].element_size()
    aligned = all(t.data_ptr() % 16 == 0 and all(s % unit == 0 for s in t.stride()[:3]) for t in tensors)
    return unit if aligned else 1


def _strides(t, unit):
    return pack([s // unit for s in t.stride()[:3]])


def _bits(flags):
    return sum(1 << i for i, f in enumerate(flags) if f)


def _power_of_two(n):
    return 1 << (n - 1).bit_length()
