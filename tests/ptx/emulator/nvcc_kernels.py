"""Launching CUDA C++ kernels on CPU tensors: nvcc compiles to PTX (cached), the emulator runs it."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from .launch import run
from .native import cache_folder
from .report import Report


def nvcc() -> str | None:
    """The CUDA compiler: on PATH, or below $CUDA_HOME; None if there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which("nvcc") or (shutil.which("nvcc", path=str(Path(home) / "bin")) if home else None)


@functools.lru_cache(maxsize=64)
def _compile(text: str, arch: str, flags: tuple[str, ...], name: str) -> str:
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("nvcc was not found on PATH nor below $CUDA_HOME")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    command = ["-ptx", "-std=c++17", "-O3", "-lineinfo", f"-arch={arch}", *flags]
    key = hashlib.sha256("\0".join([version, *command, text]).encode()).hexdigest()[:20]
    cached = cache_folder() / f"{name}-{arch}-{key}.ptx"
    if not cached.exists():
        with tempfile.TemporaryDirectory() as folder:
            source, output = Path(folder) / f"{name}.cu", Path(folder) / "out.ptx"
            source.write_text(text)
            done = subprocess.run([compiler, *command, str(source), "-o", str(output)], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"nvcc failed on {name}.cu:\n{done.stderr[-4000:]}")
            unfinished = cached.with_suffix(f".{os.getpid()}")
            shutil.move(str(output), unfinished)
            os.replace(unfinished, cached)
    return cached.read_text()


def compile_nvcc(source: Path | str, arch: str = "sm_80", flags: Sequence[str] = ()) -> str:
    """PTX of a .cu file (or of CUDA text). Headers that the file includes are not part of the cache's key."""
    if isinstance(source, Path):
        return _compile(source.read_text(), arch, (*flags, f"-I{source.parent}"), source.stem)
    return _compile(source, arch, tuple(flags), "kernel")


def split_kernels(text: str) -> dict[str, str]:
    """PTX with several kernels as one text per kernel, by name: each is loaded faster than all of them."""
    head, *rest = re.split(r"^(?=\.visible \.entry )", text, flags=re.MULTILINE)
    bodies = [body[: body.index("\n}\n") + 3] for body in rest]  # behind the last one is debug information
    return {re.findall(r"\w+", body)[2]: head + body for body in bodies}


def launch_nvcc(
    source: Path | str,
    entry: str,
    grid: int | Sequence[int],
    block: int | Sequence[int],
    args: Sequence[Any],
    *,
    arch: str = "sm_80",
    flags: Sequence[str] = (),
    dynamic_shared: int = 0,
    max_dynamic_shared: int | None = None,
    readonly: Iterable[int | torch.Tensor] = (),
    races: bool = True,
    seed: int = 0,
) -> Report:
    """Compiles `source` and runs its kernel `entry`; the rest is as for `run`."""
    return run(
        compile_nvcc(source, arch, flags),
        entry,
        grid,
        block,
        args,
        dynamic_shared=dynamic_shared,
        max_dynamic_shared=max_dynamic_shared,
        readonly=readonly,
        races=races,
        seed=seed,
    )
