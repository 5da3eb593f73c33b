"""Uninitialised outputs of adaptive_fusion."""

from torch import Tensor


def fusion_outputs(descriptors: Tensor, alpha: Tensor | None) -> tuple[Tensor, Tensor]:
    """The fused descriptors and the alpha used."""
    rows, modalities, _ = descriptors.shape
    alpha_shape = (rows, modalities, modalities) if alpha is None else alpha.shape
    return descriptors.new_empty(descriptors.shape), descriptors.new_empty(alpha_shape)
