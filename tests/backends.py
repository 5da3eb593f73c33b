"""Which backends the promises run on in this process: all that run on CPU tensors, or GPU kernels in their place."""

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch

from tests import on_gpu, triton_interpreter

KERNELS = {
    "attention": ("p2c_attention_forward", "p2c_attention_backward"),
    "fusion": ("adaptive_fusion_forward", "adaptive_fusion_backward"),
    "interpolation": ("interpolation_coefficients_forward", "interpolation_coefficients_backward"),
}
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


def _replace(backend: str, adapted: Callable[[Any], Any]) -> None:
    from amuse_kernels import dispatch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this replaces another kernel
        for module_name, names in KERNELS.items():
            module = importlib.import_module(f"amuse_kernels.{module_name}.{backend}")
            for name in names:
                _library.impl(name, adapted(getattr(module, name)), "CPU", allow_override=True)

    def unavailable_reason(name: str, device_type: str, dtype: torch.dtype = torch.float32) -> str | None:
        return None if name in (backend, "reference") else f"this process runs the {backend} kernels instead"

    dispatch.unavailable_reason = unavailable_reason
