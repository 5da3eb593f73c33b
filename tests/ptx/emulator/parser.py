"""Tokens to modules: directives, scopes, declarations, instructions."""

from __future__ import annotations

import re
import struct
from typing import NoReturn

from . import declarations
from .errors import Unsupported
from .forms import matches
from .lexer import Token, integer, tokens
from .program import (
    Address,
    Instruction,
    Integer,
    Kernel,
    Module,
    Operand,
    Pair,
    Real,
    Register,
    Sink,
    Special,
    Symbol,
    Vector,
)

IGNORED_IN_BODY = (".pragma", ".param", ".callprototype", ".noreturn", ".abi_preserve", ".abi_preserve_control")


def parse(text: str) -> Module:
    """Parses PTX text; raises Unsupported where it is malformed."""
    return Parser(text).module()


class Parser:
    """Recursive descent over the tokens; `position` is the next one."""

    def __init__(self, text: str) -> None:
        self.tokens, self.implicit = tokens(text)
        self.position = 0
        self.parsed = Module()
        self.scopes = 0
        self.source: tuple[int, int] | None = None

    def fail(self, message: str) -> NoReturn:
        last = self.tokens[min(self.position, len(self.tokens)) - 1] if self.tokens else Token("", 0)
        raise Unsupported(f"line {last.line}: {message}")

    def peek(self, ahead: int = 0) -> str:
        at = self.position + ahead
        return self.tokens[at].text if at < len(self.tokens) else ""

    def next(self) -> str:
        if self.position >= len(self.tokens):
            self.fail("the text ends in the middle of a statement")
        self.position += 1
        return self.tokens[self.position - 1].text

    def expect(self, wanted: str) -> None:
        got = self.next()
        if got != wanted:
            self.fail(f"expected {wanted!r}, got {got!r}")

    def number(self) -> int:
        text = self.next()
        value = integer(text)
        if value is None:
            self.fail(f"expected a number, got {text!r}")
        return value

    def line(self) -> int:
        return self.tokens[self.position - 1].line

    def skip_to(self, end: str) -> None:
        while self.next() != end:
            pass

    def skip_block(self) -> None:
        depth = 0
        while True:
            token = self.next()
            depth += (token == "{") - (token == "}")
            if depth == 0:
                return

    def module(self) -> Module:
        while self.peek():
            token = self.next()
            if token in (".visible", ".extern", ".weak", ".common", ";"):
                continue
            if token == ".version":
                self.next()
            elif token == ".target":
                self.parsed.target = self.next()
                while self.peek() == ",":
                    self.next(), self.next()
            elif token == ".address_size":
                if self.number() != 64:
                    self.fail("only .address_size 64 is supported")
            elif token == ".file":
                number = self.number()
                self.parsed.files[number] = self.next().strip('"')
                while self.peek() == ",":
                    self.next(), self.next()
            elif token == ".section":
                while self.peek() != "{":
                    self.next()
                self.skip_block()
            elif token in (".global", ".const", ".shared"):
                variable = declarations.variable(self, token[1:])
                self.parsed.variables[variable.name] = variable
            elif token == ".entry":
                self.kernel()
            elif token == ".func":
                self.function()
            else:
                self.fail(f"unexpected {token!r} outside of a kernel")
        return self.parsed

    def function(self) -> None:
        """Functions are skipped; a call to one is unsupported."""
        while self.peek() not in (";", "{"):
            self.next()
        if self.peek() == "{":
            self.skip_block()
        else:
            self.next()

    def kernel(self) -> None:
        kernel = Kernel(self.next(), self.line(), implicit=self.implicit)
        if kernel.name in self.parsed.kernels:
            self.fail(f"kernel {kernel.name!r} is defined twice")
        if self.peek() == "(":
            declarations.parameters(self, kernel)
        declarations.launch_bounds(self, kernel)
        self.expect("{")
        self.source = None
        self.body(kernel, [{}])
        declarations.check_labels(self, kernel)
        self.parsed.kernels[kernel.name] = kernel

    def body(self, kernel: Kernel, scopes: list[dict[str, str]]) -> None:
        while True:
            token = self.next()
            if token == "}":
                return
            if token == "{":
                self.scopes += 1
                self.body(kernel, [*scopes, {}])
            elif token == ";":
                continue
            elif token == ".reg":
                declarations.registers(self, kernel, scopes, self.scopes)
            elif token in (".shared", ".local"):
                variable = declarations.variable(self, token[1:])
                kernel.variables[variable.name] = variable
            elif token == ".loc":
                self.location()
            elif token in IGNORED_IN_BODY:
                self.skip_to(";")
            elif self.peek() == ":":
                self.label(kernel, token)
            elif token.startswith("."):
                self.fail(f"unsupported directive {token!r}")
            else:
                self.instruction(kernel, scopes, token)

    def location(self) -> None:
        self.source = (self.number(), self.number())
        line = self.line()
        while self.position < len(self.tokens) and self.tokens[self.position].line == line:
            self.next()

    def label(self, kernel: Kernel, name: str) -> None:
        self.next()
        if name in kernel.labels or name in kernel.tables:
            self.fail(f"label {name!r} is defined twice")
        if self.peek() != ".branchtargets":
            kernel.labels[name] = len(kernel.instructions)
            return
        self.next()
        targets = []
        while (token := self.next()) != ";":
            if token != ",":
                targets.append(token)
        kernel.tables[name] = targets

    def instruction(self, kernel: Kernel, scopes: list[dict[str, str]], token: str) -> None:
        start = self.position - 1
        line = self.line()
        guard = None
        if token == "@":
            negated = self.peek() == "!"
            if negated:
                self.next()
            name = self.next()
            resolved = resolve(scopes, name)
            if resolved is None or kernel.registers[resolved] != "pred":
                self.fail(f"the guard {name!r} is not a declared predicate")
            guard = Register(resolved, negated)
            token = self.next()
        if not re.fullmatch(r"[a-z][\w.:]*", token):
            self.fail(f"expected an instruction, got {token!r}")
        opcode_line = self.line()
        operands: list[Operand] = []
        if not matches(token):  # refused by its name, whatever its operands look like
            while self.peek() != ";":
                self.next()
        while self.peek() != ";":
            operands.append(self.operand(scopes))
            if self.peek() == "|":
                self.next()
                operands[-1] = Pair(operands[-1], self.operand(scopes))
            if self.peek() == ",":
                self.next()
                if self.peek() == ";":
                    self.fail(f"an operand is missing at the end of {token!r}")
            elif self.peek() != ";":
                self.fail(f"expected ',' or ';' in {token!r}, got {self.peek()!r}")
        text = " ".join(entry.text for entry in self.tokens[start : self.position])
        self.expect(";")
        if len(text) > 120:
            text = text[:117] + "..."
        kernel.instructions.append(Instruction(token, operands, guard, opcode_line or line, self.source, text))

    def operand(self, scopes: list[dict[str, str]]) -> Operand:
        token = self.next()
        if token in ("{", "("):
            items = []
            while self.peek() not in ("}", ")"):
                items.append(self.operand(scopes))
                if self.peek() == ",":
                    self.next()
            self.next()
            return Vector(tuple(items))
        if token == "[":
            return self.address(scopes)
        if token == "-":
            return self.negative(scopes)
        if token == "!":
            inner = self.operand(scopes)
            if not isinstance(inner, Register):
                self.fail("'!' is before something that is not a predicate")
            return Register(inner.name, negated=True)
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", token):
            bits = int(token[2:], 16)
            return Real(struct.unpack("<f", struct.pack("<I", bits))[0], bits, 32)
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", token):
            bits = int(token[2:], 16)
            return Real(struct.unpack("<d", struct.pack("<Q", bits))[0], bits, 64)
        value = integer(token)
        if value is not None:
            return Integer(value)
        if re.fullmatch(r"\d[\d.]*(?:[eE][+-]?\d+)?", token):
            return Real(float(token))
        return self.name(scopes, token)

    def negative(self, scopes: list[dict[str, str]]) -> Operand:
        inner = self.operand(scopes)
        if isinstance(inner, Integer):
            return Integer(-inner.value)
        if isinstance(inner, Real) and not inner.width:
            return Real(-inner.value)
        self.fail("'-' is before something that is not a number")

    def name(self, scopes: list[dict[str, str]], token: str) -> Operand:
        resolved = resolve(scopes, token)
        if resolved is not None:
            return Register(resolved)
        if token == "_":
            return Sink()
        if token == "WARP_SZ":
            return Integer(32)
        if not re.fullmatch(r"[%$_a-zA-Z][\w$.]*", token):
            self.fail(f"expected an operand, got {token!r}")
        if token.startswith("%"):
            return Special(token)
        if self.peek() in ("+", "-") and self.peek(1) and integer(self.peek(1)) is not None:
            sign = 1 if self.next() == "+" else -1
            return Symbol(token, sign * self.number())
        return Symbol(token)

    def address(self, scopes: list[dict[str, str]]) -> Address:
        base = self.operand(scopes)
        offset = 0
        if isinstance(base, Symbol):
            base, offset = Symbol(base.name), base.offset
        while self.peek() in ("+", "-"):
            sign = 1 if self.next() == "+" else -1
            if self.peek() == "-":
                self.next()
                sign = -sign
            offset += sign * self.number()
        self.expect("]")
        return Address(base, offset)


def resolve(scopes: list[dict[str, str]], name: str) -> str | None:
    """The unique name of a register, from the innermost scope that declares it."""
    for scope in reversed(scopes):
        if name in scope:
            return scope[name]
    return None
