"""Scores for transformers' Trainer."""

from collections.abc import Callable
from typing import Any

import numpy as np

from amuse.data.batch import UNLABELLED
from amuse.evaluation.metrics import evaluate_predictions, evaluate_regression
from amuse.hf.configuration import AmuseConfig


def utterance_scores(config: AmuseConfig) -> Callable[[Any], dict[str, float]]:
    """For `Trainer(compute_metrics=...)`: scores of the labelled utterances; empty if nothing is labelled."""

    def compute(predicted: Any) -> dict[str, float]:
        known = predicted.label_ids != UNLABELLED
        if not known.any():
            return {}
        labels, logits = predicted.label_ids[known], np.asarray(predicted.predictions)[known]
        if config.problem_type == "regression":
            scores = evaluate_regression(labels, logits[:, 0])
            return {"mae": scores.mae, "pearson": scores.pearson, "binary_accuracy": scores.binary_accuracy}
        metrics = evaluate_predictions(labels, logits, config.data_spec().label_names or [])
        return {"weighted_f1": metrics.weighted_f1, "macro_f1": metrics.macro_f1, "accuracy": metrics.accuracy}

    return compute
