"""Lowering of ldmatrix, stmatrix, movmatrix, mma and wgmma."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from .program import Integer, Vector
from .vocabulary import TYPES

if TYPE_CHECKING:
    from .lowering import Lowering

TYPE_BITS = {
    "f64": 64,
    "f32": 32,
    "s32": 32,
    "tf32": 32,
    "f16": 16,
    "bf16": 16,
    "s8": 8,
    "u8": 8,
    "e4m3": 8,
    "e5m2": 8,
    "s4": 4,
    "u4": 4,
    "b1": 1,
}


def held_in(type_name: str) -> str:
    """The register type that holds elements of a matrix type."""
    return type_name if type_name in ("f64", "f32", "s32") else "b32"


def lower_ldmatrix(lowering: Lowering) -> None:
    parts = lowering.instruction.opcode.split(".")
    count = int(lowering.match.chosen["tiles"][1:])
    slot, offset, narrow = lowering.slots.address(lowering.operand(1), lowering.space(), lowering.instruction)
    to = [lowering.slots.destination(item, "b32", lowering.instruction) for item in lowering.vector(0, count)]
    lowering.saw_access("shared", 16)
    lowering.emit("load_matrix", [*to, slot], [count, int("trans" in parts), offset, narrow], flow="aligned_sync")


def lower_stmatrix(lowering: Lowering) -> None:
    parts = lowering.instruction.opcode.split(".")
    count = int(lowering.match.chosen["tiles"][1:])
    slot, offset, narrow = lowering.slots.address(lowering.operand(0), lowering.space(), lowering.instruction)
    values = [lowering.slots.source(item, "b32", lowering.instruction) for item in lowering.vector(1, count)]
    lowering.saw_access("shared", 16)
    lowering.emit("store_matrix", [slot, *values], [count, int("trans" in parts), offset, narrow], flow="aligned_sync")


def lower_movmatrix(lowering: Lowering) -> None:
    to = lowering.slots.destination(lowering.operand(0), "b32", lowering.instruction)
    lowering.emit("move_matrix", [to, lowering.source(1, "b32")], flow="aligned_sync")


def lower_mma(lowering: Lowering) -> None:
    parts = lowering.instruction.opcode.split(".")
    shape = re.fullmatch(r"m(\d+)n8k(\d+)", parts[3])
    assert shape is not None
    rows, k = int(shape[1]), int(shape[2])
    d_type, a_type, b_type, c_type = [part for part in parts[4:] if part in TYPES][:4]
    bits = TYPE_BITS[a_type]
    a_count, b_count = max(1, rows * k * bits // max(32, bits) // 32), max(1, 8 * k * bits // max(32, bits) // 32)
    c_count = rows * 8 // 32 // (2 if c_type == "f16" else 1)
    held_d, held_a = held_in(d_type), held_in(a_type)
    slots = [lowering.slots.destination(item, held_d, lowering.instruction) for item in lowering.vector(0, c_count)]
    for index, count, held in ((1, a_count, held_a), (2, b_count, held_a), (3, c_count, held_d)):
        slots += [lowering.slots.source(item, held, lowering.instruction) for item in lowering.vector(index, count)]
    bit_operation = 1 if "xor" in parts else 2 if "and" in parts else 0
    lowering.emit(
        "multiply",
        slots,
        [
            rows,
            k,
            TYPES.index(a_type),
            TYPES.index(b_type),
            TYPES.index(d_type),
            a_count,
            b_count,
            c_count,
            int("satfinite" in parts),
            bit_operation,
            TYPES.index(c_type),
        ],
        flow="aligned_sync",
    )


def lower_wgmma(lowering: Lowering) -> None:
    parts = lowering.instruction.opcode.split(".")
    shape = re.fullmatch(r"m64n(\d+)k(\d+)", parts[4])
    assert shape is not None
    n, k, d_type, a_type = int(shape[1]), int(shape[2]), parts[5], parts[6]
    if len(lowering.instruction.operands) < 6:
        raise lowering.fail("wgmma needs d, a, b, scale-d, scale-a and scale-b")
    d = [
        lowering.slots.destination(item, held_in(d_type), lowering.instruction, wider=d_type == "f32")
        for item in lowering.vector(0, n // 4 if d_type == "f16" else n // 2)
    ]
    from_registers = isinstance(lowering.operand(1), Vector)
    if from_registers:
        a = [lowering.slots.source(item, "b32", lowering.instruction) for item in lowering.vector(1, 4)]
    else:
        a = [lowering.source(1, "b64")]
    scale, _ = lowering.slots.predicate(lowering.operand(3), lowering.instruction)
    immediates = [item.value for item in lowering.instruction.operands[4:] if isinstance(item, Integer)]
    transposes = immediates[2:]
    expected = 0 if a_type == "tf32" else 1 if from_registers else 2
    if len(transposes) != expected or len(immediates) + 4 != len(lowering.instruction.operands):
        raise lowering.fail(f"wgmma of this form has {2 + expected} immediate operands")
    a_transposed, b_transposed = ([0, *transposes] if from_registers else transposes)[:2] if expected else (0, 0)
    lowering.emit(
        "warpgroup_multiply",
        [*d, *a, lowering.source(2, "b64"), scale],
        [
            n,
            k,
            TYPES.index(a_type),
            int(from_registers),
            int(immediates[0] < 0),
            int(immediates[1] < 0),
            a_transposed,
            b_transposed,
            int(d_type == "f16"),
        ],
        flow="aligned_sync",
    )


def lower_wgmma_fence(lowering: Lowering) -> None:
    lowering.emit("fence_wgmma", flow="aligned_sync")


def lower_wgmma_wait(lowering: Lowering) -> None:
    lowering.emit("wait_wgmma", [], [lowering.immediate(0)], flow="aligned_sync")


MATRIX_LOWERINGS: dict[str, Callable[[Lowering], None]] = {
    "ldmatrix": lower_ldmatrix,
    "stmatrix": lower_stmatrix,
    "movmatrix": lower_movmatrix,
    "mma": lower_mma,
    "wgmma": lower_wgmma,
    "wgmma_fence": lower_wgmma_fence,
    "wgmma_wait": lower_wgmma_wait,
}
