"""p2c_attention by the C++ CPU kernels; outputs are allocated here."""

from collections.abc import Sequence

import torch
from torch import Tensor

from amuse_kernels.attention.buffers import attention_outputs
from amuse_kernels.attention.native import attention_inputs
from amuse_kernels.buffers import grad_like, rows_dense
from amuse_kernels.native import module


def p2c_attention_forward(
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
) -> tuple[Tensor, Tensor]:
    """gates `(B, H, P)` in the accumulation dtype; relations 0 any, 1 same, 2 different; see `p2c_attention`."""
    out, lse = attention_outputs(query, len(keys), joint)
    inputs = attention_inputs(
        *(query, keys, values, gates, key_masks, query_groups, key_groups),
        *(relations, causal, joint, softmax_scale, dropout_p),
        seed=0 if seed is None else int(seed),
        num_threads=torch.get_num_threads(),
    )
    module().p2c_attention_forward(inputs, out, lse)
    return out, lse


def p2c_attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor | None,
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
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """Gradients of query, keys, values and gates (empty for None); `out` is needed for joint only."""
    inputs = attention_inputs(
        *(query, keys, values, gates, key_masks, query_groups, key_groups),
        *(relations, causal, joint, softmax_scale, dropout_p),
        seed=0 if seed is None else int(seed),
        num_threads=torch.get_num_threads(),
    )
    grad_query, grad_keys, grad_values = grad_like(query), [*map(grad_like, keys)], [*map(grad_like, values)]
    grad_gates = lse.new_empty(0 if gates is None else gates.shape)
    module().p2c_attention_backward(
        *(inputs, rows_dense(grad_out), out, lse.contiguous(), None if grad_lse is None else grad_lse.contiguous()),
        *(grad_query, grad_keys, grad_values, None if gates is None else grad_gates),
    )
    return grad_query, grad_keys, grad_values, grad_gates
