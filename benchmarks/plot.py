"""Draws a CSV of `benchmarks.cpu`: how much longer each contender takes than ours.

python -m benchmarks.plot benchmarks/results/cpu.csv      writes cpu.svg next to it and a table into docs/performance.md
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

from amuse.files import replace_file
from benchmarks.pages import rewrite
from benchmarks.performance import CONDITIONS, counted

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
COMMAND = "python -m benchmarks.plot benchmarks/results/cpu.csv"
MODES = ("forward", "forward+backward", "training step")


def read(source: Path) -> list[dict[str, str]]:
    with source.open(newline="") as file:
        return list(csv.DictReader(file))


def table(records: list[dict[str, str]]) -> str:
    """In Markdown, a row for every workload and mode: our time, the floor, each contender's time over ours."""
    lines = [
        "| workload | ms | floor, ms | % of gemm peak | times as long as ours | memory, MB: ours, others |",
        "|---|---|---|---|---|---|",
    ]
    for ours in records:
        if ours["contender"] != "ours":
            continue
        row = (ours["workload"], ours["mode"])
        others = [r for r in records if (r["workload"], r["mode"]) == row and r is not ours]
        others.sort(key=lambda record: float(record["times_ours"]))
        name = f"{row[0]}, {row[1]}"
        ratios = ", ".join(f"{r['contender']} {r['times_ours']}" for r in others)
        memory = ", ".join(f"{float(r['extra_mb']):.0f}" for r in (ours, *others) if r["extra_mb"])
        cells = (name, f"{float(ours['median_ms']):.3g}", ours["floor_ms"] and f"{float(ours['floor_ms']):.2g}")
        lines.append(f"| {' | '.join((*cells, ours['percent_of_gemm_peak'], ratios, memory))} |")
    measured = by_conditions(records)
    for own in measured:
        first = own[0]
        conditions = f"{first['processor']}, {first['isa']}, {counted(first['threads'])}, {first['clock']} time"
        speed = f"gemm peak {first['gflops']} GFLOP/s, copies {first['gbytes_per_s']} GB/s"
        named = "" if own is measured[0] else f"{', '.join(dict.fromkeys(r['workload'] for r in own))}: "
        lines += ["", f"{named}{conditions}, torch {first['torch']}; {speed}."]
    return "\n".join(lines)


def by_conditions(records: list[dict[str, str]]) -> list[list[dict[str, str]]]:
    """Records that were measured under the same conditions, most of them first."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for record in records:
        groups[tuple(record[name] for name in CONDITIONS)].append(record)
    return sorted(groups.values(), key=len, reverse=True)


def draw(source: Path) -> Path:
    records = read(source)
    ratios: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)  # contender -> (workload, mode) -> ratio
    for record in records:
        if record["contender"] != "ours":
            ratios[record["contender"]][record["workload"], record["mode"]] = float(record["times_ours"])
    rows = list(dict.fromkeys((record["workload"], record["mode"]) for record in records))
    rows.sort(key=lambda row: (row[0].partition(":")[0], MODES.index(row[1])))

    height = 0.8 / len(ratios)
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.16 * len(rows) * len(ratios)), layout="constrained")
    for index, (contender, values) in enumerate(ratios.items()):
        places = [rows.index(row) - 0.4 + (index + 0.5) * height for row in values]
        bars = axes.barh(places, list(values.values()), height, label=contender)
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [f"{workload}\n{mode}" for workload, mode in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("median time / median time of amuse_kernels (log scale; right of 1: we are faster)")
    first = by_conditions(records)[0][0]
    axes.set_title(
        f"{first['processor']}, {counted(first['threads'])}, {first['isa']}, torch {first['torch']}", fontsize=9
    )
    axes.legend(fontsize=7, loc="lower right")
    target = source.with_suffix(".svg")
    replace_file(target, lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))
    return target


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print(draw(Path(sys.argv[1])))
    rewrite(PAGE, COMMAND, table(read(Path(sys.argv[1]))))
