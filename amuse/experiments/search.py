"""Random search with equally many trials per contender, chosen by validation scores, never by test scores."""

import random
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from amuse.config import Config
from amuse.data.load import Splits
from amuse.evaluation.predict import evaluate, score
from amuse.experiments.settings import with_settings
from amuse.files import write_csv
from amuse.model.amuse import Amuse
from amuse.training.state import STATE_FILE
from amuse.training.train import train_on

SPACE: dict[str, Callable[[random.Random], float]] = {
    "train.learning_rate": lambda rng: round(10 ** rng.uniform(-3.5, -2.5), 6),
    "train.weight_decay": lambda rng: round(10 ** rng.uniform(-3, -1), 5),
    "model.dropout": lambda rng: rng.choice([0.0, 0.1, 0.2, 0.3, 0.4, 0.5]),
    "model.input_dropout": lambda rng: rng.choice([0.0, 0.1, 0.2]),
    "model.d_model": lambda rng: rng.choice([64, 128, 256]),
}
"""Setting -> how a trial draws it. All contenders draw the same numbers."""

SEARCH_FILE = "search.csv"


@dataclass(frozen=True)
class Trial:
    """Settings that were tried, and their score on the validation split (weighted F1 or -MAE, as in training)."""

    contender: str
    number: int
    settings: list[str]
    score: float


def draw(number: int, seed: int = 0) -> list[str]:
    """The settings of a trial; the first, number 0, changes nothing."""
    if number == 0:
        return []
    rng = random.Random(f"{seed}/{number}")
    return [f"{name}={value(rng)}" for name, value in SPACE.items()]


def search(
    contender: str,
    splits: Splits,
    config: Config,
    out: Path,
    trials: int,
    kind: type[Amuse] = Amuse,
    progress: bool = True,
) -> tuple[Config, Amuse, list[Trial]]:
    """The settings with the best validation score, their model, and all trials; earlier runs in `out` are overwritten.

    Args:
        contender: Its name, for the list of trials.
        splits: Only training and validation are looked at.
        config: The settings of trial 0, which the other trials change.
        out: Takes a run per trial.
        trials: How many.
        kind: The model to train.
        progress: Show progress bars.
    """
    best: tuple[Config, Amuse] | None = None
    found: list[Trial] = []
    for number in range(trials):
        settings = draw(number)
        tried = with_settings(config, settings)
        folder = out / f"trial{number}" if trials > 1 else out
        (folder / STATE_FILE).unlink(missing_ok=True)
        model = train_on(splits, tried, folder, progress=progress, kind=kind)
        reached = score(evaluate(model, splits.valid, tried.train.batch_size))
        if best is None or reached > max(trial.score for trial in found):
            best = tried, model
        found.append(Trial(contender, number, settings, reached))
    assert best is not None
    return *best, found


def write_trials(trials: list[Trial], path: Path) -> None:
    """All trials as CSV."""
    rows = [[t.contender, t.number, " ".join(t.settings), f"{t.score:.4f}"] for t in trials]
    write_csv([[field.name for field in fields(Trial)], *rows], path)
