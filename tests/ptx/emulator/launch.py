"""`run`: checks a kernel, runs it on CPU tensors, reports."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from . import arguments, native
from .buffers import READ, WRITTEN, Memory
from .lowered import lowered
from .lowering import Code
from .program import Module
from .report import Finding, Report
from .vocabulary import FINDINGS, PIPES

COUNTERS = (
    "instructions",
    "tensor_flops",
    "barriers",
    "global_requests",
    "global_sectors",
    "global_sectors_ideal",
    "global_bytes_read",
    "global_bytes_written",
    "shared_requests",
    "shared_wavefronts",
    "shared_wavefronts_ideal",
)


class Program:
    """A kernel loaded into the core."""

    def __init__(self, module: Module, code: Code) -> None:
        self.module, self.code, self.kernel = module, code, code.kernel
        kernel, slots = code.kernel, code.slots
        implicit = [slots.registers[name] for name in kernel.implicit if name in slots.registers]
        arrays: list[np.ndarray] = [
            np.array(self.code.records, np.int64),
            np.array(self.code.slot_pool or [0], np.int32),
            np.array(self.code.value_pool or [0], np.int64),
        ]
        header = [
            slots.register_count,
            slots.predicate_count,
            slots.shared_bytes,
            slots.local_bytes,
            self.code.shared_cell,
            self.code.global_cell,
        ]
        pairs = [
            np.array([[slot, value] for value, slot in slots.constants.items()], np.uint64),
            np.array([[slot, value] for value, slot in slots.constant_predicates.items()], np.uint64),
            np.array([[slot, number] for number, slot in slots.specials.items()], np.uint64),
            np.array(implicit, np.uint64),
        ]
        pointers: list[Any] = []
        for array in arrays:
            pointers += [array.ctypes.data, len(array)]
        head = np.array(header, np.uint32)
        pointers.append(head.ctypes.data)
        for array in pairs:
            pointers += [array.ctypes.data, len(array)]
        self._library = native.library()
        self.handle = self._library.core_program(*pointers)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self._library.core_free_program(self.handle)


@functools.lru_cache(maxsize=64)
def load(ptx_text: str, entry: str | None = None, *, keep: bool = False) -> Program:
    """Parses and checks PTX; raises Unsupported. Arguments as for `lowered`."""
    return Program(*lowered(ptx_text, entry, keep))


def run(
    ptx_text: str,
    entry: str | None,
    grid: int | Sequence[int],
    block: int | Sequence[int],
    args: Sequence[Any],
    *,
    dynamic_shared: int = 0,
    max_dynamic_shared: int | None = None,
    registers: int | None = None,
    readonly: Iterable[int | torch.Tensor] = (),
    races: bool = True,
    seed: int = 0,
    keep: bool = False,
) -> Report:
    """Runs a kernel of PTX text on CPU tensors, in place.

    Args:
        ptx_text: The PTX module.
        entry: Name of the kernel.
        grid, block: Launch sizes.
        args: Tensors and Python scalars in parameter order; None is a null pointer, bytes fill a structure.
        dynamic_shared: Bytes of dynamic shared memory.
        max_dynamic_shared: The bytes that the launch opts in to; None: it does not, and 48 KiB with the static ones
            are the limit.
        registers: Of a thread, as ptxas says, to check that a block of them fits; None: what .maxnreg says.
        readonly: Positions of the arguments (or the tensors) that the kernel must not write.
        races: Check for races; the other checks are always on.
        seed: 0 runs CTAs and warps in order, anything else in a random order that the seed fixes.
        keep: Keep the parsed kernel on disk.

    Raises:
        Unsupported: The PTX is malformed, or has an instruction that the emulator does not know.
        TypeError, ValueError: An argument does not fit the kernel; the message names it.
        RuntimeError: The kernel executed a trap.
    """
    program = load(ptx_text, entry, keep=keep)
    kernel = program.kernel
    grid3 = arguments.dimensions(grid, "grid", arguments.LARGEST_GRID)
    block3 = arguments.dimensions(block, "block", arguments.LARGEST_BLOCK)
    if not isinstance(dynamic_shared, int) or dynamic_shared < 0:
        raise ValueError(f"dynamic_shared: expected a number of bytes, got {dynamic_shared!r}")
    if not isinstance(seed, int):
        raise TypeError(f"seed: expected an int, got {type(seed).__name__}")
    if isinstance(args, torch.Tensor) or not isinstance(args, (list, tuple)):
        raise TypeError(f"args: expected a list or a tuple, got {type(args).__name__}")
    shared = arguments.SharedMemory(program.code.slots.shared_bytes, dynamic_shared, max_dynamic_shared)
    arguments.check_launch(kernel, program.module.target, grid3, block3, shared, registers)
    memory = Memory(program.code.slots.static_buffers)
    parameters = arguments.pack(
        kernel, args, arguments.readonly_indices(readonly, args), memory, program.code.parameters_read
    )
    geometry = np.array([*grid3, *block3, dynamic_shared, bool(races), seed & 0xFFFFFFFF], np.uint32)
    buffers = memory.records()
    trapped = ctypes.c_uint32(0)
    library = native.library()
    machine = library.core_run(
        program.handle,
        geometry.ctypes.data,
        parameters,
        len(parameters),
        buffers.ctypes.data,
        len(memory.buffers),
        len(PIPES),
        ctypes.byref(trapped),
    )
    try:
        report = Report(
            kernel.name,
            _findings(machine, program, memory, grid3),
            _counters(machine, memory),
            _executions(machine, program),
        )
    finally:
        library.core_free_machine(machine)
    if trapped.value:
        raise RuntimeError(f"kernel {kernel.name!r} executed the trap at line {trapped.value}")
    for message in memory.finish():
        report.findings.append(Finding("uninitialised_read", 0, message, kernel.name))
    return report


@dataclass
class Launch:
    """One kernel launch with its PTX, so that the text can be changed and run again."""

    name: str
    ptx: str
    entry: str
    grid: tuple[int, ...]
    block: int
    args: list[Any]
    readonly: list[torch.Tensor]
    dynamic_shared: int = 0
    max_dynamic_shared: int | None = None

    def run(self, ptx: str | None = None, **options: Any) -> Report:
        return run(
            ptx or self.ptx,
            self.entry,
            self.grid,
            self.block,
            self.args,
            dynamic_shared=self.dynamic_shared,
            max_dynamic_shared=self.max_dynamic_shared,
            readonly=self.readonly,
            keep=ptx is None,
            **options,
        )


def _findings(machine: int, program: Program, memory: Memory, grid: tuple[int, int, int]) -> list[Finding]:
    library = native.library()
    instructions = {instruction.line: instruction for instruction in program.kernel.instructions}
    findings = []
    numbers = np.zeros(7, np.uint64)
    for index in range(library.core_finding_count(machine)):
        message = library.core_finding(machine, index, numbers.ctypes.data).decode()
        kind, line, _, cta, warp, lane, count = (int(number) for number in numbers)
        message = re.sub(r"buffer (\d+)", lambda found: memory.buffers[int(found[1])].name, message)
        instruction = instructions.get(line)
        source = ""
        if instruction and instruction.source:
            number, source_line = instruction.source
            source = f"{program.module.files.get(number, 'file ' + str(number))}:{source_line}"
        place = (cta % grid[0], cta // grid[0] % grid[1], cta // grid[0] // grid[1])
        findings.append(
            Finding(
                FINDINGS[kind],
                line,
                message,
                program.kernel.name,
                instruction.text if instruction else "",
                source,
                place,
                warp,
                lane,
                count,
            )
        )
    return sorted(findings, key=lambda finding: finding.line)


def _counters(machine: int, memory: Memory) -> dict[str, int]:
    numbers = np.zeros(len(COUNTERS) + len(PIPES), np.uint64)
    native.library().core_counters(machine, numbers.ctypes.data)
    names = [*COUNTERS, *(f"instructions_{pipe}" for pipe in PIPES)]
    counters = dict(zip(names, map(int, numbers), strict=False))
    counters["global_bytes_read_distinct"] = memory.distinct(READ)
    counters["global_bytes_written_distinct"] = memory.distinct(WRITTEN)
    counters["bank_conflicts"] = counters["shared_wavefronts"] - counters["shared_wavefronts_ideal"]
    return counters


def _executions(machine: int, program: Program) -> dict[int, int]:
    numbers = np.zeros(len(program.code.records), np.uint64)
    native.library().core_executions(machine, numbers.ctypes.data)
    by_line = dict.fromkeys((instruction.line for instruction in program.kernel.instructions), 0)
    for record, count in zip(program.code.records, numbers, strict=False):
        if record[9] in by_line:
            by_line[record[9]] = max(by_line[record[9]], int(count))
    return by_line
