"""Triton kernels compiled ahead of time for an AMD GPU by the compiler that Triton brings, and their machine code."""

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from amuse_kernels.launch import Launch
from benchmarks.static.binaries import Usage

LANES = {"gfx942": 64, "gfx1100": 32}  # of a wavefront


@contextlib.contextmanager
def chip(arch: str) -> Iterator[None]:
    """Inside, Triton compiles for this GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from tests.ptx.emulator.triton_kernels import _ChipWithoutDriver

    before = getattr(driver, "_active", None)
    driver.set_active(_ChipWithoutDriver(arch, GPUTarget("hip", arch, LANES[arch])))
    try:
        yield
    finally:
        driver._active = before


def usage(launch: Launch, arch: str) -> Usage:
    """Compiles. Registers are the vector registers of a lane, local memory its scratch."""
    with chip(arch):
        compiled = launch.kernel.warmup(*launch.args, grid=(1,), **launch.options)
    code = compiled.asm["amdgcn"]
    found = {name: int(number) for name, number in re.findall(r"^\s+\.(\w+):\s+(\d+)$", code, re.MULTILINE)}
    return Usage(found["vgpr_count"], found["private_segment_fixed_size"], compiled.metadata.shared, code)


class Instruction(NamedTuple):
    name: str

    @property
    def pipe(self) -> str:
        for pipe, pattern in _PIPES.items():
            if re.match(pattern, self.name):
                return pipe
        return "other"


# in the order in which they are tried; matrix instructions use the vector unit's registers but have a pipe of their own
_PIPES = {
    "tensor": r"v_(mfma|smfmac|wmma|swmmac)_",
    "shared": r"ds_",
    "local": r"scratch_",
    "global": r"(global|buffer|flat)_",
    "special": r"v_(exp|log|rcp|rsq|sqrt|sin|cos)_",
    "fma": r"v_(dual_|pk_)?(fma|fmac|mul|add|sub|mad|dot)",
    "alu": r"v_",
}


def parse(code: str) -> list[Instruction]:
    """The instructions of the assembly that Triton keeps."""
    return [Instruction(name) for name in re.findall(r"^\t([a-z]\w+)(?:[ \t].*)?$", code, re.MULTILINE)]
