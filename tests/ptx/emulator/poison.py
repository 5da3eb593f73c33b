"""Tensors without a value: outputs that a kernel has to store completely before anything may read them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

INITIALISED = "_ptx_initialised"  # attribute: which bytes have been stored, a uint8 tensor over the tensor's elements


def poisoned(shape: Sequence[int] | int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor whose bytes count as never stored: NaN for floats, 0xA5 for the rest.

    A kernel that reads such a byte, or that leaves one unwritten, gets an `uninitialised_read` finding.
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    tensor = torch.empty(shape, dtype=dtype)
    if tensor.numel():
        if dtype.is_floating_point or dtype.is_complex:
            tensor.fill_(float("nan"))
        else:
            tensor.view(torch.uint8).fill_(0xA5 if dtype != torch.bool else 1)
    setattr(tensor, INITIALISED, torch.zeros(tensor.numel() * tensor.element_size(), dtype=torch.uint8))
    return tensor
