"""Promises of the ablation grid: the paper's rows, each run once, resumable, written as JSON and Markdown."""

import json

import pytest

from amuse.config import Config
from amuse.experiments import repetition
from amuse.experiments.ablation import Variant, ablate, changed, rows_of, to_markdown
from amuse.experiments.repetition import Scores

TINY = [
    "data.num_dialogues=4",
    "model.d_model=16",
    "model.num_heads=2",
    "model.man_layers=1",
    "model.modality_swap={text: 0.2}",
    "train.epochs=1",
]


def test_a_grid_is_written_resumed_and_says_the_papers_numbers(tmp_path, monkeypatch):
    trained = []

    def counted(splits, config, folder, **options):
        trained.append(config)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return train_on(splits, config, folder, **options)

    train_on = repetition.train_on
    monkeypatch.setattr(repetition, "train_on", counted)
    config = Config.load(None, TINY)
    with pytest.raises(KeyboardInterrupt):
        ablate(config, tmp_path, ["III", "IV"], seeds=2, progress=False)
    table = ablate(config, tmp_path, ["III", "IV"], seeds=2, progress=False)
    # 3 + 4 rows; "learned" and gamma 1 are the same configuration; one run was interrupted and started again
    assert len(trained) == 2 * (3 + 4 - 1) + 1
    assert ablate(config, tmp_path, ["III", "IV"], seeds=2, progress=False) == table
    assert len(trained) == 13
    assert table == (tmp_path / "ablation.md").read_text()
    row = next(line for line in table.splitlines() if line.startswith("| random α"))
    assert row.split("|")[-3:-1] == [" 70.86 ", " 72.07 "]
    scores = json.loads((tmp_path / "ablation.json").read_text())
    learned, gamma = (next(r for r in scores if r["name"] == name) for name in ("learned α", "γ = 1"))
    assert learned["scores"] == gamma["scores"]
    assert len(learned["scores"]) == 2


def test_the_tables_change_what_they_say():
    config = Config.load(None, TINY)
    rows = {row.name: row for row in rows_of("I", ["text", "audio", "video"])}
    assert len(rows) == 7 + 2
    assert rows["text+audio, concatenation"].paper == (62.65, 57.27)
    alone = changed(config, rows["audio alone"], 3)
    assert (alone.model.man, alone.model.fusion, alone.train.seed) == (False, "concat", 3)
    assert alone.model.modality_swap == {}
    assert changed(config, rows["AMuSE"], 0) == config
    assert [changed(config, row, 0).model.man_layers for row in rows_of("V", ["text"])] == [1, 3, 4, 5]
    assert [changed(config, row, 0).loss.gamma for row in rows_of("IV", ["text"])] == [0.5, 0.75, 1.0, 1.25]


def test_rows_are_compared_with_the_unchanged_configuration_seed_by_seed():
    def runs(*scores):
        return [Scores(score, score + 1, {}, 1234, 5.4, 100) for score in scores]

    unchanged = Variant("", "unchanged", {}, None, scores=runs(70.0, 80.0))
    worse = Variant("III", "random α", {}, (70.86, 72.07), scores=runs(69.0, 78.0))
    same = Variant("III", "learned α", {}, (71.32, 73.91), scores=runs(70.0, 80.0))
    lines = to_markdown([unchanged, worse, same]).splitlines()
    # differences -1 and -2: mean -1.5, standard error 0.5, much below the deviation between seeds
    assert "| random α | 73.50 ± 6.36 | 74.50 ± 6.36 | -1.50 (error 0.50) | 1,234 | 5 | 70.86 | 72.07 |" in lines
    assert "| learned α | 75.00 ± 7.07 | 76.00 ± 7.07 |  | 1,234 | 5 | 71.32 | 73.91 |" in lines


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="tables: expected some of I, II, III, IV, V, got VI"):
        ablate(Config.load(None, TINY), tmp_path, ["VI"])
    with pytest.raises(ValueError, match="seeds: expected at least 1, got 0"):
        ablate(Config.load(None, TINY), tmp_path, ["I"], seeds=0)
