"""Which backends exist, which can run here, and why the others cannot. Every backend has every op."""

import importlib
import importlib.util
from collections.abc import Sequence
from types import ModuleType

import torch
from torch.autograd import forward_ad

try:
    _native: ModuleType | None = importlib.import_module("amuse_kernels._C")
except ImportError:
    _native = None

BACKENDS = ("triton", "cuda", "cpu", "reference")
# The tensors that a backend's kernels are for; "reference" is plain PyTorch and runs on any device.
DEVICE_TYPES = {"triton": "cuda", "cuda": "cuda", "cpu": "cpu"}

_has_cuda = _native is not None and _native.build_info()["cuda"]
_has_triton = importlib.util.find_spec("triton") is not None


class BackendUnavailableError(RuntimeError):
    """A backend was named explicitly and cannot run; the message says why."""


def native_module() -> ModuleType | None:
    """The compiled extension `amuse_kernels._C`, or None where the install could not build it."""
    return _native


def unavailable_reason(backend: str, device_type: str, dtype: torch.dtype = torch.float32) -> str | None:
    """Why `backend` cannot run on tensors of `device_type` and `dtype`; None if it can."""
    if backend == "reference":
        return None
    if device_type != DEVICE_TYPES[backend]:
        return f"it runs on {DEVICE_TYPES[backend]} tensors, these are on {device_type}"
    if device_type == "cuda" and dtype == torch.float64:
        return "it has no fp64"
    if backend == "triton":
        return None if _has_triton else "triton is not installed"
    if backend == "cuda" and torch.version.hip is not None:
        return "it is for NVIDIA GPUs, and this torch was built for AMD's; the Triton kernels serve both"
    if native_module() is None:
        return "the native library is not built; `python -m amuse_kernels.info` says why"
    if backend == "cuda" and not _has_cuda:
        return "the native library was built without CUDA; `python -m amuse_kernels.info` says why"
    return None


def missing_gpu() -> str | None:
    """Why the CUDA runtime in the native library has no GPU, in its own words; None if it has or is not built in."""
    error = _native.cuda_info()["error"] if _native is not None and _has_cuda else ""
    return error or None


def has_tangent(*tensors: torch.Tensor | None) -> bool:
    """Whether one of them is a dual number, with a tangent of forward-mode automatic differentiation."""
    if forward_ad._current_level < 0:  # almost always
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def choose_backend(
    op: str, tensor: torch.Tensor, requested: str | None, differentiable: Sequence[torch.Tensor | None] = ()
) -> str:
    """The backend that runs `op` on tensors like `tensor`: the one requested, or the best that can.

    Args:
        op: its name, for errors.
        tensor: its first argument.
        requested: the backend that the caller named.
        differentiable: the inputs with derivatives. Where one is a dual number, only the reference can run.

    Raises:
        ValueError: `requested` is no backend's name.
        BackendUnavailableError: the requested backend cannot run here. There is no fallback from an explicit choice.
    """
    device, dtype = tensor.device.type, tensor.dtype
    is_dual = has_tangent(*differentiable)
    if requested is None:
        if is_dual:
            return "reference"
        return next(name for name in BACKENDS if unavailable_reason(name, device, dtype) is None)
    if requested not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)} or None, got {requested!r}")
    reason = unavailable_reason(requested, device, dtype)
    if reason is None and is_dual and requested != "reference":
        reason = "it has no forward-mode derivatives (jvp, jacfwd, dual numbers); 'reference' has"
    if reason is not None:
        gpu_error = missing_gpu() if requested == "cuda" and device != "cuda" else None
        if gpu_error is not None:
            reason += f", and this machine has no usable GPU: {gpu_error}"
        raise BackendUnavailableError(f"backend={requested!r} cannot run {op}: {reason}")
    return requested
