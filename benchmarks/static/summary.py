"""The tables of docs/gpu_tables.md, from kernels.csv."""

from collections.abc import Iterable

from benchmarks.pages import BACKENDS
from benchmarks.static.cases import AMD
from benchmarks.static.occupancy import occupancy
from benchmarks.static.table import PIPE_COLUMNS, Row

CHIPS = {"80": "sm_80", "86": "sm_86", "89": "sm_89", "90": "sm_90a"}


def render(rows: list[Row]) -> str:
    nvidia = [row for row in rows if row["arch"] not in AMD]
    parts = (
        resources(nvidia),
        "Triton's kernels for AMD, which nobody has run: the most vector registers and scratch memory of a lane, and\n"
        "LDS of a workgroup (the limit is 65,536 bytes). fp16 and fp32, a softmax per source.",
        amd_resources([row for row in rows if row["arch"] in AMD]),
        "Instructions of a whole kernel by pipe, as they are in its machine code, and the bound of its main loop:\n"
        "fp16, sm_80, attention with D 64, gates, masks and one softmax per source, the rest with width 256.",
        instructions(nvidia),
        "Bound of the main loop in % of the tensor peak, busiest pipe, tile, warps: fp16, D 64, a softmax per source.",
        bounds(nvidia),
    )
    return "\n\n".join(parts)


def resources(rows: list[Row]) -> str:
    """The most that any dtype, option and chip needs, and occupancies, by kernel and width."""
    head = ("kernel", "", "width", "compiled", "registers", "local memory: rows (bytes)", "shared memory, of limit")
    lines = [f"| {' | '.join(head)} | occupancy |", "|---" * (len(head) + 1) + "|"]
    for kernel, backend, width in sorted({(row["kernel"], row["backend"], int(row["width"])) for row in rows}):
        group = [r for r in rows if (r["kernel"], r["backend"], int(r["width"])) == (kernel, backend, width)]
        share = max(int(row["shared_bytes"]) / int(row["shared_limit"]) for row in group)
        resident = list(map(_occupancy, group))
        lines.append(
            f"| {kernel} | {BACKENDS[backend]} | {width} | {len(group)} | {max(int(r['registers']) for r in group)} | "
            f"{_spilled(group)} | {share:.0%} | "
            f"{min(resident):.0%} to {max(resident):.0%} |"
        )
    return "\n".join(lines)


def amd_resources(rows: list[Row]) -> str:
    """As above of AMD's chips, side by side."""
    titles = [title for chip in AMD for title in (f"{chip}: registers", "scratch: rows (bytes)", "LDS")]
    lines = [f"| kernel | width | options | {' | '.join(titles)} |", "|---" * (3 + len(titles)) + "|"]
    for kernel, width, options in sorted({(row["kernel"], int(row["width"]), row["options"]) for row in rows}):
        cells = []
        for chip in AMD:
            of_chip = {"kernel": kernel, "width": str(width), "options": options, "arch": chip}
            group = [row for row in rows if of_chip.items() <= row.items()]
            cells += [_most(group, "registers"), _spilled(group), _most(group, "shared_bytes")]
        lines.append(f"| {kernel} | {width} | {options} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _most(rows: Iterable[Row], column: str) -> str:
    return str(max((int(row[column]) for row in rows), default=""))


def _spilled(rows: Iterable[Row]) -> str:
    """How many of the rows spill, and the most bytes."""
    spilled = [int(row["local_bytes"]) for row in rows if int(row["local_bytes"])]
    return f"{len(spilled)} ({max(spilled)})" if spilled else "none"


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
