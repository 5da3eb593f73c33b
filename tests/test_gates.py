"""Promises of benchmarks.gates: coefficients are those of the run's test part, and replacing them changes them only."""

import csv

import pytest
import torch

from amuse.evaluation.load import load_best, load_run
from amuse.evaluation.predict import predict
from amuse.experiments.cross_validation import cross_validate
from benchmarks import gates
from tests.test_cross_validation import configure, write_tables


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    """A grouping of three folds, trained."""
    folder = tmp_path_factory.mktemp("gates")
    cross_validate(configure(write_tables(folder / "data")), folder / "acted/AMuSE", 1, progress=False)
    return folder / "acted/AMuSE" / "grouping0"


def test_coefficients_are_those_of_every_utterance_and_can_be_replaced(folds):
    model, test, _ = load_run(folds / "fold0", "test")
    own = gates.coefficients(model, test)
    assert own.shape == (test.num_utterances, 2, 2)
    assert own[:, 0, 1].std() > 0
    asked = torch.tensor([[0.0, 0.9], [0.1, 0.0]])
    with gates.replaced(model, asked):
        replaced, other = gates.coefficients(model, test), predict(model, test).logits
    assert torch.equal(replaced[:, 0, 1], asked[0, 1].expand(len(own)))
    assert torch.equal(replaced[:, 1, 0], asked[1, 0].expand(len(own)))
    assert not torch.allclose(other, predict(model, test).logits)
    assert torch.equal(gates.coefficients(model, test), own)  # as before


def test_a_gate_that_says_the_same_for_everybody_adapts_to_nobody(folds, monkeypatch):
    def constant(folder):
        model, standardizer, config = load_best(folder)
        torch.nn.init.zeros_(model.fusion.pair_weight)
        torch.nn.init.constant_(model.fusion.pair_bias, 2.0)
        return model, standardizer, config

    monkeypatch.setattr(gates, "load_best", constant)
    fold = gates.measure(folds / "fold1")
    assert fold.mean == pytest.approx(1 / (1 + torch.tensor(-2.0).exp().item()))
    assert fold.deviation == pytest.approx(0, abs=1e-6)
    assert fold.own == pytest.approx(fold.fixed)
    assert fold.share == pytest.approx(1 / 2, abs=0.3)


def test_the_table_has_every_data_set_whose_runs_are_there(folds, tmp_path, monkeypatch):
    monkeypatch.setattr(gates, "BUILD", folds.parents[2])
    monkeypatch.setattr(gates, "GATES", tmp_path / "gates.csv")
    (folds.parents[2] / "runs").symlink_to(folds.parents[2], target_is_directory=True)
    gates.main()
    [row] = csv.DictReader((tmp_path / "gates.csv").open())
    assert (row["data"], row["folds"]) == ("acted", "3")
    assert float(row["difference"]) == pytest.approx(float(row["own"]) - float(row["fixed"]), abs=2e-4)
    assert gates.table().splitlines()[2].startswith("| Acted emotions | weighted F1 |")
