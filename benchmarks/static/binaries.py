"""What ptxas made of a launch: registers, local and shared memory, and the SASS, by the tools that Triton brings."""

import ast
import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton

from amuse_kernels.triton.launch import Launch
from tests.ptx.triton_kernels import compile_triton

# Bytes of shared memory that one block may have, by compute capability (CUDA C++ Programming Guide, technical
# specifications).
SHARED_LIMIT = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}


class Usage(NamedTuple):
    """Of one kernel, per thread and per block; local memory is where registers spill to."""

    registers: int
    local_bytes: int
    shared_bytes: int


def compile_cubin(launch: Launch, arch: int) -> tuple[bytes, int]:
    """The machine code of a launch, and the bytes of shared memory that the launch asks for."""
    compiled, _, _ = compile_triton(launch.kernel, *launch.args, arch=arch, **launch.options)
    return compiled.asm["cubin"], compiled.metadata.shared


def usage(launch: Launch, arch: int) -> Usage:
    cubin, shared = compile_cubin(launch, arch)
    printed = _cuobjdump("-res-usage", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", printed)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage printed no usage: {printed!r}")
    registers, stack, local = map(int, found.groups())
    return Usage(registers, stack + local, shared)


def sass(launch: Launch, arch: int) -> str:
    return _cuobjdump("-sass", compile_cubin(launch, arch)[0])


def source_hash(launch: Launch) -> str:
    """Of what a launch's results depend on: the code of its family, without comments and layout, and its constants.

    The glue in attention.py and the choice of tiles are left out: what they choose are constants and columns.
    """
    folder = Path(launch.kernel.fn.__code__.co_filename).parent
    family = launch.kernel.fn.__module__.rpartition(".")[2].partition("_")[0]
    glue = {folder / "attention.py", folder / "attention_config.py"}
    files = _hash_files(tuple(sorted({*folder.glob(f"{family}*.py"), folder / "launch.py"} - glue)))
    return hashlib.sha256(f"{files} {sorted(launch.constexprs.items())}".encode()).hexdigest()[:12]


@functools.cache
def _hash_files(paths: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(ast.unparse(ast.parse(path.read_text(encoding="utf-8"))).encode())
    return digest.hexdigest()[:12]


def _cuobjdump(option: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([_tool(), option, file.name], capture_output=True, text=True, check=True).stdout


@functools.cache
def _tool() -> str:
    bundled = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    tool = str(bundled) if bundled.is_file() else shutil.which("cuobjdump")
    if tool is None:
        raise FileNotFoundError("cuobjdump: neither Triton's wheel nor PATH has it; it comes with the CUDA toolkit")
    return tool
