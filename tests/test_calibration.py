"""Promises of calibration: the temperature is the likelihood's best and brings confidence close to accuracy."""

import json

import pytest
import torch
import torch.nn.functional as F

from amuse.config import Config
from amuse.evaluation.calibration import Calibration, expected_calibration_error, fit_temperature, load_temperature
from amuse.evaluation.load import load_run
from amuse.evaluation.predict import predict
from amuse.evaluation.quality import Quality
from amuse.training.train import train


def drawn_predictions(count=4000, sharpened=3.0):
    """Logits whose softmax is the truth, made too confident by a known factor."""
    logits = 1.5 * torch.randn(count, 4)
    labels = torch.distributions.Categorical(logits=logits).sample()
    return sharpened * logits, labels


def test_the_temperature_undoes_a_known_overconfidence():
    logits, labels = drawn_predictions(sharpened=3.0)
    assert fit_temperature(logits, labels) == pytest.approx(3.0, rel=0.05)
    report = Calibration.fit(logits, labels)
    assert report.ece > 0.1
    assert report.ece_calibrated < 0.03
    assert report.confidence == pytest.approx(report.accuracy, abs=0.02)


def test_no_other_temperature_is_likelier():
    logits, labels = drawn_predictions(count=200, sharpened=0.5)
    best = fit_temperature(logits, labels)

    def nll(temperature):
        return F.cross_entropy(logits.double() / temperature, labels).item()

    assert nll(best) <= min(nll(best * factor) for factor in (0.9, 0.99, 1.01, 1.1))


def test_the_temperature_of_perfect_or_useless_predictions_is_bounded():
    assert 0.02 <= fit_temperature(torch.eye(3) * 5, torch.arange(3)) < 1
    assert 1 < fit_temperature(torch.eye(3) * 5, torch.tensor([1, 2, 0])) <= 50


def test_unlabelled_predictions_are_left_out():
    logits, labels = drawn_predictions(count=300)
    more = torch.cat([labels, torch.full((50,), -100)])
    assert fit_temperature(torch.cat([logits, torch.randn(50, 4)]), more) == fit_temperature(logits, labels)


def test_calibration_error_by_hand():
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.45, 0.55]])
    labels = torch.tensor([0, 1, 1, 1])
    # one bin of confidence 0.9 with half right, one around 0.6 and one of 0.55 (15 bins), all right
    expected = (2 * abs(0.9 - 0.5) + (1 - 0.6) + (1 - 0.55)) / 4
    assert expected_calibration_error(probabilities, labels, bins=15) == pytest.approx(expected, abs=1e-6)


def test_the_temperature_is_stored_with_the_checkpoint(tmp_path):
    tiny = ["data.num_dialogues=30", "model.d_model=16", "model.num_heads=2", "model.man_layers=1", "train.epochs=1"]
    train(Config.load(None, tiny), tmp_path, progress=False)
    model, valid, _ = load_run(tmp_path, "valid")
    predictions = predict(model, valid)
    assert load_temperature(tmp_path) == pytest.approx(fit_temperature(predictions.logits, predictions.labels))
    stored = json.loads((tmp_path / "best" / "calibration.json").read_text())
    assert stored["nll_calibrated"] <= stored["nll"]
    confidence = predictions.probabilities(load_temperature(tmp_path)).max(-1).values
    assert confidence.mean().item() == pytest.approx(stored["confidence"])
    (tmp_path / "best" / "calibration.json").write_text("{")
    with pytest.raises(ValueError, match="not a complete JSON file"):
        load_temperature(tmp_path)


def test_every_page_shows_the_same_calibration_error():
    torch.manual_seed(0)
    logits, labels = 2 * torch.randn(400, 4), torch.randint(0, 4, (400,))
    shown = Quality.measure(logits.double().softmax(-1), labels, list("abcd"))
    assert shown.calibration_error == pytest.approx(Calibration.measure(logits, labels, 1.0).ece, abs=1e-12)
    assert len(shown.bins) > 10
