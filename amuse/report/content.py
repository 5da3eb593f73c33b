"""What a report shows."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from amuse.data.batch import UNLABELLED
from amuse.data.conversation import Utterance
from amuse.evaluation.metrics import Metrics, RegressionMetrics, evaluate_predictions, evaluate_regression
from amuse.explain import Explanation


@dataclass(frozen=True)
class Region:
    """The part of a picture that a group of the explanation speaks of: `x`, `y`, `width`, `height` are shares of it."""

    group: int
    x: float
    y: float
    width: float
    height: float


@dataclass
class KeyFrame:
    """A picture, uint8 `(H, W, 3)`, taken at `time` seconds of the recording."""

    image: np.ndarray
    time: float
    regions: list[Region] = field(default_factory=list)


@dataclass
class Media:
    """The recording of one utterance, as far as it is at hand.

    Attributes:
        waveform: Float `(samples,)` in [-1, 1], from the utterance's start to its end.
        mel: Float `(bands, frames)`, log power, lowest band first, of the same time.
        frames: Key frames.
    """

    waveform: np.ndarray | None = None
    mel: np.ndarray | None = None
    frames: list[KeyFrame] = field(default_factory=list)


@dataclass
class Turn:
    """One utterance of the report."""

    utterance: Utterance
    explanation: Explanation
    media: Media = field(default_factory=Media)


@dataclass
class Bin:
    """Predictions of about the same confidence: its mean, their accuracy and number."""

    confidence: float
    accuracy: float
    count: int


@dataclass
class Quality:
    """How good the model is on labelled data: scores and, by confidence, how often it is right."""

    metrics: Metrics
    bins: list[Bin]
    calibration_error: float

    @classmethod
    def measure(cls, probabilities: Tensor, labels: Tensor, label_names: list[str], num_bins: int = 10) -> "Quality":
        """Of probabilities `(U, C)` and labels int64 `(U,)`, -100 = unlabelled; at least one is labelled."""
        labelled = labels != UNLABELLED
        confidence, predicted = probabilities[labelled].double().max(-1)
        right = (predicted == labels[labelled]).double()
        index = (confidence * num_bins).long().clamp(max=num_bins - 1)
        bins = [
            Bin(float(confidence[rows].mean()), float(right[rows].mean()), int(rows.sum()))
            for rows in (index == i for i in range(num_bins))
            if rows.any()
        ]
        error = sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / len(right)
        return cls(evaluate_predictions(labels, torch.log(probabilities), label_names), bins, error)


@dataclass
class RegressionQuality:
    """How good a regressor is on labelled data: scores, and float64 labels and predictions `(U,)`."""

    metrics: RegressionMetrics
    labels: Tensor
    predictions: Tensor

    @classmethod
    def measure(cls, predictions: Tensor, labels: Tensor) -> "RegressionQuality":
        """Of predictions and labels `(U,)`, NaN = unlabelled; at least one is labelled."""
        known = ~labels.isnan()
        labels, predictions = labels[known].double(), predictions[known].double()
        return cls(evaluate_regression(labels, predictions), labels, predictions)


@dataclass
class Content:
    """A report.

    Attributes:
        title: Of the page.
        turns: The utterances of one dialogue, in their order.
        label_names: Emotions; None for regression.
        modalities: Of the model, in the order of `Explanation.fusion`.
        card: Facts about the model and how the report came about.
        quality: On labelled data, where there are some.
    """

    title: str
    turns: list[Turn]
    label_names: list[str] | None
    modalities: list[str]
    card: dict[str, str]
    quality: Quality | RegressionQuality | None = None
