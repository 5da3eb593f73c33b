"""The launches of a call of the package's CUDA backend, without a GPU: its own plans, run in the emulator."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from amuse_kernels import native
from amuse_kernels.attention import cuda as attention_cuda
from amuse_kernels.attention import native as attention_native
from amuse_kernels.dispatch import native_module
from amuse_kernels.fusion import cuda as fusion_cuda
from amuse_kernels.interpolation import cuda as interpolation_cuda
from tests.ptx.emulator.arguments import Structure, pointing_into
from tests.ptx.emulator.launch import Launch
from tests.ptx.emulator.nvcc_kernels import compile_nvcc, nvcc, split_kernels
from tests.ptx.emulator.report import Report
from tests.ptx.package import cuda_attention
from tests.ptx.package.launcher import prepare

SOURCES = Path(__file__).parents[3] / "csrc" / "cuda"
FILES = ("fusion_forward.cu", "fusion_backward.cu", "fusion_weight.cu", "interpolation.cu")


def missing() -> str | None:
    """Why the package's CUDA kernels cannot be emulated here; None if they can."""
    native = native_module()
    if native is None or not native.build_info()["cuda"]:
        return "the native library was built without CUDA"
    return None if nvcc() else "nvcc was not found on PATH nor below $CUDA_HOME"


def kernel(entry: str, arch: str = "sm_80") -> str:
    """PTX of one kernel of the package."""
    if attention := re.fullmatch(r"attention_\w+?_(fp32|fp16|bf16)_(\d+)(_options)?", entry):
        dtype = next(dtype for dtype, name in cuda_attention.ELEMENTS.items() if name == attention[1])
        return cuda_attention.kernels(dtype, int(attention[2]), arch)[entry]
    # amuse_fusion_weight_f16_m4 is in fusion_weight.cu
    return _kernels(next(name for name in FILES if entry.startswith(f"amuse_{name.removesuffix('.cu')}")), arch)[entry]


@functools.cache
def _kernels(name: str, arch: str) -> dict[str, str]:
    """PTX of every kernel of a file."""
    headers = sorted([*SOURCES.glob("*.h"), *SOURCES.parent.glob("*.h")])
    digest = hashlib.sha256(b"".join(header.read_bytes() for header in headers)).hexdigest()[:20]
    return split_kernels(compile_nvcc(SOURCES / name, arch, (f"-DAMUSE_HEADERS={digest}",)))


class _Recording:
    """The native module, writing down the tensors that its functions are called with."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._tensors = tensors

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            for argument in arguments:
                entries = argument if isinstance(argument, list | tuple) else [argument]
                self._tensors.extend(entry for entry in entries if isinstance(entry, torch.Tensor))
            return getattr(native_module(), name)(*arguments)

        return call


@contextlib.contextmanager
def _planned(handle: Callable[[Any, list[torch.Tensor]], None]) -> Iterator[None]:
    """Inside, plans of calls on CPU tensors go to `handle` with the tensors that the call named so far."""
    tensors: list[torch.Tensor] = []

    def address(tensor: torch.Tensor | None) -> int:
        if tensor is None:
            return 0
        tensors.append(tensor)
        return tensor.data_ptr()

    def take(plan: Any, _device: torch.device) -> None:
        handle(plan, tensors)
        tensors.clear()

    with contextlib.ExitStack() as patches:
        for glue in (attention_cuda, native):  # the seed and the workspace
            patches.enter_context(mock.patch.object(glue, "address", address))
        for glue in (attention_cuda, fusion_cuda, interpolation_cuda):
            patches.enter_context(mock.patch.object(glue, "run", take))
        for glue in (attention_cuda, fusion_cuda, interpolation_cuda, attention_native):
            patches.enter_context(mock.patch.object(glue, "module", return_value=_Recording(tensors)))
        yield


@contextlib.contextmanager
def recorded() -> Iterator[list[Any]]:
    """Inside, the launches of calls on CPU tensors are not run but listed: entry, grid, block, shared bytes, bytes."""
    launches: list[Any] = []
    with _planned(lambda plan, _tensors: launches.extend(plan.launches)):
        yield launches


@contextlib.contextmanager
def prepared(readonly: Sequence[torch.Tensor] = (), arch: str = "sm_80") -> Iterator[list[Launch]]:
    """Inside, the launches of calls on CPU tensors are not run but listed, ready to be run in the emulator.

    Args:
        readonly: Tensors that no kernel may write.
        arch: What nvcc compiles for.
    """
    launches: list[Launch] = []
    with _planned(_launches_to(launches.append, readonly, arch)):
        yield launches


@contextlib.contextmanager
def emulated(
    arch: str = "sm_80", seed: int = 1, readonly: Sequence[torch.Tensor] = (), mutant: dict[str, str] | None = None
) -> Iterator[list[Report]]:
    """Inside, calls on CPU tensors run in the emulator; yields the reports, one a launch.

    Args:
        arch: What nvcc compiles for.
        seed: Of the order of blocks and warps.
        readonly: Tensors that no kernel may write.
        mutant: PTX by entry, in place of what nvcc makes.
    """
    reports: list[Report] = []

    def run(launch: Launch) -> None:
        reports.append(launch.run((mutant or {}).get(launch.entry), seed=seed))

    with _planned(_launches_to(run, readonly, arch)):
        yield reports


def _launches_to(
    take: Callable[[Launch], None], readonly: Sequence[torch.Tensor], arch: str
) -> Callable[[Any, list[torch.Tensor]], None]:
    protected = {tensor.data_ptr() for tensor in readonly if tensor.numel()}

    def handle(plan: Any, tensors: list[torch.Tensor]) -> None:
        for entry, grid, block, shared_bytes, parameters in plan.launches:
            if grid == 0:
                continue
            words = np.frombuffer(parameters[: len(parameters) // 8 * 8], np.uint64)
            used = [tensor for tensor in tensors if pointing_into(words, tensor).any()]
            structure = Structure(
                parameters,
                [tensor for tensor in used if tensor.data_ptr() in protected],
                [tensor for tensor in used if tensor.data_ptr() not in protected],
            )
            take(prepare(entry, kernel(entry, arch), grid, block, structure, shared_bytes))

    return handle
