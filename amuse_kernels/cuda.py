"""Calls of the CUDA C++ kernels: the native module plans launches, which are queued on the current stream."""

from typing import Any

import torch
from torch import Tensor

from amuse_kernels.buffers import attention_outputs, dense, fusion_outputs, grad_like, rows_dense
from amuse_kernels.native import address, attention_inputs, fusion_sizes, interpolation_sizes, module


def p2c_attention_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """See `cpu.p2c_attention_forward`."""
    query, keys, joint, seed = arguments[0], arguments[1], arguments[9], arguments[12]
    out, lse = attention_outputs(query, len(keys), joint)
    inputs = attention_inputs(*arguments[:12])
    run(module().cuda_p2c_attention_forward(inputs, out, lse, address(seed), _allow_tf32()), query.device)
    return out, lse


def p2c_attention_backward(
    grad_out: Tensor, grad_lse: Tensor | None, out: Tensor | None, lse: Tensor, *arguments: Any
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """See `cpu.p2c_attention_backward`."""
    (query, keys, values, gates), seed = arguments[:4], arguments[12]
    grad_query, grad_keys, grad_values = grad_like(query), [*map(grad_like, keys)], [*map(grad_like, values)]
    grad_gates = lse.new_empty(0 if gates is None else gates.shape)
    grad_out = rows_dense(grad_out)  # copies are kept until the kernels are queued
    lse, grad_lse = dense(lse, grad_lse)
    inputs = attention_inputs(*arguments[:12])
    workspace = None

    def allocate(size: int) -> int:
        nonlocal workspace
        workspace = query.new_empty(size, dtype=torch.uint8)
        return address(workspace)

    plan = module().cuda_p2c_attention_backward(
        *(inputs, grad_out, out, lse, grad_lse),
        *(grad_query, grad_keys, grad_values, None if gates is None else grad_gates),
        *(address(seed), _allow_tf32(), allocate),
    )
    run(plan, query.device)
    return grad_query, grad_keys, grad_values, grad_gates


def adaptive_fusion_forward(
    descriptors: Tensor,
    alpha: Tensor | None,
    pair_weight: Tensor | None,
    pair_bias: Tensor | None,
    present: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """descriptors `(N, M, d)`; see `amuse_kernels.adaptive_fusion`."""
    descriptors = rows_dense(descriptors)
    alpha, pair_weight, pair_bias, present = dense(alpha, pair_weight, pair_bias, present)
    fused, alpha_out = fusion_outputs(descriptors, alpha)
    tensors = (descriptors, alpha, pair_weight, pair_bias, present, fused, alpha_out)
    plan = module().cuda_adaptive_fusion_forward(*map(address, tensors), *fusion_sizes(descriptors, alpha))
    run(plan, descriptors.device)
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
    descriptors = rows_dense(descriptors)
    alpha, pair_weight, pair_bias, present = dense(alpha, pair_weight, pair_bias, present)
    grad_fused, grad_alpha = dense(grad_fused, grad_alpha)
    inputs = (descriptors, alpha, pair_weight, pair_bias)
    grads = [descriptors.new_empty(0) if t is None else t.new_empty(t.shape) for t in inputs]
    size = 0 if pair_weight is None else module().cuda_adaptive_fusion_workspace(*descriptors.shape)
    workspace = descriptors.new_empty(size, dtype=torch.uint8)
    plan = module().cuda_adaptive_fusion_backward(
        *map(address, (grad_fused, grad_alpha, *inputs, present, *grads)),
        *fusion_sizes(descriptors, alpha),
        address(workspace),
    )
    run(plan, descriptors.device)
    return grads[0], grads[1], grads[2], grads[3]


def interpolation_coefficients_forward(a: Tensor, b: Tensor, grad_b: Tensor, epsilon: float) -> Tensor:
    """a, b, grad_b `(N, d)`; see `amuse_kernels.interpolation_coefficients`."""
    a, b, grad_b = dense(a, b, grad_b)
    out = a.new_empty(a.shape)
    tensors = (a, b, grad_b, out)
    plan = module().cuda_interpolation_coefficients_forward(*map(address, tensors), *interpolation_sizes(a, epsilon))
    run(plan, a.device)
    return out


def interpolation_coefficients_backward(
    grad: Tensor, a: Tensor, b: Tensor, grad_b: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and grad_b."""
    grad, a, b, grad_b = dense(grad, a, b, grad_b)
    grads = (a.new_empty(a.shape), a.new_empty(a.shape), a.new_empty(a.shape))
    tensors = (grad, a, b, grad_b, *grads)
    plan = module().cuda_interpolation_coefficients_backward(*map(address, tensors), *interpolation_sizes(a, epsilon))
    run(plan, a.device)
    return grads


def run(plan: Any, device: torch.device) -> None:
    """Queue a plan on the current stream of `device`; RuntimeError with CUDA's name of the error."""
    plan.run(device.index, torch.cuda.current_stream(device).cuda_stream)


def _allow_tf32() -> bool:
    return torch.backends.cuda.matmul.allow_tf32
