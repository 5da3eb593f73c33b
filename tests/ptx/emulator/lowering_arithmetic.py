"""Lowering of arithmetic, comparisons, moves and conversions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from . import codegen
from .opcodes import ROWS
from .operands import items_of, space_number
from .program import Operand, Special, Vector
from .vocabulary import CLOCKS, TYPE_BYTES, TYPES

if TYPE_CHECKING:
    from .lowering import Lowering


def lower_expression(lowering: Lowering) -> None:
    form, type_name = lowering.match.form, lowering.match.type
    slots, values = [], []
    for index, (name, kind) in enumerate(codegen.operand_kinds(form.row, type_name)):
        value = 0
        if kind == "imm":
            slot, value = -1, lowering.immediate(index)
        elif kind == "pred" and name in ("p", "q", "d"):
            slot = lowering.slots.destination(lowering.operand(index), "pred", lowering.instruction)
        elif kind == "pred":
            slot, value = lowering.slots.predicate(lowering.operand(index), lowering.instruction)
        elif name == "d":
            slot = lowering.slots.destination(lowering.operand(index), kind, lowering.instruction)
        else:
            slot = lowering.source(index, kind)
        slots.append(slot)
        values.append(value)
    if slots[0] < 0:
        raise lowering.fail("the result has to go to a register")
    lowering.emit(codegen.handler_name(form.number, type_name), slots, values)


def lower_setp(lowering: Lowering) -> None:
    first, second = lowering.pair(0)
    destinations = [lowering.slots.destination(operand, "pred", lowering.instruction) for operand in (first, second)]
    _compare(lowering, lowering.match.form.number, destinations)


def lower_set(lowering: Lowering) -> None:
    """set is setp and a choice between two constants."""
    comparison = lowering.instruction.opcode.split(".")[1]
    row = next(
        number
        for number, row in enumerate(ROWS)
        if row.form.startswith(f"setp.{comparison}{{") and lowering.match.type in row.types.split()
    )
    result, written = lowering.slots.new_predicate(), lowering.match.chosen["as"]
    _compare(lowering, row, [result, -1])
    true = lowering.slots.constant(0x3F800000 if written == "f32" else 0xFFFFFFFF)
    to = lowering.slots.destination(lowering.operand(0), written, lowering.instruction)
    lowering.emit("select", [to, true, lowering.slots.constant(0), result], [0], counted=False)


def _compare(lowering: Lowering, row: int, destinations: list[int]) -> None:
    type_name = lowering.match.type
    compared = lowering.slots.new_predicate()
    lowering.emit(
        codegen.handler_name(row, type_name),
        [compared, lowering.source(1, type_name), lowering.source(2, type_name)],
        [0, 0, 0],
    )
    boolean = lowering.match.chosen.get("bool")
    if bool(boolean) != (len(lowering.instruction.operands) == 4):
        raise lowering.fail("a third source is needed exactly when there is a boolean operator")
    c, negated = lowering.slots.predicate(lowering.operand(3), lowering.instruction) if boolean else (-1, 0)
    operator = ("and", "or", "xor").index(boolean) if boolean else 3
    lowering.emit("second_predicate", [compared, *destinations, c], [operator, negated], counted=False)


def lower_carry(lowering: Lowering) -> None:
    name, *modifiers = lowering.instruction.opcode.split(".")
    type_name = lowering.match.type
    slots = [
        lowering.slots.destination(lowering.operand(0), type_name, lowering.instruction),
        lowering.source(1, type_name),
        lowering.source(2, type_name),
    ]
    lowering.emit(
        "add_carry", slots, [name.startswith("sub"), name.endswith("c"), "cc" in modifiers, 8 * TYPE_BYTES[type_name]]
    )


def lower_selp(lowering: Lowering) -> None:
    type_name = lowering.match.type
    predicate, negated = lowering.slots.predicate(lowering.operand(3), lowering.instruction)
    destination = lowering.slots.destination(lowering.operand(0), type_name, lowering.instruction)
    lowering.emit(
        "select", [destination, lowering.source(1, type_name), lowering.source(2, type_name), predicate], [negated]
    )


def lower_mov(lowering: Lowering) -> None:
    type_name = lowering.match.type
    to, source = lowering.instruction.operands
    if isinstance(source, Special) and source.name in CLOCKS:
        return lowering.emit(
            "read_clock", [lowering.slots.destination(to, type_name, lowering.instruction)], [CLOCKS[source.name]]
        )
    if isinstance(source, Vector) or isinstance(to, Vector):
        return _move_pieces(lowering, to, source, type_name)
    lowering.emit(
        "move", [lowering.slots.destination(to, type_name, lowering.instruction), lowering.source(1, type_name)]
    )


def _move_pieces(lowering: Lowering, to: Operand, source: Operand, type_name: str) -> None:
    pieces = items_of(source if isinstance(source, Vector) else to)
    bytes_each, rest = divmod(TYPE_BYTES[type_name], len(pieces))
    if rest or len(pieces) not in (2, 4) or bytes_each == 0:
        raise lowering.fail(f".{type_name} does not divide into {len(pieces)} elements")
    piece_type = f"b{8 * bytes_each}"
    if isinstance(source, Vector):
        slots = [lowering.slots.source(piece, piece_type, lowering.instruction) for piece in pieces]
        lowering.emit(
            "pack",
            [lowering.slots.destination(to, type_name, lowering.instruction), *slots],
            [len(pieces), 8 * bytes_each],
        )
    else:
        slots = [lowering.slots.destination(piece, piece_type, lowering.instruction) for piece in pieces]
        lowering.emit(
            "unpack",
            [*slots, lowering.slots.source(source, type_name, lowering.instruction)],
            [len(pieces), 8 * bytes_each],
        )


def lower_cvta(lowering: Lowering) -> None:
    window = lowering.match.chosen["window"].split("::")[0]
    slots = [
        lowering.slots.destination(lowering.operand(0), lowering.match.type, lowering.instruction),
        lowering.source(1, lowering.match.type),
    ]
    lowering.emit("to_window", slots, [space_number(window), int("to" in lowering.instruction.opcode.split("."))])


def lower_isspacep(lowering: Lowering) -> None:
    slot = lowering.slots.destination(lowering.operand(0), "pred", lowering.instruction)
    lowering.emit("is_space", [slot, lowering.source(1, "u64")], [space_number(lowering.match.chosen["window"])])


def lower_cvt(lowering: Lowering) -> None:
    to, source = [part for part in lowering.instruction.opcode.split(".") if part in TYPES][-2:]
    held = {"f16x2": "b32", "bf16x2": "b32", "tf32": "b32", "e4m3x2": "b16", "e5m2x2": "b16"}
    _check_rounding(lowering, to, source)
    slots = [lowering.slots.destination(lowering.operand(0), held.get(to, to), lowering.instruction, wider=True)]
    slots += [
        lowering.slots.source(operand, held.get(source, source), lowering.instruction, wider=True)
        for operand in lowering.instruction.operands[1:]
    ]
    destination = lowering.operand(0)
    width = TYPE_BYTES[lowering.code.kernel.registers[destination.name]] if hasattr(destination, "name") else 8
    chosen = lowering.match.chosen
    lowering.emit(
        "convert",
        ([*slots, -1])[:3],
        [TYPES.index(to), TYPES.index(source), width, int("satfinite" in chosen), int("relu" in chosen)],
    )


def _check_rounding(lowering: Lowering, to: str, source: str) -> None:
    """The manual asks for a rounding exactly where information can be lost to rounding."""
    floats, integers = ("bf16", "f16", "f32", "f64"), ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")
    chosen = lowering.match.chosen
    if source in floats and to in integers and "irnd" not in chosen:
        raise lowering.fail("a conversion from float to integer needs .rni, .rzi, .rmi or .rpi")
    if source in integers and to in floats and "rnd" not in chosen:
        raise lowering.fail("a conversion from integer to float needs .rn, .rz, .rm or .rp")
    narrows = (
        source in floats
        and to in floats
        and (floats.index(source) > floats.index(to) and TYPE_BYTES[source] > TYPE_BYTES[to])
    )
    if narrows and "rnd" not in chosen:
        raise lowering.fail("a conversion to a narrower float needs .rn, .rz, .rm or .rp")


ARITHMETIC_LOWERINGS: dict[str, Callable[[Lowering], None]] = {
    "expression": lower_expression,
    "setp": lower_setp,
    "set": lower_set,
    "carry": lower_carry,
    "selp": lower_selp,
    "mov": lower_mov,
    "cvta": lower_cvta,
    "isspacep": lower_isspacep,
    "cvt": lower_cvt,
}
