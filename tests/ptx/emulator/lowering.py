"""Instructions to the records that the core executes: one `lower_x` for each `@x` of the table."""

from __future__ import annotations

from dataclasses import dataclass, field

from . import codegen
from .errors import Unsupported
from .forms import Match, match
from .lowering_arithmetic import ARITHMETIC_LOWERINGS
from .lowering_matrix import MATRIX_LOWERINGS
from .lowering_memory import MEMORY_LOWERINGS
from .lowering_warp import WARP_LOWERINGS
from .operands import Slots, items_of
from .pipes import pipe_of
from .program import Instruction, Integer, Kernel, Module, Operand, Pair, Sink
from .vocabulary import PIPES, ROUNDINGS

LOWERINGS = {**ARITHMETIC_LOWERINGS, **MEMORY_LOWERINGS, **WARP_LOWERINGS, **MATRIX_LOWERINGS}
FLOWS = ("plain", "branch", "indexed_branch", "exit", "barrier", "warp_sync", "aligned_sync")
UNCOUNTED = 255
NARROWEST_CELL = 16


@dataclass
class Code:
    """A kernel, ready for the core."""

    kernel: Kernel
    slots: Slots
    records: list[list[int]] = field(default_factory=list)
    slot_pool: list[int] = field(default_factory=list)
    value_pool: list[int] = field(default_factory=list)
    shared_cell: int = NARROWEST_CELL
    global_cell: int = NARROWEST_CELL
    parameters_read: set[str] = field(default_factory=set)


class Lowering:
    def __init__(self, module: Module, kernel: Kernel) -> None:
        self.code = Code(kernel, Slots(module, kernel))
        self.slots = self.code.slots
        self.jumps: list[
            tuple[int, list[str], Instruction]
        ] = []  # where in the value pool targets have to be filled in
        self.starts: list[int] = []  # record of each instruction
        self.instruction: Instruction
        self.match: Match

    def run(self) -> Code:
        for instruction in self.code.kernel.instructions:
            self.starts.append(len(self.code.records))
            self.instruction, self.match = instruction, match(instruction)
            result = self.match.form.row.result
            name = result[1:].split(" ")[0] if result.startswith("@") else "expression"
            LOWERINGS[name](self)
        self.starts.append(len(self.code.records))
        end = Instruction(
            "ret",
            [],
            None,
            self.code.kernel.instructions[-1].line if self.code.kernel.instructions else self.code.kernel.line,
        )
        self.instruction, self.match = end, match(end)
        self.emit("nothing", flow="exit")
        self._fill_jumps()
        return self.code

    def _fill_jumps(self) -> None:
        for position, targets, instruction in self.jumps:
            for k, target in enumerate(targets):
                if target not in self.code.kernel.labels:
                    raise Unsupported(f"{instruction.where()}: unknown label {target!r}")
                self.code.value_pool[position + k] = self.starts[self.code.kernel.labels[target]]

    # Helpers that every lowering uses

    def emit(
        self,
        handler: str,
        slots: tuple[int, ...] | list[int] = (),
        values: tuple[int, ...] | list[int] = (),
        *,
        flow: str = "plain",
        members: int = -1,
        counted: bool = True,
    ) -> None:
        chosen = self.match.chosen
        guard, negated = -1, 0
        if self.instruction.guard:
            guard, negated = self.slots.predicate(self.instruction.guard, self.instruction)
        rounding = ROUNDINGS.index(chosen.get("irnd") or chosen.get("rnd") or "rn")
        if "rna" in self.instruction.opcode.split("."):
            rounding = ROUNDINGS.index("rna")
        pipe = PIPES.index(pipe_of(self.instruction.opcode)) if counted else UNCOUNTED
        self.code.records.append(
            [
                codegen.handler_numbers()[handler],
                FLOWS.index(flow),
                pipe,
                int("ftz" in self.instruction.opcode.split(".")),
                int("sat" in chosen),
                negated,
                rounding,
                guard,
                members,
                self.instruction.line,
                len(self.code.slot_pool),
                len(self.code.value_pool),
            ]
        )
        self.code.slot_pool.extend(slots)
        self.code.value_pool.extend(values)

    def operand(self, index: int) -> Operand:
        return self.instruction.operands[index]

    def fail(self, message: str) -> Unsupported:
        return Unsupported(f"{self.instruction.where()}: {message}")

    def immediate(self, index: int) -> int:
        operand = self.operand(index)
        if not isinstance(operand, Integer):
            raise self.fail(f"operand {index + 1} must be a constant")
        return operand.value

    def pair(self, index: int) -> tuple[Operand, Operand]:
        operand = self.operand(index)
        return (operand.first, operand.second) if isinstance(operand, Pair) else (operand, Sink())

    def source(self, index: int, type_name: str) -> int:
        return self.slots.source(self.operand(index), type_name, self.instruction)

    def vector(self, index: int, length: int) -> tuple[Operand, ...]:
        items = items_of(self.operand(index))
        if len(items) != length:
            raise self.fail(f"operand {index + 1} must have {length} elements, not {len(items)}")
        return items

    def saw_access(self, space: str, size: int) -> None:
        """The shadow's cells are as small as the smallest access, so that no access covers part of a cell."""
        if space in ("generic", "shared"):
            self.code.shared_cell = min(self.code.shared_cell, size)
        if space in ("generic", "global"):
            self.code.global_cell = min(self.code.global_cell, size)

    def space(self) -> str:
        return self.match.chosen.get("space", "generic").split("::")[0]


def lower(module: Module, kernel: Kernel) -> Code:
    """Checks every instruction of a kernel and encodes it; raises Unsupported for what the emulator cannot run."""
    return Lowering(module, kernel).run()
