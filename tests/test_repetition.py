"""Promises of repeated training: one run per seed, each kept and reported, no other configuration mixed in."""

import statistics

import pytest
from typer.testing import CliRunner

from amuse.cli.main import app
from amuse.config import Config
from amuse.evaluation.load import load_run
from amuse.evaluation.predict import evaluate
from amuse.experiments.cross_validation import read_scores
from amuse.experiments.repetition import repeat

TINY = ["data.num_dialogues=4", "model.d_model=16", "model.num_heads=2", "model.man_layers=1", "train.epochs=1"]


def test_every_seed_is_trained_once_tested_and_averaged(tmp_path):
    changes = [argument for change in [*TINY, "train.seed=3"] for argument in ("--set", change)]
    arguments = ["repeat", "--out", str(tmp_path), "--seeds", "2", *changes]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    states = {seed: (tmp_path / f"seed{seed}" / "state.pt").stat().st_mtime_ns for seed in (3, 4)}
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in first.stdout.splitlines() if "|" in line}
    scores = []
    for seed in states:
        model, test, _ = load_run(tmp_path / f"seed{seed}", "test")
        metrics = evaluate(model, test)
        scores.append(100 * metrics.weighted_f1)
        assert rows[f"seed {seed}"][:2] == [f" {scores[-1]:.2f} ", f" {100 * metrics.accuracy:.2f} "]
        assert float(rows[f"seed {seed}"][3]) > 50  # MiB; torch alone takes more
    assert scores[0] != scores[1]
    assert rows["mean"][0].strip() == f"{statistics.fmean(scores):.2f} ± {statistics.stdev(scores):.2f}"
    assert set(test.label_names) <= set(rows)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in first.stdout

    tested = read_scores(tmp_path).tested
    assert [(each.seed, each.grouping) for each in tested] == [(3, None), (4, None)]
    assert tested[0].digest == tested[1].digest

    again = CliRunner().invoke(app, arguments)
    assert again.stdout[again.stdout.index("| |") :] == first.stdout[first.stdout.index("| |") :]
    assert states == {seed: (tmp_path / f"seed{seed}" / "state.pt").stat().st_mtime_ns for seed in states}


def test_runs_of_another_configuration_are_not_mixed_in(tmp_path):
    repeat(Config.load(None, TINY), tmp_path, 1, progress=False)
    with pytest.raises(ValueError, match=r"train\.learning_rate: the run was started with"):
        repeat(Config.load(None, [*TINY, "train.learning_rate=0.1"]), tmp_path, 1, progress=False)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="seeds: expected at least 1, got 0"):
        repeat(Config.load(None, TINY), tmp_path, 0)
