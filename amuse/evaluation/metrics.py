"""Scores of predictions: weighted F1 (the field's main figure), per-class reports, confidence intervals, regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from amuse.data.batch import UNLABELLED

ArrayLike: TypeAlias = Tensor | np.ndarray | Sequence[int] | Sequence[float] | Sequence[Sequence[float]]


@dataclass
class Metrics:
    """Scores of a classifier on the labelled utterances.

    Attributes:
        weighted_f1: F1 of the classes weighted by support.
        macro_f1: Plain mean of F1 over the classes that occur in the labels or the predictions.
        accuracy: Share of right predictions.
        label_names: Class names; all per-class lists follow them.
        precision, recall, f1: Per class; 0 where undefined.
        support: Labels per class.
        confusion: `confusion[i][j]` counts utterances of class i that were predicted as j.
        weighted_f1_interval: Bootstrap interval of weighted F1, or None when not asked for.
        confidence: Coverage of that interval.
    """

    weighted_f1: float
    macro_f1: float
    accuracy: float
    label_names: list[str]
    precision: list[float]
    recall: list[float]
    f1: list[float]
    support: list[int]
    confusion: list[list[int]]
    weighted_f1_interval: tuple[float, float] | None = None
    confidence: float = 0.95

    @property
    def count(self) -> int:
        """Number of labelled utterances."""
        return sum(self.support)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and strings, ready for JSON."""
        return asdict(self)

    def report(self) -> str:
        """A table of all scores in per cent, and the confusion matrix, as text."""
        width = max(len("weighted F1"), *map(len, self.label_names))
        lines = [f"{'class':<{width}}  {'precision':>9}  {'recall':>6}  {'F1':>6}  {'support':>7}"]
        for name, *row in zip(self.label_names, self.precision, self.recall, self.f1, self.support, strict=True):
            precision, recall, f1, support = row
            scores = f"{100 * precision:>9.2f}  {100 * recall:>6.2f}  {100 * f1:>6.2f}"
            lines.append(f"{name:<{width}}  {scores}  {support:>7}")
        lines.append("")
        interval = ""
        if self.weighted_f1_interval is not None:
            low, high = self.weighted_f1_interval
            interval = f"  ({100 * self.confidence:g} % interval {100 * low:.2f} to {100 * high:.2f})"
        lines.append(f"{'weighted F1':<{width}}  {100 * self.weighted_f1:>9.2f}{interval}")
        lines.append(f"{'macro F1':<{width}}  {100 * self.macro_f1:>9.2f}")
        lines.append(f"{'accuracy':<{width}}  {100 * self.accuracy:>9.2f}  ({self.count} utterances)")
        lines += ["", "confusion (rows: label, columns: prediction)"]
        counts_width = max(len(str(count)) for row in self.confusion for count in row)
        cell = max(5, counts_width, *(min(8, len(name)) for name in self.label_names))
        lines.append(" " * width + "".join(f"  {name[:cell]:>{cell}}" for name in self.label_names))
        for name, counts in zip(self.label_names, self.confusion, strict=True):
            lines.append(f"{name:<{width}}" + "".join(f"  {n:>{cell}}" for n in counts))
        return "\n".join(lines)


@dataclass
class RegressionMetrics:
    """Scores of a regressor on the labelled utterances.

    Attributes:
        mae: Mean absolute error.
        pearson: Pearson correlation; NaN where labels or predictions are constant.
        binary_accuracy: Share of right signs (positive against negative) among labels that are not 0; NaN without any.
        count: Number of labelled utterances.
    """

    mae: float
    pearson: float
    binary_accuracy: float
    count: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return asdict(self)

    def report(self) -> str:
        """The scores as text."""
        return (
            f"MAE {self.mae:.4f}, Pearson {self.pearson:.4f}, binary accuracy {100 * self.binary_accuracy:.2f} "
            f"({self.count} utterances)"
        )


def evaluate_predictions(
    labels: ArrayLike,
    predictions: ArrayLike,
    label_names: Sequence[str],
    *,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> Metrics:
    """Scores class predictions.

    Args:
        labels: Integer `(N,)`, -100 = unlabelled and left out.
        predictions: Integer class indices `(N,)`, or floating logits or probabilities `(N, C)`.
        label_names: The C class names.
        bootstrap: Resamples for the interval of weighted F1; 0 means no interval. Utterances are drawn independently,
            so the dependence inside a dialogue is not counted.
        confidence: Coverage of the interval.
        seed: Seed of the resampling.

    Raises:
        ValueError: For empty input, different lengths, a class out of range, NaN among logits; the message names the
            argument and the first bad entry.
    """
    # it takes a second to import, which commands that score nothing need not wait for
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    num_classes = len(label_names)
    targets = _classes("labels", labels, num_classes, unlabelled=True)
    values = _array("predictions", predictions)
    if values.ndim == 2:
        guesses = _decide(values, num_classes)
    else:
        guesses = _classes("predictions", values, num_classes, unlabelled=False)
    if len(guesses) != len(targets):
        raise ValueError(f"predictions: expected as many as labels, {len(targets)}, got {len(guesses)}")
    labelled = targets != UNLABELLED
    targets, guesses = targets[labelled], guesses[labelled]
    if not len(targets):
        raise ValueError("labels: expected at least one labelled utterance, got none")

    classes = np.arange(num_classes)
    precision, recall, f1, support = precision_recall_fscore_support(targets, guesses, labels=classes, zero_division=0)
    confusion = confusion_matrix(targets, guesses, labels=classes)
    occurs = (confusion.sum(axis=0) + confusion.sum(axis=1)) > 0
    interval = _bootstrap(confusion, bootstrap, confidence, seed) if bootstrap else None
    return Metrics(
        weighted_f1=float(np.average(f1, weights=support)),
        macro_f1=float(f1[occurs].mean()),
        accuracy=float((targets == guesses).mean()),
        label_names=list(label_names),
        precision=precision.tolist(),
        recall=recall.tolist(),
        f1=f1.tolist(),
        support=support.tolist(),
        confusion=confusion.tolist(),
        weighted_f1_interval=interval,
        confidence=confidence,
    )


def evaluate_regression(labels: ArrayLike, predictions: ArrayLike) -> RegressionMetrics:
    """Scores real-valued predictions.

    Args:
        labels: Floating `(N,)`, NaN (or -100) = unlabelled and left out.
        predictions: Floating `(N,)`.

    Raises:
        ValueError: For empty input, different lengths, and predictions that are not finite.
    """
    targets = _array("labels", labels).astype(np.float64)
    guesses = _array("predictions", predictions).astype(np.float64)
    for name, values in (("labels", targets), ("predictions", guesses)):
        if values.ndim != 1:
            raise ValueError(f"{name}: expected shape (N,), got {values.shape}")
    if len(guesses) != len(targets):
        raise ValueError(f"predictions: expected as many as labels, {len(targets)}, got {len(guesses)}")
    _refuse_non_finite(guesses)
    labelled = ~np.isnan(targets) & (targets != UNLABELLED)
    targets, guesses = targets[labelled], guesses[labelled]
    if not len(targets):
        raise ValueError("labels: expected at least one labelled utterance, got none")
    spread = targets.std() > 0 and guesses.std() > 0
    signed = targets != 0
    return RegressionMetrics(
        mae=float(np.abs(targets - guesses).mean()),
        pearson=float(np.corrcoef(targets, guesses)[0, 1]) if spread else float("nan"),
        binary_accuracy=float(((targets > 0) == (guesses > 0))[signed].mean()) if signed.any() else float("nan"),
        count=len(targets),
    )


def _array(name: str, values: ArrayLike) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # numpy has no bfloat16
        array = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    else:
        array = np.asarray(values)
    if array.size == 0:
        raise ValueError(f"{name}: expected at least one entry, got shape {array.shape}")
    return array


def _classes(name: str, values: ArrayLike, num_classes: int, *, unlabelled: bool) -> np.ndarray:
    array = _array(name, values)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected integers of shape (N,), got {array.dtype} {array.shape}")
    bad = (array < 0) | (array >= num_classes)
    if unlabelled:
        bad &= array != UNLABELLED
    if bad.any():
        first = int(bad.argmax())
        also = f" or {UNLABELLED}" if unlabelled else ""
        raise ValueError(f"{name}[{first}]: expected 0 to {num_classes - 1}{also}, got {array[first]}")
    return array.astype(np.int64)


def _decide(logits: np.ndarray, num_classes: int) -> np.ndarray:
    if logits.dtype.kind != "f" or logits.shape[1] != num_classes:
        raise ValueError(f"predictions: expected floating (N, {num_classes}), got {logits.dtype} {logits.shape}")
    if np.isnan(logits).any():
        first = int(np.isnan(logits).any(axis=1).argmax())
        raise ValueError(f"predictions[{first}]: expected numbers, got NaN")
    return logits.argmax(axis=1)


def _refuse_non_finite(predictions: np.ndarray) -> None:
    bad = ~np.isfinite(predictions)
    if bad.any():
        first = int(bad.argmax())
        raise ValueError(f"predictions[{first}]: expected a finite number, got {predictions[first]}")


def _bootstrap(confusion: np.ndarray, resamples: int, confidence: float, seed: int) -> tuple[float, float]:
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"bootstrap, confidence: expected at least 1 resample and a coverage between 0 and 1, "
            f"got {resamples} and {confidence}"
        )
    # drawing N utterances with replacement is drawing N cells of the confusion matrix, all that scores depend on
    total = int(confusion.sum())
    drawn = np.random.default_rng(seed).multinomial(total, confusion.ravel() / total, size=resamples)
    drawn = drawn.reshape(resamples, *confusion.shape)
    hits = np.diagonal(drawn, axis1=1, axis2=2)
    support = drawn.sum(axis=2)
    f1 = 2 * hits / np.maximum(support + drawn.sum(axis=1), 1)
    scores = (f1 * support).sum(axis=1) / total
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
