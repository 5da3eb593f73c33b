"""Which backends exist, which can run an op here, and why the others cannot."""

import importlib
from types import ModuleType

import torch

try:
    _native: ModuleType | None = importlib.import_module("amuse_kernels._C")
except ImportError:
    _native = None

BACKENDS = ("triton", "cuda", "cpu", "reference")
OPS = ("p2c_attention", "adaptive_fusion", "interpolation_coefficients")

# Ops that a backend implements for tensors of a device type; "reference" is plain PyTorch and runs everywhere.
_IMPLEMENTED = {
    "triton": ("cuda", ()),
    "cuda": ("cuda", ()),
    "cpu": ("cpu", OPS),
}


class BackendUnavailableError(RuntimeError):
    """A backend was named explicitly and cannot run; the message says why."""


def native_module() -> ModuleType | None:
    """The compiled extension `amuse_kernels._C`, or None where the install could not build it."""
    return _native


def unavailable_reason(backend: str, op: str, device_type: str) -> str | None:
    """Why `backend` cannot run `op` on tensors of `device_type`; None if it can."""
    if backend == "reference":
        return None
    backend_device, ops = _IMPLEMENTED[backend]
    if op not in ops:
        return f"this version has no {backend} kernel for {op}"
    if device_type != backend_device:
        return f"it runs on {backend_device} tensors, these are on {device_type}"
    if native_module() is None:
        return "the native library is not built; `python -m amuse_kernels.info` says why"
    return None


def choose_backend(op: str, device: torch.device, requested: str | None) -> str:
    """The backend that runs `op`: the one requested, or the best that can.

    Raises:
        ValueError: `requested` is no backend's name.
        BackendUnavailableError: the requested backend cannot run here. There is no fallback from an explicit choice.
    """
    if requested is None:
        return next(name for name in BACKENDS if unavailable_reason(name, op, device.type) is None)
    if requested not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)} or None, got {requested!r}")
    reason = unavailable_reason(requested, op, device.type)
    if reason is not None:
        raise BackendUnavailableError(f"backend={requested!r} cannot run {op}: {reason}")
    return requested
