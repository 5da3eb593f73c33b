"""Argument checks that the layers share."""

from numbers import Integral

import torch
from torch import Tensor


def check_size(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__} {value!r}")
    if int(value) < 1:
        raise ValueError(f"{name}: expected a positive number, got {value}")


def check_floating(name: str, value: object) -> None:
    """Dense and floating; the ops check the rest, but the projections come before them."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: expected a floating tensor, got {got}")
    if value.is_nested or value.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {'a nested one' if value.is_nested else value.layout}")
