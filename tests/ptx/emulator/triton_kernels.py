"""Launches Triton kernels on CPU tensors: Triton compiles for a chip that is absent, the emulator runs the PTX."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from .launch import run
from .report import Report

Grid = int | Sequence[int] | Callable[[dict[str, Any]], Sequence[int]]


class _ChipWithoutDriver:
    """Answers all that Triton asks the active driver between a launch and a compiled kernel."""

    binary_ext = "cubin"
    launcher_cls = None

    def __init__(self, arch: int | str, target: Any) -> None:
        self.arch, self.target, self.utils = arch, target, self

    def get_device_properties(self, _device: int) -> dict[str, int]:
        return {
            "max_shared_mem": 232448,
            "multiprocessor_count": 132,
            "max_num_regs": 65536,
            "warpSize": 32,
            "sm_clock_rate": 1,
            "mem_clock_rate": 1,
            "mem_bus_width": 1,
        }

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int | str:
        return self.arch  # Triton keeps its compiled kernels by device: one device a chip

    def get_current_stream(self, _device: int | None = None) -> int:
        return 0

    def set_current_device(self, _device: int) -> None:
        pass

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def map_python_to_cpp_type(self, name: str) -> str:
        return name

    @staticmethod
    def is_active() -> bool:
        return True


@contextlib.contextmanager
def chip(arch: int) -> Iterator[None]:
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    before = getattr(driver, "_active", None)
    driver.set_active(_ChipWithoutDriver(arch, GPUTarget("cuda", arch, 32)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        driver._active = before


def _flat(value: Any, kind: Any) -> list[Any]:
    """The values that reach the kernel as parameters: constants do not, tuples arrive item by item."""
    if isinstance(kind, (tuple, list)):
        return [item for inner, inner_kind in zip(value, kind, strict=False) for item in _flat(inner, inner_kind)]
    return [] if kind == "constexpr" else [value]


def compile_triton(kernel: Any, *args: Any, arch: int = 80, **options: Any) -> tuple[Any, list[Any], dict[str, Any]]:
    """Compiles for `arch` with the specialisation that this launch would get on a GPU.

    Returns:
        Triton's compiled kernel, the arguments that its PTX takes, and all arguments by name.
    """
    if hasattr(kernel, "configs") or not hasattr(kernel, "warmup"):
        raise TypeError(
            "kernel: expected a function under triton.jit; of an autotuned or wrapped kernel pass its .fn "
            "and one configuration"
        )
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError(
            "TRITON_INTERPRET=1 replaces compilation: run emulator and interpreter tests in separate processes"
        )
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.10 changes the default
    with chip(arch):
        compiled = kernel.warmup(*args, grid=(1,), **options)
    named = dict(zip(kernel.arg_names, args, strict=False)) | {
        name: value for name, value in options.items() if name in kernel.arg_names
    }
    for parameter in kernel.params:
        if parameter.name not in named and parameter.has_default:
            named[parameter.name] = parameter.default
    taken = [item for name, kind in compiled.src.signature.items() for item in _flat(named[name], kind)]
    return compiled, taken, named


def opted_in(shared: int) -> int | None:
    """The limit that Triton's launcher opts in to, for kernels above 48 KiB; all of their shared memory is dynamic."""
    return shared if shared > 48 * 1024 else None


def launch_triton(
    kernel: Any,
    grid: Grid,
    *args: Any,
    arch: int = 80,
    readonly: Iterable[torch.Tensor] = (),
    races: bool = True,
    seed: int = 0,
    **options: Any,
) -> Report:
    """Like `kernel[grid](*args, **options)`, on CPU tensors, in the emulator.

    Args:
        kernel: A function under `triton.jit`.
        grid: As for Triton; a callable gets the arguments by name.
        arch: Compute capability, such as 80 or 90.
        readonly: Tensors that the kernel must not write.
        options: Keyword arguments of the kernel, num_warps, num_stages.
    """
    compiled, taken, named = compile_triton(kernel, *args, arch=arch, **options)
    size = grid(named) if callable(grid) else grid
    scratch = getattr(compiled.metadata, "global_scratch_size", 0) or 0
    blocks = 1
    for extent in (size,) if isinstance(size, int) else size:
        blocks *= extent
    if scratch:
        taken = [*taken, torch.zeros(scratch * blocks, dtype=torch.uint8)]
    return run(
        compiled.asm["ptx"],
        compiled.metadata.name,
        size,
        32 * compiled.metadata.num_warps,
        taken,
        dynamic_shared=compiled.metadata.shared,
        max_dynamic_shared=opted_in(compiled.metadata.shared),
        readonly=list(readonly),
        races=races,
        seed=seed,
        keep=True,
    )
