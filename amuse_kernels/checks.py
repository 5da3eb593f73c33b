"""Argument checks that the public ops share: every error names the argument, what it was and what was expected.

They look at shapes, dtypes, devices and Python values; at the contents of a tensor only where that neither waits for
a GPU nor breaks a trace.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch._subclasses.fake_tensor import FakeTensor

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
LARGEST_FP32, LARGEST_FP64 = torch.finfo(torch.float32).max, torch.finfo(torch.float64).max
_SEQUENCES = (list, tuple, Sequence)  # the common ones first: a look at an abstract class takes longer


def check_mask(name: str, mask: Tensor, shape: tuple[int, ...], device: torch.device, meaning: str) -> None:
    """Reject a mask that is not bool of `shape` on `device`: an integer or additive mask would change its meaning."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"{name}: expected a torch.bool tensor (True = {meaning}), got {describe(mask)}")
    check_dense(name, mask)
    check_device(name, mask, device)
    check_shape(name, mask, shape)


def check_flag(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {describe(value)}")


def check_tensor(
    name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], device: torch.device | None = None
) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype not in dtypes:
        raise TypeError(f"{name}: expected a tensor of {_names(dtypes)}, got {describe(tensor)}")
    check_dense(name, tensor)
    if device is not None:
        check_device(name, tensor, device)


def check_like(name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    """Reject a tensor that has not the dtype and device of the first argument."""
    if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
        raise TypeError(f"{name}: expected a tensor of {dtype} as the first argument, got {describe(tensor)}")
    check_dense(name, tensor)
    check_device(name, tensor, device)


def check_dense(name: str, tensor: Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise TypeError(f"{name}: expected a dense tensor, got {'a nested one' if tensor.is_nested else tensor.layout}")


def check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name}: expected device {device}, got {tensor.device}")


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected {shape}, got {shape_of(tensor)}")


def sequence(name: str, entries: Sequence, length: int | None = None) -> tuple:
    if not isinstance(entries, _SEQUENCES) or isinstance(entries, Tensor):
        raise TypeError(f"{name}: expected a list or tuple with one entry per source, got {describe(entries)}")
    if length is not None and len(entries) != length:
        raise ValueError(f"{name}: expected {length} entries, one per source, got {len(entries)}")
    return tuple(entries)


def choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    return value


def number(name: str, value: float, largest: float = LARGEST_FP64) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a float, got {describe(value)}")
    if not abs(value) <= largest:
        got = value if isinstance(value, float) else f"an integer of {value.bit_length()} bits"
        raise ValueError(f"{name}: expected a finite number, at most {largest:.3g}, got {got}")
    return float(value)


def can_read(tensor: Tensor) -> bool:
    traced = torch.compiler.is_compiling() or isinstance(tensor, FakeTensor) or is_batchedtensor(tensor)
    return tensor.device.type == "cpu" and not traced


def shape_of(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return " | ".join(str(dtype) for dtype in dtypes)


def describe(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} {value!r}"
    return f"{value.dtype}, nested" if value.is_nested else f"{value.dtype} {shape_of(value)}"
