"""Fused multi-source attention and adaptive fusion kernels for multimodal models."""

from amuse_kernels import nn
from amuse_kernels.api import (
    adaptive_fusion,
    interpolation_coefficients,
    p2c_attention,
    p2c_attention_varlen,
    p2c_attention_weights,
)
from amuse_kernels.dispatch import BackendUnavailableError
from amuse_kernels.nn import Packed

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "Packed",
    "adaptive_fusion",
    "interpolation_coefficients",
    "nn",
    "p2c_attention",
    "p2c_attention_varlen",
    "p2c_attention_weights",
]
