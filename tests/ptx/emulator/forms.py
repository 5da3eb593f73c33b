"""Matching an opcode against the forms of opcodes.py."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import NamedTuple

from .errors import Unsupported
from .opcodes import CONVERSIONS, ROWS
from .program import Instruction
from .vocabulary import MODIFIERS, Row


@dataclass
class Form:
    """A parsed row: the parts of the opcode in their order, and those that may come anywhere after the name."""

    row: Row
    number: int
    name: str
    required: list[tuple[str, frozenset[str]]]
    optional: list[tuple[str, frozenset[str]]]
    least: int
    most: int


class Match(NamedTuple):
    form: Form
    chosen: dict[str, str]  # modifier or "type" -> what the opcode says

    @property
    def type(self) -> str:
        return self.chosen.get("type", "")


def _choices(name: str, row: Row) -> frozenset[str]:
    if name == "type":
        return frozenset(row.types.split())
    if name == "totype":
        return frozenset(CONVERSIONS.split())
    return frozenset(MODIFIERS.get(name, name).split())


def take_apart(row: Row, number: int) -> Form:
    name, *_ = re.split(r"[.{]", row.form)
    required: list[tuple[str, frozenset[str]]] = []
    optional: list[tuple[str, frozenset[str]]] = []
    for token in re.findall(r"\{\.[^}]+\}|\.[^.{]+", row.form[len(name) :]):
        modifier = token.strip("{}")[1:]
        (optional if token.startswith("{") else required).append((modifier, _choices(modifier, row)))
    operands = [operand.strip() for operand in row.operands.split(",") if operand.strip()]
    return Form(row, number, name, required, optional, sum(not o.endswith("?") for o in operands), len(operands))


@functools.cache
def forms() -> dict[str, list[Form]]:
    by_name: dict[str, list[Form]] = {}
    for number, row in enumerate(ROWS):
        form = take_apart(row, number)
        by_name.setdefault(form.name, []).append(form)
    return by_name


def _fit(form: Form, modifiers: list[str]) -> dict[str, str] | None:
    chosen: dict[str, str] = {}
    waiting = list(form.required)
    for modifier in modifiers:
        if waiting and modifier in waiting[0][1]:
            chosen[waiting.pop(0)[0]] = modifier
            continue
        for name, choices in form.optional:
            if modifier in choices and name not in chosen:
                chosen[name] = modifier
                break
        else:
            return None
    return None if waiting else chosen


@functools.lru_cache(maxsize=4096)
def matches(opcode: str) -> tuple[Match, ...]:
    name, *modifiers = opcode.split(".")
    found = ((form, _fit(form, modifiers)) for form in forms().get(name, ()))
    return tuple(Match(form, chosen) for form, chosen in found if chosen is not None)


def match(instruction: Instruction) -> Match:
    """The form of an instruction; Unsupported if no row of the table fits its modifiers and its number of operands."""
    candidates = matches(instruction.opcode)
    count = len(instruction.operands)
    for candidate in candidates:
        if candidate.form.least <= count <= candidate.form.most:
            return candidate
    if candidates:
        form = candidates[0].form
        expected = str(form.least) if form.least == form.most else f"{form.least} to {form.most}"
        raise Unsupported(f"{instruction.where()}: {instruction.opcode} takes {expected} operands, not {count}")
    name, *modifiers = instruction.opcode.split(".")
    known = forms().get(name)
    if not known:
        raise Unsupported(f"{instruction.where()}: unknown instruction {name!r}")
    vocabulary = set().union(*(choices for form in known for _, choices in form.required + form.optional))
    strange = [f".{modifier}" for modifier in modifiers if modifier not in vocabulary]
    reason = (
        f"unknown modifier {', '.join(strange)}"
        if strange
        else "no form of the instruction has these modifiers together"
    )
    raise Unsupported(f"{instruction.where()}: {instruction.opcode}: {reason}")
