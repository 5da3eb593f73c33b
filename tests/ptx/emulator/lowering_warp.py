"""Lowering of barriers, of exchange between lanes, and of control flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .program import Symbol

if TYPE_CHECKING:
    from .lowering import Lowering


def lower_barrier(lowering: Lowering) -> None:
    parts = lowering.instruction.opcode.split(".")
    if "red" not in parts:
        threads = lowering.source(1, "u32") if len(lowering.instruction.operands) > 1 else -1
        return lowering.emit(
            "nothing", [lowering.source(0, "u32"), threads, -1, -1], [int("arrive" in parts), 0], flow="barrier"
        )
    mode = 2 + ["popc", "and", "or"].index(next(part for part in parts if part in ("popc", "and", "or")))
    destination = lowering.slots.destination(lowering.operand(0), "u32" if mode == 2 else "pred", lowering.instruction)
    predicate, negated = lowering.slots.predicate(lowering.operand(2), lowering.instruction)
    lowering.emit("nothing", [lowering.source(1, "u32"), -1, destination, predicate], [mode, negated], flow="barrier")


def lower_warp_barrier(lowering: Lowering) -> None:
    lowering.emit("warp_barrier", flow="warp_sync", members=lowering.source(0, "b32"))


def lower_shuffle(lowering: Lowering) -> None:
    to, predicate = lowering.pair(0)
    slots = [
        lowering.slots.destination(to, "b32", lowering.instruction),
        lowering.slots.destination(predicate, "pred", lowering.instruction),
    ]
    mode = ("up", "down", "bfly", "idx").index(lowering.instruction.opcode.split(".")[2])
    lowering.emit(
        "shuffle",
        [*slots, *(lowering.source(k, "b32") for k in (1, 2, 3))],
        [mode],
        flow="warp_sync",
        members=lowering.source(4, "b32"),
    )


def lower_vote(lowering: Lowering) -> None:
    mode = ("ballot", "all", "any", "uni").index(lowering.instruction.opcode.split(".")[2])
    destination = lowering.slots.destination(lowering.operand(0), "pred" if mode else "b32", lowering.instruction)
    predicate, negated = lowering.slots.predicate(lowering.operand(1), lowering.instruction)
    lowering.emit(
        "vote", [destination, predicate], [mode, negated], flow="warp_sync", members=lowering.source(2, "b32")
    )


def lower_match(lowering: Lowering) -> None:
    to, predicate = lowering.pair(0)
    slots = [
        lowering.slots.destination(to, "b32", lowering.instruction),
        lowering.slots.destination(predicate, "pred", lowering.instruction),
    ]
    lowering.emit(
        "match",
        [*slots, lowering.source(1, lowering.match.type)],
        [int(".all." in lowering.instruction.opcode)],
        flow="warp_sync",
        members=lowering.source(2, "b32"),
    )


def lower_active(lowering: Lowering) -> None:
    lowering.emit("active_mask", [lowering.slots.destination(lowering.operand(0), "b32", lowering.instruction)])


def lower_redux(lowering: Lowering) -> None:
    parts = lowering.instruction.opcode.split(".")
    type_name = parts[-1]
    operation = ("add", "min", "max", "and", "or", "xor").index(parts[2])
    real = 0 if type_name != "f32" else (2 if "NaN" in parts else 1) | (4 if "abs" in parts else 0)
    slots = [
        lowering.slots.destination(lowering.operand(0), type_name, lowering.instruction),
        lowering.source(1, type_name),
    ]
    lowering.emit(
        "reduce", slots, [operation, int(type_name == "s32"), real], flow="warp_sync", members=lowering.source(2, "b32")
    )


def lower_elect(lowering: Lowering) -> None:
    to, predicate = lowering.pair(0)
    slots = [
        lowering.slots.destination(to, "b32", lowering.instruction),
        lowering.slots.destination(predicate, "pred", lowering.instruction),
    ]
    if slots[1] < 0:
        raise lowering.fail("elect.sync needs a predicate")
    lowering.emit("elect", slots, flow="warp_sync", members=lowering.source(1, "b32"))


def lower_branch(lowering: Lowering) -> None:
    target = lowering.operand(0)
    if not isinstance(target, Symbol):
        raise lowering.fail("the target must be a label")
    lowering.jumps.append((len(lowering.code.value_pool), [target.name], lowering.instruction))
    lowering.emit("nothing", [], [0], flow="branch")


def lower_indexed_branch(lowering: Lowering) -> None:
    table = lowering.operand(1)
    if not isinstance(table, Symbol) or table.name not in lowering.code.kernel.tables:
        raise lowering.fail("the second operand must be a list of branch targets")
    targets = lowering.code.kernel.tables[table.name]
    lowering.jumps.append((len(lowering.code.value_pool) + 1, targets, lowering.instruction))
    lowering.emit("nothing", [lowering.source(0, "u32")], [len(targets), *[0] * len(targets)], flow="indexed_branch")


def lower_exit(lowering: Lowering) -> None:
    lowering.emit("nothing", flow="exit")


def lower_trap(lowering: Lowering) -> None:
    lowering.emit("trap")


WARP_LOWERINGS: dict[str, Callable[[Lowering], None]] = {
    "barrier": lower_barrier,
    "warp_barrier": lower_warp_barrier,
    "shuffle": lower_shuffle,
    "vote": lower_vote,
    "match": lower_match,
    "active": lower_active,
    "redux": lower_redux,
    "elect": lower_elect,
    "branch": lower_branch,
    "indexed_branch": lower_indexed_branch,
    "exit": lower_exit,
    "trap": lower_trap,
}
