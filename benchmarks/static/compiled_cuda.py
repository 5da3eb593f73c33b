"""CUDA C++ kernels, as nvcc compiled them into the installed library."""

import functools
import hashlib
import re
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from amuse_kernels.dispatch import native_module
from benchmarks.static.binaries import RESERVED_SHARED, Usage, read_usage

SOURCES = Path(__file__).parents[2] / "csrc"
FAMILIES = ("attention", "fusion", "interpolation")


class CudaLaunch(NamedTuple):
    """A launch according to the library's own plan."""

    entry: str
    grid: int
    block: int
    shared_bytes: int
    parameters: bytes


def architectures() -> dict[int, str]:
    """The machine code in the library, such as {90: "sm_90a"}; empty if it was built without CUDA."""
    native = native_module()
    built = native.build_info().get("cuda_architectures", "") if native else ""
    return {int(number): f"sm_{number}{suffix}" for number, suffix in re.findall(r"(\d+)([af]?)(?!\S*virtual)", built)}


def _library() -> ModuleType:
    native = native_module()
    if native is None:
        raise LookupError("the native library is not built")
    return native


def code_for(arch: int | str) -> str | None:
    """The code that a chip runs: sm_86 and 89 run that of sm_80, the only one that the library has by default."""
    built = dict[int | str, str](architectures().items())
    return built.get(arch) or (built.get(80) if arch in (86, 89) else None)


def compiler() -> str:
    return f"nvcc {_library().build_info()['nvcc']}"


def facts(launch: CudaLaunch) -> dict[str, str]:
    """A launch without its code."""
    kernel = re.sub(r"^amuse_|_(fp|bf|f)(16|32).*|_(scalar|elementwise|gate)_.*", "", launch.entry)
    return {
        "kernel": kernel,
        "tile": launch.entry,
        "warps": str(launch.block // 32),
        "stages": "",
        "compiler": compiler(),
        "source": source_hash(next(family for family in FAMILIES if kernel.startswith(family))),
    }


def usage(launch: CudaLaunch, arch: int) -> Usage:
    """Looks it up; shared memory is the kernel's own and that of the launch."""
    code = code_for(arch)
    if code is None:
        raise LookupError(f"the library has code for {architectures()}, none that runs on sm_{arch}")
    used = read_usage(Path(str(_library().__file__)), launch.entry, "-arch", code)
    own = max(0, used.shared_bytes - (RESERVED_SHARED if arch >= 90 else 0))
    return used._replace(shared_bytes=own + launch.shared_bytes)


@functools.cache
def source_hash(family: str) -> str:
    """Hashes the sources of a family and all that they include, without comments and layout."""
    files, digest = sorted((SOURCES / "cuda").resolve().glob(f"{family}*.cu")), hashlib.sha256()
    for file in files:  # which grows
        text = file.read_text(encoding="utf-8")
        digest.update(re.sub(r"//[^\n]*|\s+", "", text).encode())
        included = [(file.parent / name).resolve() for name in re.findall(r'^#include "(.+)"', text, re.MULTILINE)]
        files += [header for header in included if header not in files]
    return digest.hexdigest()[:12]
