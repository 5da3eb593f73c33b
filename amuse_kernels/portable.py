"""The ops of `amuse_kernels.*.ops` by their references, for code that travels without this package's kernels.

Nothing is registered with PyTorch: several such copies, and the package, can be loaded together.
"""

from typing import Any

from torch import Tensor

from amuse_kernels.attention.inputs import AttentionInputs
from amuse_kernels.attention.reference import p2c_attention as reference_attention
from amuse_kernels.fusion.reference import adaptive_fusion as reference_fusion
from amuse_kernels.interpolation.reference import interpolation_coefficients as reference_interpolation


def p2c_attention(inputs: AttentionInputs, cuda_cpp: bool = False) -> tuple[Tensor, Tensor]:
    """As `amuse_kernels.attention.ops.p2c_attention`."""
    return reference_attention(inputs)


def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
    """As `amuse_kernels.attention.ops.forward`."""
    return reference_attention(AttentionInputs(*inputs))


def adaptive_fusion(
    descriptors: Tensor,
    alpha: Tensor | None,
    pair_weight: Tensor | None,
    pair_bias: Tensor | None,
    present: Tensor | None,
    cuda_cpp: bool = False,
) -> tuple[Tensor, Tensor]:
    """As `amuse_kernels.fusion.ops.adaptive_fusion`."""
    return reference_fusion(descriptors, alpha, pair_weight, pair_bias, present)


def interpolation_coefficients(a: Tensor, b: Tensor, grad_b: Tensor, epsilon: float, cuda_cpp: bool = False) -> Tensor:
    """As `amuse_kernels.interpolation.ops.interpolation_coefficients`."""
    return reference_interpolation(a, b, grad_b, epsilon)
