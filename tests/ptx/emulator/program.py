"""Parsed PTX: modules, kernels, instructions, operands."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Register:
    name: str  # unique in the kernel: registers of inner scopes carry a suffix
    negated: bool = False  # !%p


@dataclass(frozen=True)
class Special:
    name: str  # %tid.x


@dataclass(frozen=True)
class Integer:
    value: int


@dataclass(frozen=True)
class Real:
    value: float  # value of a decimal literal
    bits: int = 0
    width: int = 0  # 32: 0f..., 64: 0d..., 0: decimal


@dataclass(frozen=True)
class Symbol:
    name: str  # a variable, parameter or label
    offset: int = 0


@dataclass(frozen=True)
class Sink:
    """The operand `_`: the result is dropped."""


@dataclass(frozen=True)
class Address:
    base: Operand
    offset: int


@dataclass(frozen=True)
class Vector:
    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Pair:
    first: Operand
    second: Operand  # d|p


Operand = Register | Special | Integer | Real | Symbol | Sink | Address | Vector | Pair


@dataclass
class Instruction:
    opcode: str
    operands: list[Operand]
    guard: Register | None
    line: int
    source: tuple[int, int] | None = None  # file number and line of .loc
    text: str = ""

    def where(self) -> str:
        return f"'{self.text}' (line {self.line})"


@dataclass
class Parameter:
    name: str
    type: str
    count: int
    size: int
    alignment: int
    offset: int = 0


@dataclass
class Variable:
    name: str
    space: str
    size: int  # bytes, 0: .extern shared memory, sized at launch
    alignment: int
    data: bytes | None = None


@dataclass
class Kernel:
    name: str
    line: int
    parameters: list[Parameter] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)  # name -> type
    implicit: set[str] = field(default_factory=set)  # registers the compiler leaves undefined on purpose
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, list[str]] = field(default_factory=dict)  # .branchtargets
    variables: dict[str, Variable] = field(default_factory=dict)
    required_block: tuple[int, ...] | None = None
    largest_block: int | None = None
    cluster: tuple[int, ...] | None = None  # CTAs of a cluster along x, y, z
    registers_per_thread: int | None = None  # .maxnreg


@dataclass
class Module:
    target: str = ""
    kernels: dict[str, Kernel] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    files: dict[int, str] = field(default_factory=dict)
