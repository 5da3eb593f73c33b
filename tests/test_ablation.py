"""Promises of the ablation grid: the paper's rows, each run once, resumable, written as JSON and Markdown."""

import csv
import json
import statistics

import pytest
from typer.testing import CliRunner

from amuse.cli.main import app
from amuse.config import Config
from amuse.experiments import repetition
from amuse.experiments.ablation import ablate, compared
from amuse.experiments.paired import paired_difference
from amuse.experiments.rows import TABLES, Variant, changed, rows_of
from amuse.experiments.tables import GridRow, Result, grid_latex, grid_markdown
from tests.test_cross_validation import configure, write_tables

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
    rows = ablate(config, tmp_path, ["III", "IV"], seeds=2, progress=False)
    # 6 + 4 rows; "gate" and gamma 1 are the same configuration; one run was interrupted and started again
    assert len(trained) == 2 * (6 + 4 - 1) + 1
    assert ablate(config, tmp_path, ["III", "IV"], seeds=2, progress=False) == rows
    assert len(trained) == 19
    table = (tmp_path / "ablation.md").read_text()
    assert table == grid_markdown(rows)
    row = next(line for line in table.splitlines() if line.startswith("| random α"))
    assert row.split("|")[-3:-1] == [" 70.86 ", " 72.07 "]
    scores = json.loads((tmp_path / "ablation.json").read_text())
    gate, gamma = (next(r for r in scores if r["variant"]["name"] == name) for name in ("gate", "γ = 1"))
    assert gate["result"] == gamma["result"]
    assert len(gate["result"]["scores"]) == 2
    written = list(csv.DictReader((tmp_path / "ablation.csv").open()))
    assert [row["row"] for row in written][:4] == ["unchanged", "random α", "equal α", "gate"]
    assert written[1]["shows"] in ("helps", "hurts", "not shown")
    assert (tmp_path / "ablation.tex").read_text().count(r"\begin{tabular}") == 2


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


def test_the_rows_of_table_iii_are_all_ways_to_alpha():
    config = Config.load(None, [*TINY, "model.gate_teacher=true"])
    made = {row.name: changed(config, row, 0).model for row in rows_of("III", ["text", "audio"])}
    assert {name: (model.fusion, model.gate_teacher) for name, model in made.items()} == {
        "random α": ("random", False),
        "equal α": ("equal", False),
        "gate": ("learned", False),
        "gate with teacher": ("learned", True),
        "Eq. 6, predicted label": ("closed_form", False),
        "chain": ("chain", False),
    }
    assert [row.name for row in rows_of("III", ["text"], regression=True)] == ["random α", "equal α", "gate"]


def test_every_row_of_our_tables_is_a_configuration_that_trains():
    config = Config.load(None, TINY)
    for table in TABLES:
        rows = rows_of(table, ["text", "audio", "video"])
        made = [changed(config, row, 0) for row in rows]
        assert all(each == config for each, row in zip(made, rows, strict=True) if not row.changes)
    contrast = {row.name: changed(config, row, 0).loss for row in rows_of("losses", ["text"])}
    assert [contrast[name].contrastive_kind for name in ("no contrast", "NCE", "InfoNCE")] == ["none", "nce", "infonce"]
    assert (contrast["cross-entropy"].gamma, contrast["focal loss, γ = 1"].gamma) == (0, 1)
    attention = {row.name: changed(config, row, 0).model for row in rows_of("attention", ["text"])}
    assert attention["one softmax over all sources"].man_normalization == "joint"
    guards = {row.name: changed(config, row, 0) for row in rows_of("overfitting", ["text", "audio"])}
    assert guards["modality dropout"].model.modality_dropout == {"text": 0.2, "audio": 0.2}
    assert guards["mixup"].train.mixup == 0.4


def result(*scores, gap=()):
    return Result("weighted F1", "accuracy", [[s, s + 1] for s in scores], list(scores), 0.0, list(gap), 1234, 5.4)


def test_rows_are_compared_with_the_unchanged_configuration_seed_by_seed():
    unchanged = result(70.0, 80.0, 75.0)
    rows = [
        GridRow(Variant("", "unchanged", {}), unchanged, None, None),
        compared(Variant("III", "random α", {}, (70.86, 72.07)), result(69.0, 78.0, 73.5, gap=[1, 2, 3]), unchanged),
        GridRow(Variant("III", "gate & co", {}, (71.32, 73.91)), unchanged, None, None),
    ]
    lines = grid_markdown(rows).splitlines()
    # differences -1, -2 and -1.5: mean -1.5, standard error 0.29, times 4.30 for the interval
    cells = "73.50 ± 4.50 | 74.50 ± 4.50 | -1.50 | -2.74 to -0.26 | hurts | 2.00 ± 1.00 | 1,234 | 5 | 70.86 | 72.07"
    assert f"| random α | {cells} |" in lines
    assert "| gate & co | 75.00 ± 5.00 | 76.00 ± 5.00 |  |  |  |  | 1,234 | 5 | 71.32 | 73.91 |" in lines
    latex = grid_latex(rows)
    assert r"random $\alpha$ & 73.50 $\pm$ 4.50" in latex
    assert r"gate \& co" in latex
    single = compared(Variant("III", "x", {}), result(70.5), result(70.0))
    assert (single.by, single.difference, single.shows) == (0.5, None, "one run")


def test_a_grid_is_cross_validated_with_folds(tmp_path):
    data = write_tables(tmp_path / "data")
    config = configure(data, "data.groups=actor", "train.epochs=1")
    rows = ablate(config, tmp_path / "out", ["losses"], seeds=2, progress=False)
    made = {row.variant.name: row for row in rows}
    plain, other = made["unchanged"].result, made["InfoNCE"].result
    assert len(plain.scores) == 2
    assert len(plain.paired) == 2 * 3
    assert plain.test_share == pytest.approx(statistics.fmean([10 / 30, 10 / 30, 20 / 20]))
    expected = paired_difference(other.paired, plain.paired, plain.test_share)
    assert made["InfoNCE"].difference == expected
    assert made["NCE"].difference is None  # it is the unchanged configuration
    states = {state: state.stat().st_mtime_ns for state in (tmp_path / "out").rglob("state.pt")}
    assert ablate(config, tmp_path / "out", ["losses"], seeds=2, progress=False) == rows
    assert states == {state: state.stat().st_mtime_ns for state in (tmp_path / "out").rglob("state.pt")}


def test_the_command_prints_the_table_or_latex(tmp_path):
    small = [part for setting in TINY for part in ("--set", setting)]
    arguments = ["ablate", "--out", str(tmp_path), "--tables", "V", *small]
    printed = CliRunner().invoke(app, arguments)
    assert printed.exit_code == 0, printed.output
    assert "| 4 layers |" in printed.stdout
    assert r"\begin{tabular}" in CliRunner().invoke(app, [*arguments, "--latex"]).stdout


def test_mistakes_are_named(tmp_path):
    with pytest.raises(
        ValueError, match="tables: expected some of I, II, III, IV, V, losses, attention, overfitting, got VI"
    ):
        ablate(Config.load(None, TINY), tmp_path, ["VI"])
    with pytest.raises(ValueError, match="seeds: expected at least 1, got 0"):
        ablate(Config.load(None, TINY), tmp_path, ["I"], seeds=0)
