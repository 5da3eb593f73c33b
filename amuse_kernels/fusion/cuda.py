"""adaptive_fusion by the CUDA C++ kernels; see `amuse_kernels.attention.cuda`."""

import torch
from torch import Tensor

from amuse_kernels.buffers import dense, rows_dense
from amuse_kernels.fusion.buffers import fusion_outputs
from amuse_kernels.fusion.native import fusion_sizes
from amuse_kernels.native import address, module, run


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
