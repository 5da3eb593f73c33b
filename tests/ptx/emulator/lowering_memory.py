"""Lowering of loads, stores, atomics, asynchronous copies and fences."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .operands import space_number
from .vocabulary import TYPE_BYTES, TYPES

if TYPE_CHECKING:
    from .lowering import Lowering

ORDER_BITS = {"": 0, "weak": 0, "relaxed": 1, "volatile": 1, "mmio": 1, "acquire": 2, "release": 4, "acq_rel": 6}
ATOMIC_OPERATIONS = ("add", "min", "max", "inc", "dec", "and", "or", "xor", "exch", "cas")


def lower_load(lowering: Lowering) -> None:
    chosen, type_name, space = lowering.match.chosen, lowering.match.type, lowering.space()
    count = int(chosen.get("vec", "v1")[1:])
    address = lowering.operand(1)
    slot, offset, narrow = lowering.slots.address(address, space, lowering.instruction)
    base = getattr(getattr(address, "base", None), "name", "")
    if base in lowering.slots.parameters:
        lowering.code.parameters_read.add(base)
        space = "param" if space == "generic" else space
    to = [
        lowering.slots.destination(item, type_name, lowering.instruction, wider=True)
        for item in lowering.vector(0, count)
    ]
    widths = [
        TYPE_BYTES[lowering.code.kernel.registers[item.name]]
        for item in lowering.vector(0, count)
        if hasattr(item, "name")
    ]
    size = TYPE_BYTES[type_name]
    lowering.saw_access(space, size * count)
    lowering.emit(
        "load",
        [*to, slot],
        [
            space_number(space),
            size,
            count,
            int(type_name[0] == "s"),
            max(widths, default=8),
            ORDER_BITS[chosen.get("order", "")],
            offset,
            narrow,
        ],
    )


def lower_store(lowering: Lowering) -> None:
    chosen, type_name, space = lowering.match.chosen, lowering.match.type, lowering.space()
    if space in ("const", "param"):
        raise lowering.fail(f"cannot store to .{space}")
    count = int(chosen.get("vec", "v1")[1:])
    slot, offset, narrow = lowering.slots.address(lowering.operand(0), space, lowering.instruction)
    values = [
        lowering.slots.source(item, type_name, lowering.instruction, wider=True) for item in lowering.vector(1, count)
    ]
    size = TYPE_BYTES[type_name]
    lowering.saw_access(space, size * count)
    lowering.emit(
        "store",
        [slot, *values],
        [space_number(space), size, count, 0, 0, ORDER_BITS[chosen.get("order", "")], offset, narrow],
    )


def lower_atomic(lowering: Lowering) -> None:
    chosen, type_name, space = lowering.match.chosen, lowering.match.type, lowering.space()
    parts = lowering.instruction.opcode.split(".")
    operation = next(part for part in parts if part in ATOMIC_OPERATIONS)
    count = int(chosen.get("vec", "v1")[1:])
    returns = parts[0] == "atom"
    first = 1 if returns else 0
    slot, offset, narrow = lowering.slots.address(lowering.operand(first), space, lowering.instruction)
    to = (
        [lowering.slots.destination(item, type_name, lowering.instruction) for item in lowering.vector(0, count)]
        if returns
        else [-1] * count
    )
    b = [lowering.slots.source(item, type_name, lowering.instruction) for item in lowering.vector(first + 1, count)]
    c = [lowering.source(first + 2, type_name)] if operation == "cas" else [-1] * count
    size = TYPE_BYTES[type_name]
    lowering.saw_access(space, size * count)
    lowering.emit(
        "atomic",
        [*to, slot, *b, *c],
        [
            space_number(space),
            TYPES.index(type_name),
            size,
            count,
            ATOMIC_OPERATIONS.index(operation),
            ORDER_BITS[chosen.get("order", "")],
            offset,
            narrow,
        ],
    )


def lower_copy(lowering: Lowering) -> None:
    to, to_offset, narrow = lowering.slots.address(lowering.operand(0), "shared", lowering.instruction)
    source, source_offset, _ = lowering.slots.address(lowering.operand(1), "global", lowering.instruction)
    size = lowering.immediate(2)
    if size not in ((16,) if ".cg." in lowering.instruction.opcode else (4, 8, 16)):
        raise lowering.fail(f"cp.async cannot copy {size} bytes")
    rest = lowering.instruction.operands[3:]
    if "hint" in lowering.match.chosen:
        rest = rest[:-1]
    source_bytes, ignore, negated = -1, -1, 0
    if rest and lowering.code.kernel.registers.get(getattr(rest[0], "name", "")) == "pred":
        ignore, negated = lowering.slots.predicate(rest[0], lowering.instruction)
    elif rest:
        source_bytes = lowering.slots.source(rest[0], "u32", lowering.instruction)
    lowering.saw_access("shared", size)
    lowering.saw_access("global", size)
    lowering.emit("copy_async", [to, source, source_bytes, ignore], [size, to_offset, source_offset, narrow, negated])


def lower_commit(lowering: Lowering) -> None:
    lowering.emit("commit_copies")


def lower_wait(lowering: Lowering) -> None:
    lowering.emit("wait_copies", [], [lowering.immediate(0) if lowering.instruction.operands else -1])


def lower_fence(lowering: Lowering) -> None:
    lowering.emit("fence")


def lower_nothing(lowering: Lowering) -> None:
    lowering.emit("nothing")


MEMORY_LOWERINGS: dict[str, Callable[[Lowering], None]] = {
    "load": lower_load,
    "store": lower_store,
    "atomic": lower_atomic,
    "copy": lower_copy,
    "commit": lower_commit,
    "wait": lower_wait,
    "fence": lower_fence,
    "nothing": lower_nothing,
}
