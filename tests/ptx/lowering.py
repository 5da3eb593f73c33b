"""Instructions to the records that the core executes: one `lower_x` for each `@x` of the table."""

from __future__ import annotations

from dataclasses import dataclass, field

from . import codegen
from .errors import Unsupported
from .forms import Match, match
from .lowering_matrix import MATRIX_LOWERINGS
from .opcodes import CLOCKS, PIPES, ROUNDINGS, ROWS, TYPE_BYTES, TYPES
from .operands import Slots, items_of, space_number
from .pipes import pipe_of
from .program import Instruction, Integer, Kernel, Module, Operand, Pair, Sink, Special, Symbol, Vector

FLOWS = ("plain", "branch", "indexed_branch", "exit", "barrier", "warp_sync", "aligned_sync")
UNCOUNTED = 255
ORDER_BITS = {"": 0, "weak": 0, "relaxed": 1, "volatile": 1, "mmio": 1, "acquire": 2, "release": 4, "acq_rel": 6}
ATOMIC_OPERATIONS = ("add", "min", "max", "inc", "dec", "and", "or", "xor", "exch", "cas")
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
        self.jumps: list[tuple[int, list[str], Instruction]] = []  # where in the value pool targets have to be filled in
        self.starts: list[int] = []  # record of each instruction
        self.instruction: Instruction
        self.match: Match

    def run(self) -> Code:
        for instruction in self.code.kernel.instructions:
            self.starts.append(len(self.code.records))
            self.instruction, self.match = instruction, match(instruction)
            result = self.match.form.row.result
            if not result.startswith("@"):
                self.lower_expression()
                continue
            name = result[1:].split(" ")[0]
            if name in MATRIX_LOWERINGS:
                MATRIX_LOWERINGS[name](self)
            else:
                getattr(self, f"lower_{name}")()
        self.starts.append(len(self.code.records))
        end = Instruction("ret", [], None, self.code.kernel.instructions[-1].line if self.code.kernel.instructions else self.code.kernel.line)
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

    def emit(self, handler: str, slots: tuple[int, ...] | list[int] = (), values: tuple[int, ...] | list[int] = (), *,
             flow: str = "plain", members: int = -1, counted: bool = True) -> None:  # fmt: skip
        chosen = self.match.chosen
        guard, negated = -1, 0
        if self.instruction.guard:
            guard, negated = self.slots.predicate(self.instruction.guard, self.instruction)
        rounding = ROUNDINGS.index(chosen.get("irnd") or chosen.get("rnd") or "rn")
        if "rna" in self.instruction.opcode.split("."):
            rounding = ROUNDINGS.index("rna")
        pipe = PIPES.index(pipe_of(self.instruction.opcode)) if counted else UNCOUNTED
        self.code.records.append([
            codegen.handler_numbers()[handler], FLOWS.index(flow), pipe, int("ftz" in self.instruction.opcode.split(".")),
            int("sat" in chosen), negated, rounding, guard, members, self.instruction.line,
            len(self.code.slot_pool), len(self.code.value_pool),
        ])  # fmt: skip
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

    # Arithmetic

    def lower_expression(self) -> None:
        form, type_name = self.match.form, self.match.type
        slots, values = [], []
        for index, (name, kind) in enumerate(codegen.operand_kinds(form.row, type_name)):
            value = 0
            if kind == "imm":
                slot, value = -1, self.immediate(index)
            elif kind == "pred" and name in ("p", "q", "d"):
                slot = self.slots.destination(self.operand(index), "pred", self.instruction)
            elif kind == "pred":
                slot, value = self.slots.predicate(self.operand(index), self.instruction)
            elif name == "d":
                slot = self.slots.destination(self.operand(index), kind, self.instruction)
            else:
                slot = self.source(index, kind)
            slots.append(slot)
            values.append(value)
        if slots[0] < 0:
            raise self.fail("the result has to go to a register")
        self.emit(codegen.handler_name(form.number, type_name), slots, values)

    def lower_setp(self) -> None:
        first, second = self.pair(0)
        destinations = [self.slots.destination(operand, "pred", self.instruction) for operand in (first, second)]
        self._compare(self.match.form.number, destinations)

    def lower_set(self) -> None:
        """set is setp and a choice between two constants."""
        comparison = self.instruction.opcode.split(".")[1]
        row = next(number for number, row in enumerate(ROWS)
                   if row.form.startswith(f"setp.{comparison}{{") and self.match.type in row.types.split())  # fmt: skip
        result, written = self.slots.new_predicate(), self.match.chosen["as"]
        self._compare(row, [result, -1])
        true = self.slots.constant(0x3F800000 if written == "f32" else 0xFFFFFFFF)
        to = self.slots.destination(self.operand(0), written, self.instruction)
        self.emit("select", [to, true, self.slots.constant(0), result], [0], counted=False)

    def _compare(self, row: int, destinations: list[int]) -> None:
        type_name = self.match.type
        compared = self.slots.new_predicate()
        self.emit(codegen.handler_name(row, type_name), [compared, self.source(1, type_name), self.source(2, type_name)], [0, 0, 0])
        boolean = self.match.chosen.get("bool")
        if bool(boolean) != (len(self.instruction.operands) == 4):
            raise self.fail("a third source is needed exactly when there is a boolean operator")
        c, negated = self.slots.predicate(self.operand(3), self.instruction) if boolean else (-1, 0)
        operator = ("and", "or", "xor").index(boolean) if boolean else 3
        self.emit("second_predicate", [compared, *destinations, c], [operator, negated], counted=False)

    def lower_carry(self) -> None:
        name, *modifiers = self.instruction.opcode.split(".")
        type_name = self.match.type
        slots = [self.slots.destination(self.operand(0), type_name, self.instruction), self.source(1, type_name), self.source(2, type_name)]
        self.emit("add_carry", slots, [name.startswith("sub"), name.endswith("c"), "cc" in modifiers, 8 * TYPE_BYTES[type_name]])

    def lower_selp(self) -> None:
        type_name = self.match.type
        predicate, negated = self.slots.predicate(self.operand(3), self.instruction)
        destination = self.slots.destination(self.operand(0), type_name, self.instruction)
        self.emit("select", [destination, self.source(1, type_name), self.source(2, type_name), predicate], [negated])

    def lower_mov(self) -> None:
        type_name = self.match.type
        to, source = self.instruction.operands
        if isinstance(source, Special) and source.name in CLOCKS:
            return self.emit("read_clock", [self.slots.destination(to, type_name, self.instruction)], [CLOCKS[source.name]])
        if isinstance(source, Vector) or isinstance(to, Vector):
            return self._move_pieces(to, source, type_name)
        self.emit("move", [self.slots.destination(to, type_name, self.instruction), self.source(1, type_name)])

    def _move_pieces(self, to: Operand, source: Operand, type_name: str) -> None:
        pieces = items_of(source if isinstance(source, Vector) else to)
        bytes_each, rest = divmod(TYPE_BYTES[type_name], len(pieces))
        if rest or len(pieces) not in (2, 4) or bytes_each == 0:
            raise self.fail(f".{type_name} does not divide into {len(pieces)} elements")
        piece_type = f"b{8 * bytes_each}"
        if isinstance(source, Vector):
            slots = [self.slots.source(piece, piece_type, self.instruction) for piece in pieces]
            self.emit("pack", [self.slots.destination(to, type_name, self.instruction), *slots], [len(pieces), 8 * bytes_each])
        else:
            slots = [self.slots.destination(piece, piece_type, self.instruction) for piece in pieces]
            self.emit("unpack", [*slots, self.slots.source(source, type_name, self.instruction)], [len(pieces), 8 * bytes_each])

    def lower_cvta(self) -> None:
        window = self.match.chosen["window"].split("::")[0]
        slots = [self.slots.destination(self.operand(0), self.match.type, self.instruction), self.source(1, self.match.type)]
        self.emit("to_window", slots, [space_number(window), int("to" in self.instruction.opcode.split("."))])

    def lower_isspacep(self) -> None:
        slot = self.slots.destination(self.operand(0), "pred", self.instruction)
        self.emit("is_space", [slot, self.source(1, "u64")], [space_number(self.match.chosen["window"])])

    def lower_cvt(self) -> None:
        to, source = [part for part in self.instruction.opcode.split(".") if part in TYPES][-2:]
        held = {"f16x2": "b32", "bf16x2": "b32", "tf32": "b32", "e4m3x2": "b16", "e5m2x2": "b16"}
        self._check_rounding(to, source)
        slots = [self.slots.destination(self.operand(0), held.get(to, to), self.instruction, wider=True)]
        slots += [self.slots.source(operand, held.get(source, source), self.instruction, wider=True)
                  for operand in self.instruction.operands[1:]]  # fmt: skip
        destination = self.operand(0)
        width = TYPE_BYTES[self.code.kernel.registers[destination.name]] if hasattr(destination, "name") else 8
        chosen = self.match.chosen
        self.emit("convert", (slots + [-1])[:3], [TYPES.index(to), TYPES.index(source), width, int("satfinite" in chosen), int("relu" in chosen)])

    def _check_rounding(self, to: str, source: str) -> None:
        """The manual asks for a rounding exactly where information can be lost to rounding."""
        floats, integers = ("bf16", "f16", "f32", "f64"), ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")
        chosen = self.match.chosen
        if source in floats and to in integers and "irnd" not in chosen:
            raise self.fail("a conversion from float to integer needs .rni, .rzi, .rmi or .rpi")
        if source in integers and to in floats and "rnd" not in chosen:
            raise self.fail("a conversion from integer to float needs .rn, .rz, .rm or .rp")
        narrows = source in floats and to in floats and (floats.index(source) > floats.index(to) and TYPE_BYTES[source] > TYPE_BYTES[to])
        if narrows and "rnd" not in chosen:
            raise self.fail("a conversion to a narrower float needs .rn, .rz, .rm or .rp")

    # Memory

    def lower_load(self) -> None:
        chosen, type_name, space = self.match.chosen, self.match.type, self.space()
        count = int(chosen.get("vec", "v1")[1:])
        address = self.operand(1)
        slot, offset, narrow = self.slots.address(address, space, self.instruction)
        base = getattr(getattr(address, "base", None), "name", "")
        if base in self.slots.parameters:
            self.code.parameters_read.add(base)
            space = "param" if space == "generic" else space
        to = [self.slots.destination(item, type_name, self.instruction, wider=True) for item in self.vector(0, count)]
        widths = [TYPE_BYTES[self.code.kernel.registers[item.name]] for item in self.vector(0, count) if hasattr(item, "name")]
        size = TYPE_BYTES[type_name]
        self.saw_access(space, size * count)
        self.emit("load", [*to, slot], [space_number(space), size, count, int(type_name[0] == "s"), max(widths, default=8),
                                        ORDER_BITS[chosen.get("order", "")], offset, narrow])  # fmt: skip

    def lower_store(self) -> None:
        chosen, type_name, space = self.match.chosen, self.match.type, self.space()
        if space in ("const", "param"):
            raise self.fail(f"cannot store to .{space}")
        count = int(chosen.get("vec", "v1")[1:])
        slot, offset, narrow = self.slots.address(self.operand(0), space, self.instruction)
        values = [self.slots.source(item, type_name, self.instruction, wider=True) for item in self.vector(1, count)]
        size = TYPE_BYTES[type_name]
        self.saw_access(space, size * count)
        self.emit("store", [slot, *values], [space_number(space), size, count, 0, 0, ORDER_BITS[chosen.get("order", "")], offset, narrow])

    def lower_atomic(self) -> None:
        chosen, type_name, space = self.match.chosen, self.match.type, self.space()
        parts = self.instruction.opcode.split(".")
        operation = next(part for part in parts if part in ATOMIC_OPERATIONS)
        count = int(chosen.get("vec", "v1")[1:])
        returns = parts[0] == "atom"
        first = 1 if returns else 0
        slot, offset, narrow = self.slots.address(self.operand(first), space, self.instruction)
        to = [self.slots.destination(item, type_name, self.instruction) for item in self.vector(0, count)] if returns else [-1] * count
        b = [self.slots.source(item, type_name, self.instruction) for item in self.vector(first + 1, count)]
        c = [self.source(first + 2, type_name)] if operation == "cas" else [-1] * count
        size = TYPE_BYTES[type_name]
        self.saw_access(space, size * count)
        self.emit("atomic", [*to, slot, *b, *c], [space_number(space), TYPES.index(type_name), size, count, ATOMIC_OPERATIONS.index(operation),
                                                  ORDER_BITS[chosen.get("order", "")], offset, narrow])  # fmt: skip

    def lower_copy(self) -> None:
        to, to_offset, narrow = self.slots.address(self.operand(0), "shared", self.instruction)
        source, source_offset, _ = self.slots.address(self.operand(1), "global", self.instruction)
        size = self.immediate(2)
        if size not in ((16,) if ".cg." in self.instruction.opcode else (4, 8, 16)):
            raise self.fail(f"cp.async cannot copy {size} bytes")
        rest = self.instruction.operands[3:]
        if "hint" in self.match.chosen:
            rest = rest[:-1]
        source_bytes, ignore, negated = -1, -1, 0
        if rest and self.code.kernel.registers.get(getattr(rest[0], "name", "")) == "pred":
            ignore, negated = self.slots.predicate(rest[0], self.instruction)
        elif rest:
            source_bytes = self.slots.source(rest[0], "u32", self.instruction)
        self.saw_access("shared", size)
        self.saw_access("global", size)
        self.emit("copy_async", [to, source, source_bytes, ignore], [size, to_offset, source_offset, narrow, negated])

    def lower_commit(self) -> None:
        self.emit("commit_copies")

    def lower_wait(self) -> None:
        self.emit("wait_copies", [], [self.immediate(0) if self.instruction.operands else -1])

    def lower_fence(self) -> None:
        self.emit("fence")

    def lower_nothing(self) -> None:
        self.emit("nothing")

    # Synchronisation and exchange between lanes

    def lower_barrier(self) -> None:
        parts = self.instruction.opcode.split(".")
        if "red" not in parts:
            threads = self.source(1, "u32") if len(self.instruction.operands) > 1 else -1
            return self.emit("nothing", [self.source(0, "u32"), threads, -1, -1], [int("arrive" in parts), 0], flow="barrier")
        mode = 2 + [name for name in ("popc", "and", "or")].index(next(part for part in parts if part in ("popc", "and", "or")))
        destination = self.slots.destination(self.operand(0), "u32" if mode == 2 else "pred", self.instruction)
        predicate, negated = self.slots.predicate(self.operand(2), self.instruction)
        self.emit("nothing", [self.source(1, "u32"), -1, destination, predicate], [mode, negated], flow="barrier")

    def lower_warp_barrier(self) -> None:
        self.emit("warp_barrier", flow="warp_sync", members=self.source(0, "b32"))

    def lower_shuffle(self) -> None:
        to, predicate = self.pair(0)
        slots = [self.slots.destination(to, "b32", self.instruction), self.slots.destination(predicate, "pred", self.instruction)]
        mode = ("up", "down", "bfly", "idx").index(self.instruction.opcode.split(".")[2])
        self.emit("shuffle", [*slots, *(self.source(k, "b32") for k in (1, 2, 3))], [mode], flow="warp_sync", members=self.source(4, "b32"))

    def lower_vote(self) -> None:
        mode = ("ballot", "all", "any", "uni").index(self.instruction.opcode.split(".")[2])
        destination = self.slots.destination(self.operand(0), "pred" if mode else "b32", self.instruction)
        predicate, negated = self.slots.predicate(self.operand(1), self.instruction)
        self.emit("vote", [destination, predicate], [mode, negated], flow="warp_sync", members=self.source(2, "b32"))

    def lower_match(self) -> None:
        to, predicate = self.pair(0)
        slots = [self.slots.destination(to, "b32", self.instruction), self.slots.destination(predicate, "pred", self.instruction)]
        self.emit("match", [*slots, self.source(1, self.match.type)], [int(".all." in self.instruction.opcode)],
                  flow="warp_sync", members=self.source(2, "b32"))  # fmt: skip

    def lower_active(self) -> None:
        self.emit("active_mask", [self.slots.destination(self.operand(0), "b32", self.instruction)])

    def lower_redux(self) -> None:
        parts = self.instruction.opcode.split(".")
        type_name = parts[-1]
        operation = ("add", "min", "max", "and", "or", "xor").index(parts[2])
        real = 0 if type_name != "f32" else (2 if "NaN" in parts else 1) | (4 if "abs" in parts else 0)
        slots = [self.slots.destination(self.operand(0), type_name, self.instruction), self.source(1, type_name)]
        self.emit("reduce", slots, [operation, int(type_name == "s32"), real], flow="warp_sync", members=self.source(2, "b32"))

    def lower_elect(self) -> None:
        to, predicate = self.pair(0)
        slots = [self.slots.destination(to, "b32", self.instruction), self.slots.destination(predicate, "pred", self.instruction)]
        if slots[1] < 0:
            raise self.fail("elect.sync needs a predicate")
        self.emit("elect", slots, flow="warp_sync", members=self.source(1, "b32"))

    # Control flow

    def lower_branch(self) -> None:
        target = self.operand(0)
        if not isinstance(target, Symbol):
            raise self.fail("the target must be a label")
        self.jumps.append((len(self.code.value_pool), [target.name], self.instruction))
        self.emit("nothing", [], [0], flow="branch")

    def lower_indexed_branch(self) -> None:
        table = self.operand(1)
        if not isinstance(table, Symbol) or table.name not in self.code.kernel.tables:
            raise self.fail("the second operand must be a list of branch targets")
        targets = self.code.kernel.tables[table.name]
        self.jumps.append((len(self.code.value_pool) + 1, targets, self.instruction))
        self.emit("nothing", [self.source(0, "u32")], [len(targets), *targets_placeholder(targets)], flow="indexed_branch")

    def lower_exit(self) -> None:
        self.emit("nothing", flow="exit")

    def lower_trap(self) -> None:
        self.emit("trap")


def targets_placeholder(targets: list[str]) -> list[int]:
    return [0] * len(targets)


def lower(module: Module, kernel: Kernel) -> Code:
    """Checks every instruction of a kernel and encodes it; raises Unsupported for what the emulator cannot run."""
    return Lowering(module, kernel).run()
