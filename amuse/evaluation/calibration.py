"""Calibration of class probabilities by one temperature, fitted on the validation split (Guo et al. 2017)."""

import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from amuse.data.batch import UNLABELLED
from amuse.files import BEST, CALIBRATION_FILE, read_json, write_text

logger = logging.getLogger(__name__)

COLDEST, HOTTEST = 0.02, 50.0
ENOUGH = 50
"""Labels that a temperature is fitted on at least; fewer say more about chance than about the model."""
NUM_BINS = 15  # for the expected calibration error, as in Guo et al.


@dataclass
class Calibration:
    """How well confidence matches accuracy, without and with the temperature.

    Attributes:
        temperature: Divides the logits.
        ece, ece_calibrated: Expected calibration error.
        nll, nll_calibrated: Mean negative log-likelihood.
        confidence: Mean probability of the predicted class, with the temperature.
        accuracy: Share of correct predictions, which the temperature does not change.
    """

    temperature: float
    ece: float
    ece_calibrated: float
    nll: float
    nll_calibrated: float
    confidence: float
    accuracy: float

    @classmethod
    def measure(cls, logits: Tensor, labels: Tensor, temperature: float) -> Self:
        """From logits `(N, C)` and int64 labels `(N,)`; -100 = unlabelled and left out, at least one is labelled."""
        labelled = labels != UNLABELLED
        logits, labels = logits[labelled].double(), labels[labelled]
        scaled = logits / temperature
        confidence, predicted = scaled.softmax(-1).max(-1)
        return cls(
            temperature,
            expected_calibration_error(logits.softmax(-1), labels),
            expected_calibration_error(scaled.softmax(-1), labels),
            F.cross_entropy(logits, labels).item(),
            F.cross_entropy(scaled, labels).item(),
            confidence.mean().item(),
            (predicted == labels).double().mean().item(),
        )

    @classmethod
    def fit(cls, logits: Tensor, labels: Tensor) -> Self:
        """With the temperature that is best for these predictions, 1 with fewer than `ENOUGH` labels; see `measure`."""
        if int((labels != UNLABELLED).sum()) < ENOUGH:
            return cls.measure(logits, labels, 1.0)
        temperature = fit_temperature(logits, labels)
        if not 1.01 * COLDEST < temperature < 0.99 * HOTTEST:
            logger.warning(
                "temperature %.3g is at its bound: the predictions %s; do not trust the probabilities",
                temperature,
                "are hardly better than chance" if temperature > 1 else "are all but certain on the validation split",
            )
        return cls.measure(logits, labels, temperature)

    def report(self) -> str:
        calibrated = f"{100 * self.ece_calibrated:.2f} with temperature {self.temperature:.3f}"
        return (
            f"calibration error {100 * self.ece:.2f}, {'not calibrated' if self.temperature == 1 else calibrated}; "
            f"mean confidence {100 * self.confidence:.2f}, accuracy {100 * self.accuracy:.2f}"
        )

    def save(self, folder: Path) -> None:
        """Save next to the checkpoint in `folder`."""
        write_text(json.dumps(asdict(self), indent=2), folder / CALIBRATION_FILE)


def load_temperature(run: str | Path) -> float:
    """The temperature of a run's best model; 1 for regression and for runs of older versions, which have none.

    Raises:
        ValueError: A damaged file.
    """
    path = Path(run) / BEST / CALIBRATION_FILE
    if not path.is_file():
        return 1.0
    temperature = read_json(path).get("temperature")
    if not isinstance(temperature, float) or not 0 < temperature < math.inf:
        raise ValueError(f"{path}: expected a positive number 'temperature', got {temperature!r}")
    return temperature


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature of the least negative log-likelihood, between 0.02 and 50.

    The likelihood is convex in b = 1 / T, with slope mean(E_p[z] - z_label), whose only zero is found by bisection.

    Args:
        logits: `(N, C)`. labels: int64 `(N,)`, -100 = unlabelled and left out.
    """
    labelled = labels != UNLABELLED
    logits, labels = logits[labelled].double(), labels[labelled]
    right = logits.gather(1, labels[:, None]).squeeze(1)
    low, high = torch.tensor([1 / HOTTEST, 1 / COLDEST], dtype=torch.float64).log().tolist()
    for _ in range(50):
        middle = (low + high) / 2
        p = (logits * torch.tensor(middle).exp()).softmax(-1)
        if ((p * logits).sum(-1) - right).mean() < 0:
            low = middle
        else:
            high = middle
    return float(torch.tensor(-(low + high) / 2, dtype=torch.float64).exp())


@dataclass
class Bin:
    """Predictions of similar confidence: its mean, their accuracy and their number."""

    confidence: float
    accuracy: float
    count: int


def reliability(probabilities: Tensor, labels: Tensor, bins: int = NUM_BINS) -> list[Bin]:
    """Confidence and accuracy by equally wide bins of confidence; empty bins are left out.

    Args:
        probabilities: `(N, C)`. labels: int64 `(N,)`, all labelled.
    """
    confidence, predicted = probabilities.double().max(-1)
    right = (predicted == labels).double()
    index = (confidence * bins).long().clamp(max=bins - 1)
    return [
        Bin(float(confidence[rows].mean()), float(right[rows].mean()), int(rows.sum()))
        for rows in (index == i for i in range(bins))
        if rows.any()
    ]


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = NUM_BINS) -> float:
    """Mean difference of accuracy and confidence over the bins of `reliability`, weighted by their counts."""
    found = reliability(probabilities, labels, bins)
    return sum(each.count * abs(each.confidence - each.accuracy) for each in found) / len(labels)
