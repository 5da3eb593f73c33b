"""Declarations: kernel parameters, launch bounds, registers, variables with their initial values."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from .lexer import integer
from .program import Kernel, Parameter, Variable
from .vocabulary import TYPE_BYTES

if TYPE_CHECKING:
    from .parser import Parser

REGISTER_TYPES = {name for name in TYPE_BYTES if name not in ("tf32", "e4m3", "e5m2", "e4m3x2", "e5m2x2", "f32x2")}


def parameters(parser: Parser, kernel: Kernel) -> None:
    parser.expect("(")
    offset = 0
    while parser.peek() != ")":
        if parser.peek() == ",":
            parser.next()
        parser.expect(".param")
        type_name, alignment = "", 0
        while parser.peek().startswith("."):
            token = parser.next()
            if token == ".align" and not type_name:
                alignment = parser.number()
            elif token == ".align":
                parser.number()  # alignment of the memory that a pointer points to
            elif token[1:] in TYPE_BYTES and not type_name:
                type_name = token[1:]
        if not type_name:
            parser.fail("a parameter has no type")
        name = parser.next()
        count = 1
        if parser.peek() == "[":
            parser.next()
            count = parser.number()
            parser.expect("]")
        element = TYPE_BYTES[type_name]
        alignment = max(alignment, element)
        offset = -(-offset // alignment) * alignment
        kernel.parameters.append(Parameter(name, type_name, count, element * count, alignment, offset))
        offset += element * count
    parser.expect(")")


def launch_bounds(parser: Parser, kernel: Kernel) -> None:
    while parser.peek() != "{":
        directive = parser.next()
        if not directive.startswith("."):
            parser.fail(f"expected the kernel's body, got {directive!r}")
        numbers = []
        while integer(parser.peek()) is not None:
            numbers.append(parser.number())
            if parser.peek() == ",":
                parser.next()
        if directive == ".reqntid":
            kernel.required_block = tuple(numbers + [1] * (3 - len(numbers)))
        elif directive == ".maxntid":
            kernel.largest_block = 1
            for number in numbers:
                kernel.largest_block *= number
        elif directive == ".reqnctapercluster":
            kernel.cluster = tuple(numbers + [1] * (3 - len(numbers)))
        elif directive == ".maxnreg":
            kernel.registers_per_thread = numbers[0]


def registers(parser: Parser, kernel: Kernel, scopes: list[dict[str, str]], scope_number: int) -> None:
    type_name = parser.next()[1:]
    if type_name in ("v2", "v4"):
        parser.fail("vector registers are not supported")
    if type_name not in REGISTER_TYPES:
        parser.fail(f"unknown register type .{type_name}")
    while True:
        stem = parser.next()
        names = [stem]
        if parser.peek() == "<":
            parser.next()
            names = [f"{stem}{number}" for number in range(parser.number())]
            parser.expect(">")
        for name in names:
            unique = name if len(scopes) == 1 else f"{name}#{scope_number}"
            if name in scopes[-1]:
                parser.fail(f"register {name!r} is declared twice")
            scopes[-1][name] = unique
            kernel.registers[unique] = type_name
        separator = parser.next()
        if separator == ";":
            return
        if separator != ",":
            parser.fail(f"expected ',' or ';' in a register declaration, got {separator!r}")


def variable(parser: Parser, space: str) -> Variable:
    alignment, type_name = 1, ""
    while parser.peek().startswith("."):
        token = parser.next()
        if token == ".align":
            alignment = parser.number()
        elif token[1:] in TYPE_BYTES:
            type_name = token[1:]
    if not type_name:
        parser.fail("a variable has no type")
    name = parser.next()
    element, count = TYPE_BYTES[type_name], 1
    while parser.peek() == "[":
        parser.next()
        count = 0 if parser.peek() == "]" else count * parser.number()
        parser.expect("]")
    data = None
    if parser.peek() == "=":
        parser.next()
        data = b"".join(_initial_value(parser, token, type_name) for token in _initialiser(parser))
        if count == 0:
            count = len(data) // element
        data = data.ljust(element * count, b"\0")
    parser.expect(";")
    return Variable(name, space, element * count, max(alignment, element), data)


def _initialiser(parser: Parser) -> list[str]:
    values: list[str] = []
    depth = 0
    while True:
        token = parser.next()
        if token == "{":
            depth += 1
        elif token == "}":
            depth -= 1
        elif token == "-":
            values.append("-" + parser.next())
        elif token != ",":
            values.append(token)
        if depth == 0:
            return values


def _initial_value(parser: Parser, token: str, type_name: str) -> bytes:
    size = TYPE_BYTES[type_name]
    negative = token.startswith("-")
    value = integer(token.lstrip("-"))
    if value is not None and type_name in ("f32", "f64"):
        return struct.pack("<f" if size == 4 else "<d", -value if negative else value)
    if value is None and token[:2].lower() in ("0f", "0d"):
        value = int(token[2:], 16)
    if value is None:
        parser.fail(f"unsupported initial value {token!r}")
    return ((-value if negative else value) & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def check_labels(parser: Parser, kernel: Kernel) -> None:
    for name, targets in kernel.tables.items():
        for target in targets:
            if target not in kernel.labels:
                parser.fail(
                    f"branch table {name!r} of kernel {kernel.name!r} names the label {target!r}, which does not exist"
                )
