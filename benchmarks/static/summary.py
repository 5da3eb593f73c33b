"""The tables of docs/gpu_tables.md, from kernels.csv."""

from collections.abc import Iterable

from benchmarks.pages import BACKENDS
from benchmarks.static.occupancy import occupancy
from benchmarks.static.table import PIPE_COLUMNS, Row

CHIPS = {"80": "sm_80", "86": "sm_86", "89": "sm_89", "90": "sm_90a"}


def render(rows: list[Row]) -> str:
    parts = (
        resources(rows),
        "Instructions of a whole kernel by pipe, as they are in its machine code, and the bound of its main loop:\n"
        "fp16, sm_80, attention with D 64, gates, masks and one softmax per source, the rest with width 256.",
        instructions(rows),
        "Bound of the main loop in % of the tensor peak, busiest pipe, tile, warps: fp16, D 64, a softmax per source.",
        bounds(rows),
    )
    return "\n\n".join(parts)


def resources(rows: list[Row]) -> str:
    """The most that any dtype, option and chip needs, and occupancies, by kernel and width."""
    head = ("kernel", "", "width", "compiled", "registers", "local memory: rows (bytes)", "shared memory, of limit")
    lines = [f"| {' | '.join(head)} | occupancy |", "|---" * (len(head) + 1) + "|"]
    for kernel, backend, width in sorted({(row["kernel"], row["backend"], int(row["width"])) for row in rows}):
        group = [r for r in rows if (r["kernel"], r["backend"], int(r["width"])) == (kernel, backend, width)]
        spilled = [int(row["local_bytes"]) for row in group if int(row["local_bytes"])]
        share = max(int(row["shared_bytes"]) / int(row["shared_limit"]) for row in group)
        resident = list(map(_occupancy, group))
        lines.append(
            f"| {kernel} | {BACKENDS[backend]} | {width} | {len(group)} | {max(int(r['registers']) for r in group)} | "
            f"{f'{len(spilled)} ({max(spilled)})' if spilled else 'none'} | {share:.0%} | "
            f"{min(resident):.0%} to {max(resident):.0%} |"
        )
    return "\n".join(lines)


def instructions(rows: list[Row]) -> str:
    """Instructions of typical kernels on sm_80, by pipe, and their bounds."""
    pipes = [name.removeprefix("sass_") for name in PIPE_COLUMNS]
    lines = [f"| kernel | | tile, warps | {' | '.join(pipes)} | bound |", "|---" * (4 + len(pipes)) + "|"]
    for row in sorted(_typical(rows, "80"), key=lambda row: row["kernel"]):
        kernel = row["kernel"] + (", many queries" if "long" in row["call"] else "")
        if row["width"] == "256":
            kernel += f", {row['options']}" if row["options"] else ""
        counts = " | ".join(row[name] for name in PIPE_COLUMNS)
        lines.append(f"| {kernel} | {BACKENDS[row['backend']]} | {_tile(row)} | {counts} | {_bound(row)} |")
    return "\n".join(lines)


def bounds(rows: list[Row]) -> str:
    """By kernel and call, one column per chip."""
    lines = [f"| kernel | call | | {' | '.join(CHIPS.values())} |", "|---" * (3 + len(CHIPS)) + "|"]
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        if row["bound"] and (row["dtype"], row["width"]) == ("fp16", "64") and row["normalization"] != "joint":
            name = (row["kernel"], f"{row['call']}, {row['options']}", row["backend"])
            found.setdefault(name, {})[row["arch"]] = f"{_bound(row)} ({_tile(row)})"
    for (kernel, call, backend), by_chip in sorted(found.items()):
        cells = " | ".join(by_chip.get(chip, "") for chip in CHIPS)
        lines.append(f"| {kernel} | {call} | {BACKENDS[backend]} | {cells} |")
    return "\n".join(lines)


def _typical(rows: Iterable[Row], arch: str) -> list[Row]:
    """fp16, D 64 or rows of 256; attention with gates and masks, one softmax per source."""
    return [
        row
        for row in rows
        if (row["dtype"], row["arch"]) == ("fp16", arch)
        and (row["width"] == "256" if not row["normalization"] else row["width"] == "64" and row["options"] == "masks")
        and row["normalization"] != "joint"
    ]


def _tile(row: Row) -> str:
    sizes = [size.partition("=")[2] for size in row["tile"].split() if not size.startswith(("D=", "P="))]
    return f"{' x '.join(sizes)}, {row['warps']}" if all(sizes) and sizes else row["warps"]


def _bound(row: Row) -> str:
    return f"{row['bound']} %, {row['bound_pipe']}" if row["bound"] else ""


def _occupancy(row: Row) -> float:
    return occupancy(*(int(row[name]) for name in ("arch", "registers", "warps", "shared_bytes")))
