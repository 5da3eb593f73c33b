"""Contents of compiled machine code: registers, local and shared memory, SASS, read by Triton's cuobjdump."""

import functools
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import triton

# Bytes of shared memory that one block may have, by compute capability (CUDA C++ Programming Guide, technical
# specifications); of AMD's GPUs the LDS of a workgroup (ISA guides of CDNA 3 and RDNA 3).
SHARED_LIMIT: dict[int | str, int] = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
SHARED_LIMIT |= dict.fromkeys(("gfx942", "gfx1100"), 65536)
RESERVED_SHARED = 1024  # bytes per block, counted by cuobjdump from compute capability 9.0 on


class Usage(NamedTuple):
    """Resources of one kernel, per thread and per block, and its code; local memory takes spilled registers."""

    registers: int
    local_bytes: int
    shared_bytes: int
    code: str  # SASS, or AMD's assembly


def read_usage(file: Path, kernel: str, *options: str) -> Usage:
    """Resources of one kernel in a cubin or library; shared memory is the static part, without the launch's."""
    printed = _cuobjdump("-res-usage", "-sass", "-fun", kernel, *options, str(file))
    used = re.search(rf" Function {kernel}:\n  REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", printed)
    sass = re.search(rf"^\t\tFunction : {kernel}\n(.*?)^\t\t\.{{3,}}$", printed, re.MULTILINE | re.DOTALL)
    if used is None or sass is None:
        raise LookupError(f"{file.name}: cuobjdump found no {kernel}")
    registers, stack, shared, local = map(int, used.groups())
    return Usage(registers, stack + local, shared, sass[1])


def _cuobjdump(*arguments: str) -> str:
    return subprocess.run([_tool(), *arguments], capture_output=True, text=True, check=True).stdout


@functools.cache
def _tool() -> str:
    bundled = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    tool = str(bundled) if bundled.is_file() else shutil.which("cuobjdump")
    if tool is None:
        raise FileNotFoundError("cuobjdump: neither Triton's wheel nor PATH has it; it comes with the CUDA toolkit")
    return tool
