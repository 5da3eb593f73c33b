"""Calls of the C++ CPU kernels; outputs are allocated here."""

from collections.abc import Sequence

import torch
from torch import Tensor

from amuse_kernels.buffers import attention_outputs, dense, fusion_outputs, grad_like, rows_dense
from amuse_kernels.native import address, attention_inputs, fusion_sizes, interpolation_sizes, module


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


def adaptive_fusion_forward(
    descriptors: Tensor,
    alpha: Tensor | None,
    pair_weight: Tensor | None,
    pair_bias: Tensor | None,
    present: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """descriptors `(N, M, d)`; see `amuse_kernels.adaptive_fusion`."""
    descriptors, alpha, pair_weight, pair_bias, present = dense(descriptors, alpha, pair_weight, pair_bias, present)
    fused, alpha_out = fusion_outputs(descriptors, alpha)
    module().adaptive_fusion_forward(
        *map(address, (descriptors, alpha, pair_weight, pair_bias, present, fused, alpha_out)),
        *fusion_sizes(descriptors, alpha),
        torch.get_num_threads(),
    )
    return fused, alpha_out


def adaptive_fusion_backward(
    grad_fused: Tensor,
    grad_alpha: Tensor | None,
    descriptors: Tensor,
    alpha: Tensor | None,
    pair_weight: Tensor | None,
    pair_bias: Tensor | None,
    present: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of descriptors, alpha, pair_weight and pair_bias; empty for those that are None."""
    descriptors, alpha, pair_weight, pair_bias, present = dense(descriptors, alpha, pair_weight, pair_bias, present)
    grad_fused, grad_alpha = dense(grad_fused, grad_alpha)
    inputs = (descriptors, alpha, pair_weight, pair_bias)
    grads = [descriptors.new_empty(0) if t is None else t.new_empty(t.shape) for t in inputs]
    module().adaptive_fusion_backward(
        *map(address, (grad_fused, grad_alpha, *inputs, present, *grads)),
        *fusion_sizes(descriptors, alpha),
        torch.get_num_threads(),
    )
    return grads[0], grads[1], grads[2], grads[3]


def interpolation_coefficients_forward(a: Tensor, b: Tensor, grad_b: Tensor, epsilon: float) -> Tensor:
    """a, b, grad_b `(N, d)`; see `amuse_kernels.interpolation_coefficients`."""
    a, b, grad_b = dense(a, b, grad_b)
    out = a.new_empty(a.shape)
    module().interpolation_coefficients_forward(
        *map(address, (a, b, grad_b, out)), *interpolation_sizes(a, epsilon), torch.get_num_threads()
    )
    return out


def interpolation_coefficients_backward(
    grad: Tensor, a: Tensor, b: Tensor, grad_b: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and grad_b."""
    grad, a, b, grad_b = dense(grad, a, b, grad_b)
    grads = (a.new_empty(a.shape), a.new_empty(a.shape), a.new_empty(a.shape))
    module().interpolation_coefficients_backward(
        *map(address, (grad, a, b, grad_b, *grads)), *interpolation_sizes(a, epsilon), torch.get_num_threads()
    )
    return grads
