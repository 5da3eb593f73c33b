"""How good a model is on labelled data, as a report shows it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from amuse.data.batch import UNLABELLED
from amuse.evaluation.metrics import Metrics, RegressionMetrics, evaluate_predictions, evaluate_regression


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
