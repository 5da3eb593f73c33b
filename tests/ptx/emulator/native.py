"""The execution core: compiled with g++ at first use, cached by what it is made of, called through ctypes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import codegen

CORE = Path(__file__).parent / "core"
FLAGS = ["-std=c++17", "-O2", "-march=native", "-ffp-contract=off", "-fPIC", "-Wall", "-Wextra"]
PARTS = 3  # pieces of the generated code, compiled side by side


class NoCompiler(RuntimeError):
    """There is no C++ compiler to build the core with."""


def compiler() -> str | None:
    """The C++ compiler: $CXX or g++ or clang++, None if there is none."""
    return next(
        filter(None, (shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name)), None
    )


def cache_folder() -> Path:
    root = os.environ.get("PTX_EMULATOR_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "ptx_emulator"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / "ptx_emulator"
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _processor() -> str:
    """The processor's features, on which -march=native depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _sources() -> dict[str, str]:
    files = {path.name: path.read_text() for path in sorted(CORE.iterdir()) if path.suffix in (".h", ".cpp")}
    # One unit for all written code: most of the time goes into the standard library's headers.
    written = "".join(f'#include "{name}"\n' for name in files if name.endswith(".cpp"))
    return files | {"written.cpp": written} | codegen.sources(PARTS)


def _build(cxx: str, sources: dict[str, str], target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in sources.items():
            (Path(folder) / name).write_text(text)
        units = ["written.cpp", *(name for name in sources if name.startswith("generated_"))]

        def compile_unit(name: str) -> str:
            done = subprocess.run(
                [cxx, *FLAGS, "-c", name, "-o", name + ".o"], cwd=folder, capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(f"the emulator's core does not compile: {name}\n{done.stderr[-4000:]}")
            return name + ".o"

        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            objects = list(pool.map(compile_unit, units))
        unfinished = target.with_name(f"{target.name}.{os.getpid()}")
        subprocess.run([cxx, "-shared", *objects, "-o", str(unfinished)], cwd=folder, check=True)
        os.replace(unfinished, target)  # atomic: test processes may build at the same time


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled core."""
    cxx = compiler()
    if cxx is None:
        raise NoCompiler("the PTX emulator needs a C++ compiler (g++ or clang++) for its core, and none was found")
    sources = _sources()
    version = subprocess.run([cxx, "--version"], capture_output=True, text=True).stdout
    made_of = "\0".join(
        [version, _processor(), *FLAGS, *(name + "\0" + text for name, text in sorted(sources.items()))]
    )
    target = cache_folder() / f"core-{hashlib.sha256(made_of.encode()).hexdigest()[:20]}.so"
    if not target.exists():
        _build(cxx, sources, target)
    loaded = ctypes.CDLL(str(target))
    pointer, number = ctypes.c_void_p, ctypes.c_uint64
    loaded.core_program.restype = pointer
    arrays: list[type[ctypes.c_void_p] | type[ctypes.c_uint64]] = [pointer, number]
    loaded.core_program.argtypes = [*arrays * 3, pointer, *arrays * 4]
    loaded.core_free_program.argtypes = [pointer]
    loaded.core_run.restype = pointer
    loaded.core_run.argtypes = [pointer, pointer, pointer, number, pointer, number, ctypes.c_uint32, pointer]
    loaded.core_finding_count.restype = number
    loaded.core_finding_count.argtypes = [pointer]
    loaded.core_finding.restype = ctypes.c_char_p
    loaded.core_finding.argtypes = [pointer, number, pointer]
    loaded.core_counters.argtypes = [pointer, pointer]
    loaded.core_executions.argtypes = [pointer, pointer]
    loaded.core_free_machine.argtypes = [pointer]
    return loaded
