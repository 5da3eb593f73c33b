"""A model's quality on labelled data, as a report shows it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from amuse.data.batch import UNLABELLED
from amuse.evaluation.calibration import NUM_BINS, Bin, expected_calibration_error, reliability
from amuse.evaluation.metrics import Metrics, RegressionMetrics, evaluate_predictions, evaluate_regression


@dataclass
class Quality:
    """A classifier's scores on labelled data, and its accuracy by confidence."""

    metrics: Metrics
    bins: list[Bin]
    calibration_error: float

    @classmethod
    def measure(
        cls, probabilities: Tensor, labels: Tensor, label_names: list[str], num_bins: int = NUM_BINS
    ) -> "Quality":
        """From probabilities `(U, C)` and int64 labels `(U,)`, -100 = unlabelled; at least one is labelled."""
        known = labels != UNLABELLED
        bins = reliability(probabilities[known], labels[known], num_bins)
        error = expected_calibration_error(probabilities[known], labels[known], num_bins)
        return cls(evaluate_predictions(labels, torch.log(probabilities), label_names), bins, error)


@dataclass
class RegressionQuality:
    """A regressor's scores on labelled data, and float64 labels and predictions `(U,)`."""

    metrics: RegressionMetrics
    labels: Tensor
    predictions: Tensor

    @classmethod
    def measure(cls, predictions: Tensor, labels: Tensor) -> "RegressionQuality":
        """From predictions and labels `(U,)`, NaN = unlabelled; at least one is labelled."""
        known = ~labels.isnan()
        labels, predictions = labels[known].double(), predictions[known].double()
        return cls(evaluate_regression(labels, predictions), labels, predictions)
