"""One configuration trained with several seeds, since a single run says little: mean, deviation, classes, cost."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from amuse.cluster import check_engine, run_tasks
from amuse.config import Config
from amuse.data.load import Splits, load_splits
from amuse.evaluation.metrics import Metrics
from amuse.evaluation.predict import evaluate
from amuse.experiments.cross_validation import CrossValidation, Origin, write_scores
from amuse.files import LOG_FILE
from amuse.training.train import train_on
from amuse.world import choose_device


@dataclass
class Scores:
    """A finished run on the test split, in per cent, and what it cost."""

    weighted_f1: float
    accuracy: float
    f1: dict[str, float]  # per class
    parameters: int
    seconds: float  # time of all epochs with their validation
    memory_mib: float  # peak of the whole process that trained it, or allocated on its GPU
    training: float = math.nan  # weighted F1 of the same model on what it was trained on: memorised, if far higher
    validation: float = math.nan


def run_once(splits: Splits, config: Config, folder: Path, progress: bool = False) -> Scores:
    """Train, or resume an interrupted run or load a finished one, and test its best model."""
    model = train_on(splits, config, folder, resume=True, progress=progress)
    metrics, training, validation = (
        evaluate(model, part, config.train.batch_size) for part in (splits.test, splits.train, splits.valid)
    )
    # callers have refused regression
    assert isinstance(metrics, Metrics)
    assert isinstance(training, Metrics)
    assert isinstance(validation, Metrics)
    epochs = [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
    return Scores(
        weighted_f1=100 * metrics.weighted_f1,
        accuracy=100 * metrics.accuracy,
        f1={name: 100 * f1 for name, f1 in zip(metrics.label_names, metrics.f1, strict=True)},
        parameters=sum(p.numel() for p in model.parameters()),
        seconds=sum(epoch["seconds"] for epoch in epochs),
        memory_mib=max(epoch["memory_mib"] for epoch in epochs),
        training=100 * training.weighted_f1,
        validation=100 * validation.weighted_f1,
    )


def repeat(
    config: Config, out: Path, seeds: int = 5, progress: bool = True, engine: str = "local", gpus: float = 0.0
) -> str:
    """Train and test with `config.train.seed` and the seeds after it, each in a folder of `out`; return the table.

    Writes `scores.json` into `out`, which `amuse differences` reads.

    Args:
        config: The configuration of all runs, except for the seed.
        out: Takes the runs; finished ones in it are only tested, interrupted ones resume.
        seeds: Number of runs.
        progress: Show the runs' progress.
        engine: `"local"`: one run after the other. `"ray"`: each a task of a Ray cluster that shares data and `out`.
        gpus: Of a run on Ray; fractions share a GPU.

    Raises:
        ImportError: Ray is not installed.
        ValueError: Regression, no seed, or `out` has runs of another configuration.
    """
    check_engine(engine)
    if seeds < 1:
        raise ValueError(f"seeds: expected at least 1, got {seeds}")
    splits = load_splits(config.data, progress, choose_device(config.train.device))
    if splits.test.label_names is None:
        raise ValueError("data: expected classes, got regression")
    numbers = range(config.train.seed, config.train.seed + seeds)
    planned = {seed: (replace(config, train=replace(config.train, seed=seed)), out / f"seed{seed}") for seed in numbers}
    if engine == "ray":
        for place, _ in run_tasks(load_and_run, list(planned.values()), gpus=gpus):
            if progress:
                print(f"--- seed {numbers[place]} is finished", flush=True)
    runs = {}
    for seed, (seeded, folder) in planned.items():
        if progress and engine == "local":
            print(f"--- seed {seed}", flush=True)
        runs[seed] = run_once(splits, seeded, folder, progress and engine == "local")
    pooled = [(run.weighted_f1, run.accuracy) for run in runs.values()]
    utterances = [(d.id, u.id, u.label) for d in splits.test.dialogues for u in d.utterances]
    tested = [Origin.of(seed, None, [utterances]) for seed in runs]
    write_scores(CrossValidation("weighted F1", "accuracy", [], pooled, tested), out)
    return to_markdown(runs)


def load_and_run(config: Config, folder: Path) -> None:
    """`run_once` in a process of its own, for what it leaves in the folder."""
    run_once(load_splits(config.data, False, choose_device(config.train.device)), config, folder)


def to_markdown(runs: dict[int, Scores]) -> str:
    """A table of the runs by seed, and one of the classes' F1, with mean and sample deviation."""
    scores = list(runs.values())
    lines = ["| | weighted F1 | accuracy | seconds | peak MiB |", "|---|---|---|---|---|"]
    lines += [
        f"| seed {seed} | {run.weighted_f1:.2f} | {run.accuracy:.2f} | {run.seconds:.0f} | {run.memory_mib:.0f} |"
        for seed, run in runs.items()
    ]
    means = [mean([run.weighted_f1 for run in scores]), mean([run.accuracy for run in scores])]
    costs = [[run.seconds for run in scores], [run.memory_mib for run in scores]]
    means += [f"{statistics.fmean(values):.0f}" for values in costs]
    lines += [f"| mean | {' | '.join(means)} |", "", "| class | F1 |", "|---|---|"]
    lines += [f"| {name} | {mean([run.f1[name] for run in scores])} |" for name in scores[0].f1]
    return "\n".join([*lines, "", f"{scores[0].parameters:,} parameters"])


def mean(values: Sequence[float]) -> str:
    """Mean and, for several values, sample standard deviation (n - 1)."""
    text = f"{statistics.fmean(values):.2f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.2f}"
