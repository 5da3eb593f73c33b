"""Writes the performance section of the README from the committed measurements: `python -m benchmarks.readme`.

The CPU figures come from benchmarks/results/cpu.csv (`python -m benchmarks.cpu --csv`), the GPU figures, none of them
measured, from benchmarks/static/floors.py.
"""

import csv
from pathlib import Path

from benchmarks.pages import rewrite
from benchmarks.static.floors import CHIPS, describe, fused, sdpa_per_stream
from benchmarks.workloads import SHAPES

ROOT = Path(__file__).parents[1]
README, CPU = ROOT / "README.md", ROOT / "benchmarks" / "results" / "cpu.csv"
COMMAND = "python -m benchmarks.readme"
CONDITIONS = ("processor", "isa", "threads", "clock", "torch")


def cpu_tables(records: list[dict[str, str]]) -> str:
    """How many times as long as ours the fastest other contender takes, by workload; a table for each machine."""
    conditions = dict.fromkeys(tuple(record[name] for name in CONDITIONS) for record in records)
    tables = []
    for condition in conditions:
        own = [record for record in records if tuple(record[name] for name in CONDITIONS) == condition]
        processor, isa, threads, clock, torch = condition
        tables.append(
            f"Measured on {processor} ({isa}), {threads} threads, {clock} time, torch {torch}: contenders in turn,\n"
            "ratios of medians against the fastest other; above 1 we are faster.\n"
            f"[docs/performance.md](docs/performance.md) has more.\n\n{_cpu_table(own)}"
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
    others = [record for record in records if record["contender"] != "ours"]
    if not others:
        return ""
    fastest = min(others, key=lambda record: float(record["median_ms"]))
    return f"**{float(fastest['times_ours']):.2f}x** {fastest['contender']}"


def _memory(records: list[dict[str, str]]) -> str:
    """Ours and the least of the others, in MB."""
    records = [r for r in records if r["mode"] == "forward+backward" and r["extra_mb"]]
    ours = [float(r["extra_mb"]) for r in records if r["contender"] == "ours"]
    others = [float(r["extra_mb"]) for r in records if r["contender"] != "ours"]
    return f"{ours[0]:.1f} MB, others from {min(others):.1f} MB" if ours and others else ""


def gpu_part() -> str:
    """What is known of the GPU kernels without a GPU."""
    chip = "H100 SXM"
    lines = [
        "**No hardware has confirmed anything about the GPU kernels yet.** What follows is counted from shapes and",
        "published peaks; what the compiler makes of the kernels stands in [docs/gpu.md](docs/gpu.md).",
        "",
        f"| attention, forward, 16 bits | launches, SDPA per stream | bytes moved, SDPA per stream | floor on {chip} |",
        "|---|---|---|---|",
    ]
    for shape in (SHAPES["1"], SHAPES["2"], SHAPES["4"], SHAPES["long"]):
        ours, theirs = fused(shape), sdpa_per_stream(shape)
        moved = f"{ours.bytes / 1e6:.1f} MB, {theirs.bytes / 1e6:.1f} MB"
        floor = f"{1e6 * ours.floor(CHIPS[chip]):.1f} µs, {1e6 * theirs.floor(CHIPS[chip]):.1f} µs"
        lines.append(f"| {describe(shape)} | {ours.launches}, {theirs.launches} | {moved} | {floor} |")
    return "\n".join(lines)


def render() -> str:
    with CPU.open(newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    return f"{cpu_tables(records)}\n\n{gpu_part()}"


if __name__ == "__main__":
    rewrite(README, COMMAND, render())
