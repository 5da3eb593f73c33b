"""Where the CPU time of a training step goes.

Self time of PyTorch's ops as its profiler sees them, one thread, a step on one of MELD's batches (116 utterances),
scaled to the CPU time of the process. "matrix products" are also those of LSTMs and of backward passes.

    python -m benchmarks.parts --csv benchmarks/results/parts.csv   also draws parts.svg
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from amuse.files import replace_file, write_csv

PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("amuse_kernels::",),
    "LSTM steps": ("aten::lstm", "aten::mkldnn_rnn", "aten::sigmoid", "aten::tanh", "aten::slice_backward"),
    "dropout": ("aten::bernoulli_", "aten::random_", "aten::addcmul", "aten::ge"),
    "norms, activations": ("aten::native_layer_norm", "aten::gelu", "aten::native_batch"),
    "optimiser": ("aten::_fused_adam", "aten::_foreach", "aten::linalg_vector_norm"),
}
REST = "sums, copies, losses"


def parts(run: Callable[[], Any]) -> dict[str, float]:
    """Seconds of each part of a call."""
    run()
    started = time.process_time()
    run()
    total = time.process_time() - started
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    seconds = dict.fromkeys([*PARTS, REST], 0.0)
    for event in profiler.key_averages():
        part = next((name for name, ops in PARTS.items() if event.key.startswith(ops)), REST)
        seconds[part] += event.self_cpu_time_total / 1e6
    scale = total / sum(seconds.values())
    return {part: scale * value for part, value in seconds.items()}


def save(label: str, seconds: dict[str, float], target: Path) -> None:
    """Into a CSV, in place of what it holds under this label."""
    rows = list(csv.DictReader(target.open(newline=""))) if target.exists() else []
    rows = [row for row in rows if row["step"] != label]
    rows += [{"step": label, "part": part, "seconds": f"{value:.3f}"} for part, value in seconds.items()]
    columns = ("step", "part", "seconds")
    write_csv([columns, *([row[name] for name in columns] for row in rows)], target)


def draw(source: Path) -> Path:
    """A bar for each step of the CSV, cut into its parts."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with source.open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = list(dict.fromkeys(row["step"] for row in rows))
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.5 * len(steps)), layout="constrained")
    begin = dict.fromkeys(steps, 0.0)
    for part in [*PARTS, REST]:
        widths = [float(row["seconds"]) for step in steps for row in rows if (row["step"], row["part"]) == (step, part)]
        axes.barh(steps, widths, left=list(begin.values()), label=part)
        begin = {step: left + width for (step, left), width in zip(begin.items(), widths, strict=True)}
    for place, end in enumerate(begin.values()):
        axes.text(end, place, f" {end:.2f} s", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("CPU seconds of a training step, MELD's lengths")
    axes.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.35))
    target = source.with_suffix(".svg")
    replace_file(target, lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))
    return target


def main() -> None:
    from benchmarks import meld

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {name: parts(run) for name, run in meld.passes(meld.batches()[2:3]).items() if name != "reference"}
    for name, seconds in found.items():
        print(name, f"{sum(seconds.values()):.2f} s:", *(f"{part} {value:.2f}," for part, value in seconds.items()))
        if arguments.csv:
            save(name, seconds, arguments.csv)
    if arguments.csv:
        print(draw(arguments.csv))


if __name__ == "__main__":
    main()
