"""What the trained gates of adaptive fusion do on the test parts of the folds: `python -m benchmarks.gates`.

Reads the first two groupings of AMuSE that `make results` left in build/results and trains nothing. The coefficients
of every utterance are replaced by their means over the training part, then by 1/2: what a score loses is what adapting
to the utterance gives. Writes results/gates.csv, of which `python -m benchmarks.scores` writes a table.
"""

import csv
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast
from unittest import mock

import torch
import typer
from torch import Tensor

from amuse.config import SPLITS
from amuse.data.conversation import Conversations
from amuse.evaluation.load import load_as_read, load_best
from amuse.evaluation.metrics import Metrics
from amuse.evaluation.predict import evaluate, predict
from amuse.experiments.paired import paired_difference
from amuse.files import write_csv
from amuse.model.amuse import Amuse
from amuse_kernels.nn import AdaptiveFusion
from benchmarks.evidence import BUILD, RUNS
from benchmarks.experiments import AMUSE, EXPERIMENTS, SETS

GATES = RUNS.parent / "gates.csv"
TABLE_HEAD = (
    *("data", "measure", "mean α", "deviation over utterances", "score", "with mean α", "with α = 1/2"),
    *("adapting gives", "95 % interval", "shown"),
)


class Fold(NamedTuple):
    """Coefficients of the test part, and its scores with them, with their means in training, and with 1/2."""

    mean: float
    deviation: float
    own: float
    fixed: float
    half: float
    share: float  # test utterances per other utterance


def main() -> None:
    """Write gates.csv of all data sets whose runs are there."""
    rows = []
    for experiment in EXPERIMENTS:
        if experiment.name != AMUSE:
            continue
        folder = BUILD / "runs" / experiment.folder
        places = [config.parent for config in sorted(folder.glob("grouping[01]/fold*/config.yaml"))]
        folds = [measure(place) for place in places]
        if not folds:  # not run yet, or a choice between settings in every fold
            continue
        d = paired_difference(
            [f.own for f in folds], [f.fixed for f in folds], statistics.fmean(f.share for f in folds)
        )
        means = [statistics.fmean(values) for values in list(zip(*folds, strict=True))[:5]]
        numbers = [*means, d.mean, d.low, d.high]
        rows.append([experiment.data, len(folds), *(f"{number:.4f}" for number in numbers), d.verdict])
        typer.echo(f"{experiment.data}: {rows[-1]}")
    columns = ["data", "folds", "mean", "deviation", "own", "fixed", "half", "difference", "low", "high", "shows"]
    write_csv([columns, *rows], GATES)


def measure(place: Path) -> Fold:
    """One fold of a run with learned coefficients."""
    run = load_best(place)
    model = run[0]
    train, valid, test = (load_as_read(*run, split) for split in SPLITS)
    own = coefficients(model, test)
    fixed = coefficients(model, train).mean(0)
    ordered = ~torch.eye(len(fixed), dtype=torch.bool)
    with replaced(model, fixed):
        with_mean = score(model, test)
    with replaced(model, torch.full_like(fixed, 0.5)):
        with_half = score(model, test)
    share = test.num_utterances / (train.num_utterances + valid.num_utterances)
    mean, deviation = float(own[:, ordered].mean()), float(own[:, ordered].std(0).mean())
    return Fold(mean, deviation, score(model, test), with_mean, with_half, share)


def coefficients(model: Amuse, conversations: Conversations) -> Tensor:
    """Alpha of every utterance, `(U, M, M)`."""
    gate, seen = cast(AdaptiveFusion, model.fusion), []
    forward = gate.forward

    def noted(descriptors: Tensor, **options: Tensor) -> tuple[Tensor, Tensor]:
        fused, alpha = forward(descriptors, **options)
        seen.append(alpha)
        return fused, alpha

    with mock.patch.object(gate, "forward", noted):
        predict(model, conversations)
    return torch.cat(seen)


@contextmanager
def replaced(model: Amuse, alpha: Tensor) -> Iterator[None]:
    """The model with these coefficients `(M, M)` for every utterance."""
    gate = cast(AdaptiveFusion, model.fusion)
    forward = gate.forward

    def fixed(descriptors: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        return forward(descriptors, present=present, alpha=alpha.expand(len(descriptors), *alpha.shape))

    with mock.patch.object(gate, "forward", fixed):
        yield


def score(model: Amuse, conversations: Conversations) -> float:
    """Weighted F1 in per cent, or Pearson r."""
    metrics = evaluate(model, conversations)
    return 100 * metrics.weighted_f1 if isinstance(metrics, Metrics) else metrics.pearson


def table() -> str:
    """The rows of gates.csv."""
    if not GATES.is_file():
        return "Not measured."
    lines = []
    with GATES.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            regression = float(row["own"]) < 1
            digits = 3 if regression else 2
            measure = "Pearson r" if regression else "weighted F1"
            scores = [f"{float(row[name]):.{digits}f}" for name in ("own", "fixed", "half")]
            interval = f"{float(row['low']):+.{digits}f} to {float(row['high']):+.{digits}f}"
            cells = [
                SETS[row["data"]].title,
                measure,
                *(f"{float(row[n]):.2f}" for n in ("mean", "deviation")),
                *scores,
            ]
            lines.append([*cells, f"{float(row['difference']):+.{digits}f}", interval, row["shows"]])
    head = [TABLE_HEAD, ["---"] * len(TABLE_HEAD)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [*head, *lines])


if __name__ == "__main__":
    typer.run(main)
