"""Draws a CSV of `benchmarks.cpu`: how much longer each contender takes than ours.

python -m benchmarks.plot benchmarks/results/cpu.csv      writes cpu.svg beside it
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MODES = ("forward", "forward+backward", "training step")


def draw(source: Path) -> Path:
    with source.open(newline="") as file:
        records = list(csv.DictReader(file))
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
    first = records[0]
    axes.set_title(
        f"{first['processor']}, {first['threads']} threads, {first['isa']}, torch {first['torch']}", fontsize=9
    )
    axes.legend(fontsize=7, loc="lower right")
    target = source.with_suffix(".svg")
    figure.savefig(target, metadata={"Date": None})
    return target


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print(draw(Path(sys.argv[1])))
