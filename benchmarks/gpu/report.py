"""The output of a run: JSON with everything, a CSV, two plots, and one archive of all of it to send."""

import csv
import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.gpu.suite import Results

DRY = "DRY RUN: nothing was measured on a GPU; every time is made up by a clock that ticks."
FIELDS = (
    *("workload", "sizes", "dtype", "contender", "mode", "wall_ms", "graph_ms", "tflops", "gbytes_per_s"),
    *("fraction_of_roofline", "peak_mb"),
)


def write(folder: Path, results: Results, conditions: dict[str, Any], dry: bool) -> Path:
    """The archive; `conditions` say what the numbers depend on."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "dry_run": dry,
        "note": DRY if dry else "",
        "conditions": conditions,
        "records": results.records,
        "refused": results.refused,
        "failed": results.failed,
    }
    (folder / "results.json").write_text(json.dumps(content, indent=2) + "\n")
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*FIELDS, "dry_run"])
        writer.writeheader()
        writer.writerows(record | {"dry_run": dry} for record in results.records)
    title = DRY if dry else f"{conditions['gpu']}, torch {conditions['torch']}"
    for mode in ("forward", "forward+backward"):
        draw([r for r in results.records if r["mode"] == mode], mode, title, folder / f"{mode}.svg")
    (folder / "summary.txt").write_text(summary(results, dry) + "\n")
    return Path(shutil.make_archive(str(folder), "zip", folder.parent, folder.name))


def summary(results: Results, dry: bool) -> str:
    """For the terminal: of each workload and mode ours and the fastest other, then what is missing and why."""
    lines = [f"{DRY} {len(results.records)} of them are in the files."] if dry else []
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for record in results.records:
        groups[record["workload"], record["mode"]].append(record)
    for (workload, mode), records in groups.items():
        ours = [r for r in records if r["contender"].startswith("ours")]
        others = [r for r in records if not r["contender"].startswith("ours")]
        if dry or not ours or not others:
            continue
        mine, best = (min(group, key=lambda r: r["graph_ms"] or r["wall_ms"]) for group in (ours, others))
        ratio = (best["graph_ms"] or best["wall_ms"]) / (mine["graph_ms"] or mine["wall_ms"])
        lines.append(
            f"{workload}, {mode}: {time_of(mine)} ({mine['contender']}), {ratio:.2f}x of {time_of(best)} "
            f"({best['contender']})"
        )
    for word, entries in (("REFUSED, wrong results", results.refused), ("not run", results.failed)):
        lines += [f"{word}: {e['workload']}, {e['contender']}: {e['reason']}" for e in entries]
    return "\n".join(lines)


def time_of(record: dict[str, Any]) -> str:
    graph = record["graph_ms"]
    return f"{record['wall_ms']:.3f} ms" if graph is None else f"{graph:.3f} ms in a graph"


def draw(records: list[dict[str, Any]], mode: str, title: str, target: Path) -> None:
    """Time of every contender by workload, on a log scale."""
    workloads = list(dict.fromkeys(record["workload"] for record in records))
    contenders = list(dict.fromkeys(record["contender"] for record in records))
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.5 * len(workloads)), layout="constrained")
    for contender in contenders:
        own = [record for record in records if record["contender"] == contender]
        times = [record["graph_ms"] or record["wall_ms"] for record in own]
        marker = "o" if contender.startswith("ours") else "x"
        axes.plot(times, [workloads.index(r["workload"]) for r in own], marker, label=contender)
    axes.set_yticks(range(len(workloads)), workloads, fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(f"{mode}: ms, in a CUDA graph where it can be captured")
    axes.set_title(title, fontsize=8)
    axes.grid(axis="x", alpha=0.3)
    if contenders:
        axes.legend(fontsize=7)
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)
