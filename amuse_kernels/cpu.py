"""Calls of the C++ CPU kernels: pointers and sizes of tensors, outputs allocated here."""

from types import ModuleType

import torch
from torch import Tensor

from amuse_kernels.dispatch import native_module

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # csrc/dtype.h
_SCALAR, _ELEMENTWISE, _GATE = 0, 1, 2  # AlphaKind in csrc/fusion.h


def adaptive_fusion_forward(
    descriptors: Tensor,
    alpha: Tensor | None,
    pair_weight: Tensor | None,
    pair_bias: Tensor | None,
    present: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """descriptors `(N, M, d)`; see `amuse_kernels.adaptive_fusion`."""
    descriptors, alpha, pair_weight, pair_bias, present = _dense(descriptors, alpha, pair_weight, pair_bias, present)
    rows, modalities, _ = descriptors.shape
    fused = descriptors.new_empty(descriptors.shape)
    alpha_out = descriptors.new_empty((rows, modalities, modalities) if alpha is None else alpha.shape)
    _module().adaptive_fusion_forward(
        *map(_pointer, (descriptors, alpha, pair_weight, pair_bias, present, fused, alpha_out)),
        *_fusion_sizes(descriptors, alpha),
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
    descriptors, alpha, pair_weight, pair_bias, present = _dense(descriptors, alpha, pair_weight, pair_bias, present)
    grad_fused, grad_alpha = _dense(grad_fused, grad_alpha)
    inputs = (descriptors, alpha, pair_weight, pair_bias)
    grads = tuple(descriptors.new_empty(0) if t is None else t.new_empty(t.shape) for t in inputs)
    _module().adaptive_fusion_backward(
        *map(_pointer, (grad_fused, grad_alpha, *inputs, present, *grads)), *_fusion_sizes(descriptors, alpha)
    )
    return grads


def interpolation_coefficients_forward(a: Tensor, b: Tensor, grad_b: Tensor, epsilon: float) -> Tensor:
    """a, b, grad_b `(N, d)`; see `amuse_kernels.interpolation_coefficients`."""
    a, b, grad_b = _dense(a, b, grad_b)
    out = a.new_empty(a.shape)
    _module().interpolation_coefficients_forward(*map(_pointer, (a, b, grad_b, out)), *_rows(a, epsilon))
    return out


def interpolation_coefficients_backward(
    grad: Tensor, a: Tensor, b: Tensor, grad_b: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and grad_b."""
    grad, a, b, grad_b = _dense(grad, a, b, grad_b)
    grads = (a.new_empty(a.shape), a.new_empty(a.shape), a.new_empty(a.shape))
    _module().interpolation_coefficients_backward(*map(_pointer, (grad, a, b, grad_b, *grads)), *_rows(a, epsilon))
    return grads


def _module() -> ModuleType:
    module = native_module()
    if module is None:
        raise RuntimeError("the native library is not built; `python -m amuse_kernels.info` says why")
    return module


def _dense(*tensors):
    return tuple(None if t is None else t.contiguous() for t in tensors)


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _fusion_sizes(descriptors: Tensor, alpha: Tensor | None) -> tuple[int, ...]:
    kind = _GATE if alpha is None else _SCALAR if alpha.dim() == 3 else _ELEMENTWISE
    rows, modalities, width = descriptors.shape
    strides = (descriptors.stride(0), descriptors.stride(1))
    return rows, modalities, width, *strides, _DTYPES[descriptors.dtype], kind, torch.get_num_threads()


def _rows(a: Tensor, epsilon: float) -> tuple[int, int, float, int, int]:
    rows, width = a.shape
    return rows, width, epsilon, _DTYPES[a.dtype], torch.get_num_threads()
