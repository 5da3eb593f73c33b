"""Writes the summaries of speed in the docs from the committed measurements: `python -m benchmarks.performance`.

The CPU figures (docs/performance.md) come from benchmarks/results/cpu.csv (`python -m benchmarks.cpu --csv`), the GPU
figures (docs/gpu_tables.md), none of them measured on a GPU, from benchmarks/static: kernels.csv, counters.csv and
floors.py.
"""

import csv
from pathlib import Path

from benchmarks.pages import BACKENDS, rewrite
from benchmarks.static.floors import CHIPS, describe, fused, sdpa_per_stream
from benchmarks.workloads import SHAPES

ROOT = Path(__file__).parents[1]
DOCS, CPU = ROOT / "docs", ROOT / "benchmarks" / "results" / "cpu.csv"
COMMAND = "python -m benchmarks.performance"
STATIC = ROOT / "benchmarks" / "static"
# the call in counters.csv -> what is compiled for it: calls in kernels.csv, their width and options
CALLS = {
    "attention forward": (("attention forward",), "64", "masks"),
    "attention backward": (("attention backward", "attention backward, one tile"), "64", "masks"),
    "fusion forward, gate": (("fusion forward",), "256", "gate"),
    "fusion backward, gate": (("fusion backward",), "256", "gate"),
}
CONDITIONS = ("processor", "isa", "threads", "clock", "torch")


def counted(threads: str) -> str:
    return "1 thread" if threads == "1" else f"{threads} threads"


def cpu_tables(records: list[dict[str, str]]) -> str:
    """How many times as long as ours the fastest other contender takes, by workload; a table for each machine."""
    conditions = dict.fromkeys(tuple(record[name] for name in CONDITIONS) for record in records)
    tables = []
    for condition in conditions:
        own = [record for record in records if tuple(record[name] for name in CONDITIONS) == condition]
        processor, isa, threads, clock, torch = condition
        tables.append(
            f"Measured on {processor} ({isa}), {counted(threads)}, {clock} time, torch {torch}: contenders in turn,\n"
            f"ratios of medians against the fastest other; above 1 we are faster.\n\n{_cpu_table(own)}"
        )
    return "\n\n".join(tables)


def _cpu_table(records: list[dict[str, str]]) -> str:
    lines = [
        "| workload | forward | forward and backward | memory, forward and backward |",
        "|---|---|---|---|",
    ]
    for workload in dict.fromkeys(record["workload"] for record in records):
        own = [record for record in records if record["workload"] == workload]
        forward, both, step = (
            _ratio([record for record in own if record["mode"] == mode])
            for mode in ("forward", "forward+backward", "training step")
        )
        lines.append(f"| {workload} | {forward} | {both or step} | {_memory(own)} |")
    return "\n".join(lines)


def _ratio(records: list[dict[str, str]]) -> str:
    others = [record for record in records if not record["contender"].startswith("ours")]
    if not others:
        return ""
    fastest = min(others, key=lambda record: float(record["median_ms"]))
    return f"**{float(fastest['times_ours']):.2f}x** {fastest['contender']}"


def _memory(records: list[dict[str, str]]) -> str:
    """Ours and the least of the others, in MB."""
    records = [r for r in records if r["mode"] == "forward+backward" and r["extra_mb"]]
    ours = [float(r["extra_mb"]) for r in records if r["contender"] == "ours"]
    others = [float(r["extra_mb"]) for r in records if not r["contender"].startswith("ours")]
    return f"{ours[0]:.1f} MB, others from {min(others):.1f} MB" if ours and others else ""


def gpu_part() -> str:
    """Facts about the GPU kernels that need no GPU."""
    kernels, counters = _read(STATIC / "kernels.csv"), _read(STATIC / "counters.csv")
    ours = [row for row in kernels if row["backend"] != "plain" and row["arch"].isdigit()]  # NVIDIA's
    spilling = [row for row in ours if int(row["local_bytes"])]
    narrow = [row for row in spilling if int(row["width"]) <= 128]
    return "\n".join(
        [
            f"Of {len(ours)} kernels, compiled for six NVIDIA architectures, three dtypes and head dims of 32 to 256,",
            f"{len(spilling)} spill registers, {len(narrow)} of them at head dims up to 128.",
            "",
            "In fp16 on sm_80, head dim 64, 64 queries, three sources of 64 keys (fusion: width 256, learned gate);",
            "plain flash attention runs once per source. The bound is what the main loop leaves of the tensor peak:",
            "",
            *_compiled(kernels, counters),
            "",
            *_floors(),
        ]
    )


def _compiled(kernels: list[dict[str, str]], counters: list[dict[str, str]]) -> list[str]:
    """The most registers, all local memory and the least bound of a call's kernels, and the bytes that it moves."""
    lines = [
        "| call | | registers | spilled bytes | bound | launches | bytes moved, of least | warp instructions |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in counters:
        if row["op"] not in CALLS:
            continue
        calls, width, options = CALLS[row["op"]]
        typical = {"backend": row["backend"], "dtype": "fp16", "arch": "80", "width": width, "options": options}
        own = [
            k for k in kernels if typical.items() <= k.items() and k["call"] in calls and k["normalization"] != "joint"
        ]
        if len({k["call"] for k in own}) > 1:  # 64 queries are one tile
            own = [k for k in own if "one tile" in k["call"]]
        bounds = [int(k["bound"]) for k in own if k["bound"]]
        moved = (int(row["global_bytes_read"]) + int(row["global_bytes_written"])) / int(row["least_bytes"])
        lines.append(
            f"| {row['op']} | {BACKENDS[row['backend']]} | {max([int(k['registers']) for k in own], default='')} | "
            f"{sum(int(k['local_bytes']) for k in own)} | {f'{min(bounds)} %' if bounds else ''} | {row['launches']} | "
            f"{moved:.2f} | {int(row['instructions']):,} |"
        )
    return lines


def _floors() -> list[str]:
    chip = "H100 SXM"
    lines = [
        f"| attention, forward, 16 bits | launches, SDPA per stream | bytes moved, SDPA per stream | floor on {chip} |",
        "|---|---|---|---|",
    ]
    for shape in (SHAPES["1"], SHAPES["2"], SHAPES["4"], SHAPES["long"]):
        ours, theirs = fused(shape), sdpa_per_stream(shape)
        moved = f"{ours.bytes / 1e6:.1f} MB, {theirs.bytes / 1e6:.1f} MB"
        floor = f"{1e6 * ours.floor(CHIPS[chip]):.1f} µs, {1e6 * theirs.floor(CHIPS[chip]):.1f} µs"
        lines.append(f"| {describe(shape)} | {ours.launches}, {theirs.launches} | {moved} | {floor} |")
    return lines


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pages() -> dict[Path, str]:
    """The generated part of each page."""
    return {DOCS / "performance.md": cpu_tables(_read(CPU)), DOCS / "gpu_tables.md": gpu_part()}


def write() -> None:
    for page, content in pages().items():
        rewrite(page, COMMAND, content)


if __name__ == "__main__":
    write()
