"""Calls of the C++ CPU kernels: pointers and sizes of tensors, outputs allocated here."""

import torch
from torch import Tensor

from amuse_kernels.dispatch import native_module
from amuse_kernels.reference import accumulation_dtype


def adaptive_fusion_forward(descriptors, alpha, pair_weight, pair_bias, present):
    raise RuntimeError


adaptive_fusion_backward = interpolation_coefficients_forward = interpolation_coefficients_backward = adaptive_fusion_forward
