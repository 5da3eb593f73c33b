"""Which backends the promises run on in this process: all that run on CPU tensors, or GPU kernels in their place."""

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch

from tests import on_gpu, triton_interpreter

PACKAGES = ("attention", "fusion", "interpolation")
INTERPRETED = triton_interpreter.requested()
GPU_KERNELS = INTERPRETED or on_gpu.requested() is not None
_library = torch.library.Library("amuse_kernels", "IMPL")


def runnable() -> list[str]:
    """The backends that can run on CPU tensors here."""
    from amuse_kernels.dispatch import BACKENDS, unavailable_reason

    if GPU_KERNELS:
        return ["triton" if INTERPRETED else str(on_gpu.requested())]
    return [name for name in BACKENDS if unavailable_reason(name, "cpu") is None]


def install() -> None:
    """Puts GPU kernels in the place of the C++ kernels where this process is to test them."""
    if INTERPRETED:
        triton_interpreter.prepare()
        _replace("triton", lambda kernel: kernel)
    elif GPU_KERNELS:
        _replace(str(on_gpu.requested()), on_gpu.carried)


def kernels(backend: str) -> dict[str, Callable[..., Any]]:
    """A backend's implementations by the name of the op, called with what the op is called with."""
    found: dict[str, Callable[..., Any]] = {}
    for package in PACKAGES:
        ops = importlib.import_module(f"amuse_kernels.{package}.ops")
        found |= ops.kernels(importlib.import_module(f"amuse_kernels.{package}.{backend}"))
    return found


def _replace(backend: str, adapted: Callable[[Any], Any]) -> None:
    from amuse_kernels import dispatch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this replaces another kernel
        for name, kernel in kernels(backend).items():
            _library.impl(name, adapted(kernel), "CPU", allow_override=True)

    def unavailable_reason(name: str, device_type: str, dtype: torch.dtype = torch.float32) -> str | None:
        return None if name in (backend, "reference") else f"this process runs the {backend} kernels instead"

    dispatch.unavailable_reason = unavailable_reason
