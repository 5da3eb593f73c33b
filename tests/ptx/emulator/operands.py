"""Operands to slots: each register, constant and special register of a kernel gets a place in the register file."""

from __future__ import annotations

import struct

from .errors import Unsupported
from .program import (
    Address,
    Instruction,
    Integer,
    Kernel,
    Module,
    Operand,
    Real,
    Register,
    Sink,
    Special,
    Symbol,
    Variable,
    Vector,
)
from .vocabulary import SPACES, SPECIALS, TYPE_BYTES

SHARED_BASE = 1024  # as in core/machine.h
REGION_BITS = 40
FLOATS = {"f32": ("<f", "<I"), "f64": ("<d", "<Q")}


def region_base(index: int) -> int:
    """The virtual address of buffer `index`: the middle of a region of its own, so that red zone lies on both sides."""
    return ((index + 1) << REGION_BITS) + (1 << (REGION_BITS - 1))


class Slots:
    """The register file of a kernel, and where its variables lie."""

    def __init__(self, module: Module, kernel: Kernel) -> None:
        self.kernel = kernel
        self.registers: dict[str, int] = {}
        self.predicates: dict[str, int] = {}
        for name, type_name in kernel.registers.items():
            table = self.predicates if type_name == "pred" else self.registers
            table[name] = len(table)
        self.register_count, self.predicate_count = len(self.registers), len(self.predicates)
        self.constants: dict[int, int] = {}
        self.constant_predicates: dict[bool, int] = {}
        self.specials: dict[int, int] = {}
        self.static_buffers: list[Variable] = []
        self.parameters = {parameter.name: parameter.offset for parameter in kernel.parameters}
        self.addresses: dict[str, int] = {}
        self.spaces: dict[str, str] = {}
        self.shared_bytes = self.local_bytes = 0
        self._place({**module.variables, **kernel.variables})

    def _place(self, variables: dict[str, Variable]) -> None:
        used = {item.name for instruction in self.kernel.instructions for item in _symbols(instruction.operands)}
        dynamic = []
        for variable in variables.values():
            self.spaces[variable.name] = variable.space
            if variable.space == "local":
                start = _align(self.local_bytes, variable.alignment)
                self.addresses[variable.name], self.local_bytes = start, start + variable.size
            elif variable.space != "shared":
                self.addresses[variable.name] = region_base(len(self.static_buffers))
                self.static_buffers.append(variable)
            elif variable.size == 0:
                dynamic.append(variable)
            elif variable.name in used:
                start = _align(self.shared_bytes, variable.alignment)
                self.addresses[variable.name], self.shared_bytes = SHARED_BASE + start, start + variable.size
        if dynamic and self.shared_bytes:
            self.shared_bytes = _align(self.shared_bytes, max(128, *(variable.alignment for variable in dynamic)))
        for variable in dynamic:
            self.addresses[variable.name] = SHARED_BASE + self.shared_bytes

    def new_predicate(self) -> int:
        self.predicate_count += 1
        return self.predicate_count - 1

    def constant(self, value: int, width: int = 8) -> int:
        value &= (1 << 8 * width) - 1
        if value not in self.constants:
            self.constants[value] = self._new_register()
        return self.constants[value]

    def _new_register(self) -> int:
        self.register_count += 1
        return self.register_count - 1

    def special(self, name: str, instruction: Instruction) -> int:
        if name not in SPECIALS:
            raise Unsupported(f"{instruction.where()}: undeclared or unsupported register {name}")
        number = SPECIALS[name]
        if number not in self.specials:
            self.specials[number] = self._new_register()
        return self.specials[number]

    def destination(self, operand: Operand, type_name: str, instruction: Instruction, wider: bool = False) -> int:
        if isinstance(operand, Sink):
            return -1
        if not isinstance(operand, Register) or operand.negated:
            raise Unsupported(f"{instruction.where()}: a destination must be a register")
        return self.register(operand, type_name, instruction, wider)

    def register(self, operand: Register, type_name: str, instruction: Instruction, wider: bool = False) -> int:
        declared = self.kernel.registers[operand.name]
        if (declared == "pred") != (type_name == "pred"):
            raise Unsupported(f"{instruction.where()}: {operand.name} is .{declared}, but .{type_name} is needed")
        if type_name == "pred":
            return self.predicates[operand.name]
        have, need = TYPE_BYTES[declared], TYPE_BYTES[type_name]
        if operand.negated or (have < need if wider else have != need):
            raise Unsupported(f"{instruction.where()}: {operand.name} is .{declared}, but .{type_name} is needed")
        return self.registers[operand.name]

    def source(self, operand: Operand, type_name: str, instruction: Instruction, wider: bool = False) -> int:
        width = TYPE_BYTES[type_name]
        if isinstance(operand, Register):
            return self.register(operand, type_name, instruction, wider)
        if isinstance(operand, Integer) and type_name not in FLOATS:
            if not -(1 << (8 * width - 1)) <= operand.value < 1 << (8 * width):
                raise Unsupported(f"{instruction.where()}: {operand.value} does not fit .{type_name}")
            return self.constant(operand.value, width)
        if isinstance(operand, Real):
            return self._real(operand, type_name, width, instruction)
        if isinstance(operand, Special):
            return self.special(operand.name, instruction)
        if isinstance(operand, Symbol):
            return self.constant(self.symbol_address(operand, instruction), width)
        raise Unsupported(f"{instruction.where()}: an operand is not a .{type_name} value")

    def _real(self, operand: Real, type_name: str, width: int, instruction: Instruction) -> int:
        if type_name in FLOATS:
            pack, unpack = FLOATS[type_name]
            if operand.width == 8 * width:
                return self.constant(operand.bits, width)
            return self.constant(struct.unpack(unpack, struct.pack(pack, operand.value))[0], width)
        if operand.width == 8 * width:
            return self.constant(operand.bits, width)
        raise Unsupported(f"{instruction.where()}: a floating-point constant does not fit .{type_name}")

    def predicate(self, operand: Operand, instruction: Instruction) -> tuple[int, int]:
        """The slot, and 1 if the operand is negated."""
        if isinstance(operand, Integer):
            value = operand.value != 0
            if value not in self.constant_predicates:
                self.constant_predicates[value] = self.new_predicate()
            return self.constant_predicates[value], 0
        if not isinstance(operand, Register):
            raise Unsupported(f"{instruction.where()}: an operand is not a predicate")
        return self.register(operand, "pred", instruction), int(operand.negated)

    def symbol_address(self, symbol: Symbol, instruction: Instruction) -> int:
        if symbol.name in self.addresses:
            return self.addresses[symbol.name] + symbol.offset
        if symbol.name in self.parameters:
            return self.parameters[symbol.name] + symbol.offset
        raise Unsupported(f"{instruction.where()}: unknown name {symbol.name!r}")

    def address(self, operand: Operand, space: str, instruction: Instruction) -> tuple[int, int, int]:
        """Slot of the base, offset, and 1 if the address is 32 bits wide and wraps there."""
        if not isinstance(operand, Address):
            raise Unsupported(f"{instruction.where()}: an address in brackets is missing")
        base = operand.base
        if isinstance(base, Register):
            width = TYPE_BYTES[self.kernel.registers[base.name]]
            small_space = space in ("shared", "local", "const", "param")
            if self.kernel.registers[base.name] == "pred" or (width != 8 and not (width == 4 and small_space)):
                raise Unsupported(f"{instruction.where()}: {base.name} cannot hold an address of this space")
            return self.registers[base.name], operand.offset, int(width == 4)
        if isinstance(base, Symbol):
            return self.constant(self.symbol_address(base, instruction)), operand.offset, 0
        if isinstance(base, Integer):
            return self.constant(base.value), operand.offset, 0
        raise Unsupported(f"{instruction.where()}: malformed address")


def items_of(operand: Operand) -> tuple[Operand, ...]:
    """The registers of a vector, or the one register."""
    return operand.items if isinstance(operand, Vector) else (operand,)


def space_number(name: str) -> int:
    return SPACES.index(name.split("::")[0] or "generic")


def _align(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def _symbols(operands: list[Operand]) -> list[Symbol]:
    found = []
    for operand in operands:
        if isinstance(operand, Symbol):
            found.append(operand)
        elif isinstance(operand, Address) and isinstance(operand.base, Symbol):
            found.append(operand.base)
        elif isinstance(operand, Vector):
            found.extend(_symbols(list(operand.items)))
    return found
