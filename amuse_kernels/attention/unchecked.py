"""Packed attention for inference on the CPU, whose kernels look at every argument themselves.

At an utterance's size the checks in Python take longer than the kernel. Here it runs first, and what it refuses goes
the usual way, to checks that name the argument.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from amuse_kernels.attention.inputs import ANY, AttentionInputs, spread_gates
from amuse_kernels.attention.ops import forward
from amuse_kernels.attention.varlen import as_batch, of_batch
from amuse_kernels.checks import can_read
from amuse_kernels.dispatch import native_module


def attend_unchecked(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    cu_seq_q: Tensor,
    cu_seq_k: Sequence[Tensor],
    max_q: int,
    max_k: Sequence[int],
    gates: Tensor | None,
) -> Tensor | None:
    """`p2c_attention_varlen` without options; None where this is no call for it, or the kernel refused an argument."""
    if torch.is_grad_enabled() or not isinstance(query, Tensor) or not can_read(query) or native_module() is None:
        return None
    if torch.is_autocast_enabled("cpu") or forward_ad._current_level >= 0:
        return None
    if not all(isinstance(each, list | tuple) for each in (keys, values, cu_seq_k, max_k)):
        return None
    if not all(type(longest) is int and longest < 2**31 for longest in (max_q, *max_k)):  # the kernel takes True for 1
        return None
    if any(getattr(each, "device", None) != query.device for each in (*keys, *values, cu_seq_q, *cu_seq_k)):
        return None
    sources = len(keys)
    try:
        if gates is not None:
            gates = spread_gates(gates, query, (cu_seq_q.shape[0] - 1, query.shape[1], sources))
        inputs = AttentionInputs(
            as_batch(query),
            [as_batch(key) for key in keys],
            [as_batch(value) for value in values],
            gates,
            key_masks=(None,) * sources,
            query_groups=None,
            key_groups=(None,) * sources,
            relations=(ANY,) * sources,
            causal=(False,) * sources,
            joint=False,
            softmax_scale=query.shape[-1] ** -0.5,
            dropout_p=0.0,
            seed=None,
            cu_seq_q=cu_seq_q,
            cu_seq_k=cu_seq_k,
            max_q=max_q,
            max_k=max_k,
        )
        return of_batch(forward(*inputs)[0])
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError):
        return None
