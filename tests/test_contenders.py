"""Promises of cross-validation's contenders: rivals, ensembles, linear models; inner folds never see the test part."""

import statistics

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from typer.testing import CliRunner

from amuse.cli.main import app
from amuse.data.batch import UNLABELLED
from amuse.data.folds import Fold, cut_fold, cut_inner_fold
from amuse.data.load import load_splits
from amuse.evaluation.load import load_run
from amuse.evaluation.predict import Predictions, predict
from amuse.experiments import cross_validation
from amuse.experiments.contender import Linear, Network, average, contender
from amuse.experiments.cross_validation import cross_validate, read_scores
from amuse.experiments.linear import LinearModel, mean_features
from amuse.experiments.rivals import RIVALS
from tests.test_cross_validation import TINY, configure, write_tables


def test_inner_folds_have_nothing_of_the_test_part_and_cover_the_rest():
    groups = {f"d{i}": f"g{i // 2}" for i in range(24)}
    outer = cut_fold(groups, 4, 1, 7, 0.2)
    inner = [cut_inner_fold(groups, outer, 3, fold, 7, 0.2) for fold in range(3)]
    for part in inner:
        assert not {*part.train, *part.valid, *part.test} & set(outer.test)
    assert sorted(name for part in inner for name in part.test) == sorted([*outer.train, *outer.valid])
    assert isinstance(inner[0], Fold)


def test_choices_by_inner_folds_never_look_at_the_test_part(tmp_path, monkeypatch):
    config = configure(write_tables(tmp_path / "data"), "data.inner_folds=2", "train.epochs=1")
    looked_at = []

    class Fake:
        """Right with the second candidate, always wrong with the first."""

        candidates = ([],)

        def fit(self, splits, config, settings, folder, final):
            looked_at.append((final, {d.id for d in splits.test.dialogues}, settings))
            right = settings == ["model.dropout=0.5"]

            def predictor(conversations):
                labels = torch.tensor([u.label for u in conversations.utterances()])
                answers = labels if right else (labels + 1) % 3
                return Predictions(torch.eye(3)[answers], labels, [(u.id, u.id) for u in conversations.utterances()])

            return predictor

    monkeypatch.setattr(cross_validation, "Network", Fake)
    done = cross_validate(config, tmp_path / "runs", 1, ["model.dropout=[0.1, 0.5]"], progress=False)
    assert [fold.chosen for fold in done.folds] == [["model.dropout=0.5"]] * 3
    assert done.pooled[0][0] == pytest.approx(100)
    assert len(looked_at) == 3 * (2 * 2 + 1)
    for fold in range(3):
        *inner, (final, tested, _) = looked_at[5 * fold : 5 * fold + 5]
        assert final
        for is_final, seen, _ in inner:
            assert not is_final
            assert not seen & tested


def test_an_ensemble_averages_probabilities_of_models_that_differ_by_seed(tmp_path):
    config = configure(write_tables(tmp_path / "data"), "train.epochs=1")
    splits = load_splits(config.data, progress=False)
    ensemble = Network(ensemble=2)
    chosen = ensemble.fit(splits, config, [], tmp_path / "a", final=True)(splits.test)
    members = []
    for folder in (tmp_path / "a", tmp_path / "a" / "member1"):
        model, test, own = load_run(folder, "test")
        members.append(predict(model, test).probabilities())
        assert own.train.seed == (1000 if folder.name == "member1" else 0)
    assert not torch.equal(*members)
    torch.testing.assert_close(chosen.probabilities(), torch.stack(members).mean(0))
    ensemble.fit(splits, config, [], tmp_path / "b", final=False)
    assert not (tmp_path / "b" / "member1").exists()
    numbers = [Predictions(torch.tensor([[x]]), None, []) for x in (1.0, 4.0)]
    assert average(numbers).logits.item() == 2.5


@pytest.mark.parametrize("regression", [True, False])
def test_the_linear_model_is_ridge_or_logistic_regression_on_mean_tokens(tmp_path, regression):
    splits, model = _linear_model(tmp_path, regression)
    found = model.predict(splits.test)
    rows = [np.concatenate([mean_features(part).numpy() for part in parts]) for parts in _parts(splits)]
    centre, deviation = rows[0].mean(0), rows[0].std(0)
    fit_on, asked = ((each - centre) / deviation for each in rows)
    labels = [u.label for part in (splits.train, splits.valid) for u in part.utterances()]
    if regression:
        expected = Ridge(3.0).fit(fit_on, labels).predict(asked)
        np.testing.assert_allclose(found.logits[:, 0], expected, rtol=1e-4)
    else:
        accuracy = (found.logits.argmax(1) == found.labels).double().mean()
        assert accuracy > 0.9  # the first feature says the label
        torch.testing.assert_close(found.logits.exp().sum(1), torch.ones(len(asked)))


@pytest.mark.parametrize("regression", [True, False])
def test_a_linear_model_takes_utterances_without_a_label(tmp_path, regression):
    splits, model = _linear_model(tmp_path, regression)
    known = model.predict(splits.test)
    utterances = list(splits.test.utterances())
    utterances[0].label = None
    found = model.predict(splits.test)
    assert torch.equal(found.logits, known.logits)
    assert found.labels[0].isnan() if regression else found.labels[0] == UNLABELLED
    assert torch.equal(found.labels[1:], known.labels[1:])
    for utterance in utterances:
        utterance.label = None
    assert model.predict(splits.test).labels is None


def _linear_model(folder, regression):
    splits = load_splits(configure(write_tables(folder, regression)).data, progress=False)
    return splits, LinearModel.fit([splits.train, splits.valid], 3.0)


def _parts(splits):
    return [splits.train, splits.valid], [splits.test]


def test_a_linear_model_chooses_its_penalty_inside(tmp_path):
    config = configure(write_tables(tmp_path / "data", regression=True), "data.inner_folds=2")
    done = cross_validate(config, tmp_path / "runs", 2, progress=False, trained=Linear())
    assert all(fold.chosen[0].startswith("penalty=") for fold in done.folds)
    assert statistics.fmean(pair[0] for pair in done.pooled) > 0.8
    assert read_scores(tmp_path / "runs") == done
    with pytest.raises(ValueError, match="expected one way to candidates"):
        cross_validate(config, tmp_path / "x", 1, ["model.dropout=[0.1]"], progress=False, trained=Linear())


def test_the_command_trains_a_rival_and_names_mistakes(tmp_path):
    data = write_tables(tmp_path / "data")
    small = [part for setting in (*TINY, "train.epochs=1") for part in ("--set", setting)]
    arguments = ["repeat", "--data", str(data), "--folds", "2", "--seeds", "1", *small]
    result = CliRunner().invoke(app, [*arguments, "--rival", "tensor fusion", "--out", str(tmp_path / "runs")])
    assert result.exit_code == 0, result.output
    weights = RIVALS["tensor fusion"].from_pretrained(tmp_path / "runs" / "grouping0" / "fold0" / "best")
    assert len(weights.narrow) == 2
    for words, message in (
        (["--rival", "MISA"], "rival: expected linear or one of early fusion, .*, got 'MISA'"),
        (["--rival", "linear", "--ensemble", "2"], "ensemble: expected 1, got 2"),
        (["--ensemble", "0"], "ensemble: expected at least 1, got 0"),
        (["--trials", "2", "--choose", "model.dropout=[0.1]"], "expected one way to candidates"),
    ):
        result = CliRunner().invoke(app, [*arguments, *words, "--out", str(tmp_path / "x")])
        with pytest.raises(ValueError, match=message):
            raise result.exception
    assert contender(None) == Network()
