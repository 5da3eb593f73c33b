"""Contenders, trained and tested in a fold: AMuSE or a rival, once or as an ensemble over seeds, or a linear model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from amuse.config import Config
from amuse.data.conversation import Conversations
from amuse.data.load import Splits
from amuse.evaluation.predict import Predictions, predict
from amuse.experiments.linear import PENALTIES, LinearModel
from amuse.experiments.rivals import RIVALS
from amuse.experiments.settings import with_settings
from amuse.model.amuse import Amuse
from amuse.training.train import train_on

LINEAR = "linear"
MEMBER_SEEDS = 1000
"""Distance between the seeds of an ensemble's members."""

Predictor = Callable[[Conversations], Predictions]


class Contender(Protocol):
    """Learns from the training and validation parts of `Splits`, by settings such as "model.dropout=0.1"."""

    @property
    def candidates(self) -> list[list[str]]:
        """Settings that it brings along to be chosen from; one empty list = none."""
        ...

    def fit(self, splits: Splits, config: Config, settings: Sequence[str], folder: Path, final: bool) -> Predictor:
        """Train in `folder`; `final`: the settings are chosen, and an ensemble trains all its members."""
        ...


@dataclass(frozen=True)
class Network:
    """AMuSE or a rival.

    Attributes:
        kind: Its class.
        ensemble: Number of members, alike but for their seeds, whose probabilities (or numbers) are averaged.
    """

    kind: type[Amuse] = Amuse
    ensemble: int = 1

    @property
    def candidates(self) -> list[list[str]]:
        return [[]]

    def fit(self, splits: Splits, config: Config, settings: Sequence[str], folder: Path, final: bool) -> Predictor:
        config = with_settings(config, settings)
        models = []
        for member in range(self.ensemble if final else 1):
            own = replace(config, train=replace(config.train, seed=config.train.seed + MEMBER_SEEDS * member))
            place = folder / f"member{member}" if member else folder
            models.append(train_on(splits, own, place, resume=True, progress=False, kind=self.kind))
        return lambda conversations: average([predict(m, conversations, config.train.batch_size) for m in models])


@dataclass(frozen=True)
class Linear:
    """Ridge or logistic regression on training and validation part, its penalty chosen on inner folds."""

    @property
    def candidates(self) -> list[list[str]]:
        return [[f"penalty={penalty:g}"] for penalty in PENALTIES]

    def fit(self, splits: Splits, config: Config, settings: Sequence[str], folder: Path, final: bool) -> Predictor:
        penalty = float(settings[0].partition("=")[2])
        return LinearModel.fit([splits.train, splits.valid], penalty).predict


def contender(name: str | None, ensemble: int = 1) -> Contender:
    """AMuSE (None), a rival by its name, or "linear".

    Raises:
        ValueError: An unknown name, or an ensemble of linear models, which would all be the same.
    """
    if ensemble < 1 or (name == LINEAR and ensemble > 1):
        expected = "1" if name == LINEAR else "at least 1"
        raise ValueError(f"ensemble: expected {expected}, got {ensemble}")
    if name == LINEAR:
        return Linear()
    if name is not None and name not in RIVALS:
        raise ValueError(f"rival: expected {LINEAR} or one of {', '.join(RIVALS)}, got {name!r}")
    return Network(Amuse if name is None else RIVALS[name], ensemble)


def average(predictions: Sequence[Predictions]) -> Predictions:
    """The mean of probabilities, as log-probabilities, or of numbers."""
    if len(predictions) == 1:
        return predictions[0]
    first = predictions[0]
    outputs = torch.stack([each.logits for each in predictions])
    regression = outputs.shape[-1] == 1
    mean = outputs.mean(0) if regression else outputs.softmax(-1).mean(0).log()
    return Predictions(mean, first.labels, first.ids)
