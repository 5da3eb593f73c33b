import json

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from amuse.evaluation.metrics import evaluate_predictions, evaluate_regression

NAMES = ["calm", "angry", "sad"]
GENERATOR = np.random.default_rng(0)
LABELS = GENERATOR.choice(3, size=200, p=[0.6, 0.3, 0.1])
GUESSES = np.where(GENERATOR.random(200) < 0.7, LABELS, GENERATOR.integers(0, 3, size=200))


def test_scores_agree_with_scikit_learn():
    metrics = evaluate_predictions(LABELS, GUESSES, NAMES)
    assert metrics.weighted_f1 == pytest.approx(f1_score(LABELS, GUESSES, average="weighted"))
    assert metrics.macro_f1 == pytest.approx(f1_score(LABELS, GUESSES, average="macro"))
    assert metrics.accuracy == pytest.approx(accuracy_score(LABELS, GUESSES))
    assert np.trace(metrics.confusion) == (LABELS == GUESSES).sum()
    assert sum(metrics.support) == metrics.count == 200


def test_weighted_f1_of_a_case_worked_by_hand():
    metrics = evaluate_predictions([0, 0, 0, 1], [0, 0, 1, 1], ["a", "b"])
    # F1 of a: 2 * 1 * (2/3) / (5/3) = 0.8; of b: 2 * (1/2) * 1 / (3/2) = 2/3
    assert metrics.weighted_f1 == pytest.approx((3 * 0.8 + 2 / 3) / 4)
    assert metrics.confusion == [[2, 1], [0, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_logits_and_class_indices_score_the_same(dtype):
    logits = torch.nn.functional.one_hot(torch.from_numpy(GUESSES), 3).to(dtype)
    assert evaluate_predictions(LABELS, logits, NAMES) == evaluate_predictions(LABELS, GUESSES, NAMES)


def test_unlabelled_utterances_are_left_out():
    labels = np.concatenate([LABELS, np.full(50, -100)])
    guesses = np.concatenate([GUESSES, np.zeros(50, dtype=np.int64)])
    assert evaluate_predictions(labels, guesses, NAMES) == evaluate_predictions(LABELS, GUESSES, NAMES)


def test_class_that_never_occurs_scores_0_and_does_not_lower_the_macro_f1():
    metrics = evaluate_predictions([0, 1], [0, 1], NAMES)
    assert metrics.f1 == [1.0, 1.0, 0.0]
    assert metrics.macro_f1 == metrics.weighted_f1 == 1.0


def test_bootstrap_interval_is_seeded_and_holds_the_score():
    first = evaluate_predictions(LABELS, GUESSES, NAMES, bootstrap=500, seed=1)
    assert first == evaluate_predictions(LABELS, GUESSES, NAMES, bootstrap=500, seed=1)
    low, high = first.weighted_f1_interval
    assert low < first.weighted_f1 < high
    resampled = np.random.default_rng(2)
    draws = [resampled.integers(0, 200, size=200) for _ in range(300)]
    plain = [f1_score(LABELS[i], GUESSES[i], average="weighted") for i in draws]
    assert (low, high) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])), abs=0.02)


def test_report_names_every_class_and_score():
    metrics = evaluate_predictions(LABELS, GUESSES, NAMES, bootstrap=50)
    report = metrics.report()
    score = f"{100 * metrics.weighted_f1:.2f}"
    for expected in [*NAMES, "weighted F1", "macro F1", "accuracy", "95 % interval", score]:
        assert expected in report
    assert json.loads(json.dumps(metrics.to_dict()))["label_names"] == NAMES


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([], [], "labels: expected at least one entry"),
        ([-100], [0], "at least one labelled utterance"),
        ([0, 3], [0, 0], r"labels\[1\]: expected 0 to 2 or -100, got 3"),
        ([0, 1], [0, -100], r"predictions\[1\]: expected 0 to 2, got -100"),
        ([0, 1], [0], "predictions: expected as many as labels, 2, got 1"),
        ([0.0, 1.0], [0, 1], "labels: expected integers"),
        ([0], [[0.0, float("nan"), 1.0]], r"predictions\[0\]: expected numbers, got NaN"),
        ([0], [[0.0, 1.0]], r"expected floating \(N, 3\)"),
    ],
)
def test_impossible_input_is_refused(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        evaluate_predictions(labels, predictions, NAMES)


def test_regression_scores():
    metrics = evaluate_regression([1.0, -2.0, 0.0, float("nan")], torch.tensor([0.5, -1.0, 0.25, 9.0]))
    assert metrics.mae == pytest.approx((0.5 + 1 + 0.25) / 3)
    assert metrics.pearson == pytest.approx(np.corrcoef([1, -2, 0], [0.5, -1, 0.25])[0, 1])
    assert metrics.binary_accuracy == 1.0
    assert metrics.count == 3
    assert np.isnan(evaluate_regression([1.0, 1.0], [0.5, 0.25]).pearson)
    assert "MAE" in metrics.report()


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([], [], "at least one entry"),
        ([float("nan")], [0.0], "at least one labelled"),
        ([0.0], [float("nan")], r"predictions\[0\]: expected a finite number"),
        ([0.0, 1.0], [0.0], "as many as labels"),
        ([[0.0]], [0.0], r"labels: expected shape \(N,\)"),
    ],
)
def test_impossible_regression_input_is_refused(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        evaluate_regression(labels, predictions)
