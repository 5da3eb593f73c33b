"""The specification of every op in one place; each is next to the kernels that are tested against it."""

from amuse_kernels.attention.reference import p2c_attention, visible_pairs, weights_and_lse
from amuse_kernels.fusion.reference import adaptive_fusion
from amuse_kernels.interpolation.reference import interpolation_coefficients

__all__ = [
    "adaptive_fusion",
    "interpolation_coefficients",
    "p2c_attention",
    "visible_pairs",
    "weights_and_lse",
]
