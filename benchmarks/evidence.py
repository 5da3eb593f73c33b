"""Runs the experiments on real data: `make results`, or `python -m benchmarks.evidence --data DATA`.

DATA has the folders that `benchmarks.experiments` names. Scores of every seed, grouping and fold go to
results/runs.csv, of which `python -m benchmarks.scores` writes the tables. Finished folds in build/results are not run
again. With --quick a slice is run once, in minutes, and printed beside the scores that are written down; nothing is
written.
"""

import csv
import re
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from amuse.cli.main import app
from amuse.experiments.cross_validation import CrossValidation, FoldScore, read_scores
from amuse.files import write_csv
from benchmarks.experiments import EXPERIMENTS, SETS, Experiment

RUNS = Path(__file__).parent / "results" / "runs.csv"
BUILD = Path("build/results")


class Run(NamedTuple):
    """A row of runs.csv: a fold, or, with an empty fold, the pooled scores of a grouping or the score of a seed."""

    data: str
    name: str
    measure: str
    second: str
    grouping: int
    fold: int | None
    score: float
    second_score: float | None
    train: int | None
    test: int | None


def main(
    data: Annotated[Path, typer.Option(help="Folder with the data sets' folders.")],
    quick: Annotated[bool, typer.Option("--quick", help="A slice, compared with the written scores.")] = False,
    only: Annotated[
        str | None, typer.Option(help="Only experiments whose DATA/NAME this regular expression finds.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Groupings, in place of five.")] = None,
) -> None:
    """Run the experiments one after the other."""
    began = time.perf_counter()
    chosen = [e for e in EXPERIMENTS if (e.quick or not quick) and re.search(only or "", f"{e.data}/{e.name}")]
    for needed in dict.fromkeys(name for e in chosen for name in SETS[e.data].sources):
        if not (data / needed).is_dir():
            raise SystemExit(
                f"--data {data}: expected the folder {needed} in it; docs/results_folds.md says what it is"
            )
    stored = read_runs() if quick else {}
    for experiment in chosen:
        print(f"=== {experiment.data}: {experiment.name} ({time.perf_counter() - began:.0f} s)", flush=True)
        found = run(experiment, data, 1 if quick else seeds, BUILD / ("quick" if quick else "runs"))
        if quick:
            before = stored.get((experiment.data, experiment.name))
            written = "nothing written" if before is None else f"written {before.pooled[0][0]:.3f}"
            print(f"{found.measure}, grouping 0: {found.pooled[0][0]:.3f}, {written}", flush=True)
        else:
            write_runs({**read_runs(), (experiment.data, experiment.name): found})  # another process may have written


def run(experiment: Experiment, root: Path, seeds: int | None, out: Path) -> CrossValidation:
    """Run the command of one experiment; scores of what is finished are only read.

    In this process: most fits take a second or two, less than the start of another process.
    """
    tables = BUILD / "tables"
    folder = SETS[experiment.data].prepare(root, tables)
    command = experiment.command(folder, out / experiment.folder, seeds)
    app([word.replace("{tables}", str(tables)) for word in command], standalone_mode=False)
    return read_scores(out / experiment.folder)


def read_runs() -> dict[tuple[str, str], CrossValidation]:
    """(data, row) -> all its scores."""
    runs: dict[tuple[str, str], CrossValidation] = {}
    if not RUNS.is_file():
        return runs
    with RUNS.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            key = row["data"], row["name"]
            own = runs.setdefault(key, CrossValidation(row["measure"], row["second"], [], []))
            if row["fold"]:
                place = int(row["grouping"]), int(row["fold"])
                own.folds.append(FoldScore(*place, float(row["score"]), int(row["train"]), int(row["test"])))
            else:
                own.pooled.append((float(row["score"]), float(row["second_score"])))
    return runs


def write_runs(runs: dict[tuple[str, str], CrossValidation]) -> None:
    """Write runs.csv in the order of the experiments."""
    order = {(e.data, e.name): i for i, e in enumerate(EXPERIMENTS)}
    rows: list[tuple[object, ...]] = [Run._fields]
    for key in sorted(runs, key=lambda key: order.get(key, len(order))):
        own = runs[key]
        common = *key, own.measure, own.second
        rows += [Run(*common, f.grouping, f.fold, round(f.score, 4), None, f.train, f.test) for f in own.folds]
        for i, (first, second) in enumerate(own.pooled):
            rows.append(Run(*common, i, None, round(first, 4), round(second, 4), None, None))
    write_csv(rows, RUNS)


if __name__ == "__main__":
    typer.run(main)
