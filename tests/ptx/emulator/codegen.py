"""C++ for the expressions of the opcode table: one function for each row and type."""

from __future__ import annotations

import functools

from .opcodes import ROWS
from .vocabulary import Row

# Functions of core/ that lowerings name; the generated ones follow them in handler_table.
HANDLERS = [
    "load",
    "store",
    "atomic",
    "to_window",
    "is_space",
    "fence",
    "copy_async",
    "commit_copies",
    "wait_copies",
    "wait_wgmma",
    "load_matrix",
    "store_matrix",
    "move_matrix",
    "multiply",
    "fence_wgmma",
    "warpgroup_multiply",
    "shuffle",
    "vote",
    "match",
    "reduce",
    "elect",
    "warp_barrier",
    "active_mask",
    "read_clock",
    "convert",
    "move",
    "pack",
    "unpack",
    "select",
    "second_predicate",
    "add_carry",
    "nothing",
    "trap",
]
WIDE = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
CPP_TYPES = {
    "f32": "float",
    "f64": "double",
    "f32x2": "float",
    "f16": "float",
    "bf16": "float",
    "f16x2": "float",
    "bf16x2": "float",
    "pred": "bool",
}


def handler_name(row_number: int, type_name: str) -> str:
    return f"row_{row_number}_{type_name or 'plain'}"


def operand_kinds(row: Row, type_name: str) -> list[tuple[str, str]]:
    """Name and kind (a PTX type, `pred` or `imm`) of each operand of an expression row."""
    kinds = []
    for operand in row.operands.split(","):
        name, _, kind = operand.strip().partition(":")
        kinds.append((name, WIDE[type_name] if kind == "wide" else kind or type_name))
    return kinds


def _setp_operands(type_name: str) -> list[tuple[str, str]]:
    return [("p", "pred"), ("a", type_name), ("b", type_name)]


def _function(number: int, row: Row, type_name: str) -> str:
    setp = row.result.startswith("@setp ")
    expression = row.result.removeprefix("@setp ")
    operands = _setp_operands(type_name) if setp else operand_kinds(row, type_name)
    tags = ", ".join(f"tag::{kind}_" for _, kind in operands if kind != "imm")
    parameters = ", ".join(f"auto {name}" for name, kind in operands[1:] if kind != "imm")
    lines = [f"void {handler_name(number, type_name)}(Warp& warp, const Instruction& i, u32 mask) {{"]
    if type_name and type_name not in ("u16x2", "s16x2"):
        base = type_name.replace("b", "u") if type_name in ("b8", "b16", "b32", "b64") else type_name
        lines.append(f"  using T [[maybe_unused]] = {CPP_TYPES.get(type_name, base)};")
    lines += [f"  const u32 {name} = (u32)i.value[{k}];" for k, (name, kind) in enumerate(operands) if kind == "imm"]
    lines.append(f"  map<{tags}>(warp, i, mask, [&]({parameters}) {{ return {expression}; }});")
    return "\n".join([*lines, "}"])


@functools.cache
def generated() -> tuple[tuple[str, str], ...]:
    """(name, C++ source) of every function."""
    functions = []
    for number, row in enumerate(ROWS):
        if row.result.startswith("@") and not row.result.startswith("@setp "):
            continue
        for type_name in row.types.split() or [""]:
            functions.append((handler_name(number, type_name), _function(number, row, type_name)))
    return tuple(functions)


@functools.cache
def handler_numbers() -> dict[str, int]:
    return {name: number for number, name in enumerate([*HANDLERS, *(name for name, _ in generated())])}


def sources(parts: int) -> dict[str, str]:
    """The generated translation units, by file name: the functions in `parts` pieces, and the table of all handlers."""
    names = [name for name, _ in generated()]
    head = ["// Generated from opcodes.py by codegen.py.", '#include "handlers.h"', "namespace ptx {"]
    units = {}
    for part in range(parts):
        pieces = [code for _, code in generated()[part::parts]]
        units[f"generated_{part}.cpp"] = "\n".join([*head, *pieces, "}  // namespace ptx", ""])
    declarations = [f"void {name}(Warp&, const Instruction&, u32);" for name in names]
    table = [f"    handler::{name}," for name in HANDLERS] + [f"    {name}," for name in names]
    units["generated_table.cpp"] = "\n".join(
        [*head, *declarations, "const Handler handler_table[] = {", *table, "};", "}  // namespace ptx", ""]
    )
    return units
