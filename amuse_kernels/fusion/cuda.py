"""adaptive_fusion by the CUDA C++ kernels; see `amuse_kernels.attention.cuda`."""

from torch import Tensor

from amuse_kernels.buffers import dense, rows_dense
from amuse_kernels.fusion.buffers import fusion_outputs
from amuse_kernels.native import Workspace, module, run


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
    plan = module().cuda_adaptive_fusion_forward(descriptors, alpha, pair_weight, pair_bias, present, fused, alpha_out)
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
    workspace = Workspace(descriptors)
    plan = module().cuda_adaptive_fusion_backward(grad_fused, grad_alpha, *inputs, present, *grads, workspace.allocate)
    run(plan, descriptors.device)
    return grads[0], grads[1], grads[2], grads[3]
