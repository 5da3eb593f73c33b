"""Figures in the docs are the committed ones, floors and occupancy are what the rules give, ratios are gated."""

import re
import statistics

import pytest

from amuse.experiments.cross_validation import CrossValidation, FoldScore
from benchmarks import evidence, live, performance, regression, scores
from benchmarks.cross_validated import difference_cells, spread
from benchmarks.evidence import read_runs
from benchmarks.experiments import AMUSE, AVERAGED, EXPERIMENTS, SETS
from benchmarks.pages import rewrite, written
from benchmarks.static import floors
from benchmarks.static.occupancy import occupancy


def test_the_pages_of_speed_show_the_committed_measurements():
    for page, content in performance.pages().items():
        assert written(page, performance.COMMAND) == content, f"run: {performance.COMMAND}"


@pytest.mark.parametrize(("page", "mark"), [(page, mark) for page, parts in scores.PARTS.items() for mark in parts])
def test_pages_show_the_committed_scores(page, mark):
    assert written(scores.ROOT / page, mark) == scores.PARTS[page][mark](), f"run: {scores.COMMAND}"


@pytest.mark.parametrize("page", scores.PARTS)
def test_every_mean_with_a_deviation_is_one_of_the_committed_scores(page):
    """So that no two pages give different numbers for the same thing."""
    known = {score.text for score in scores.read_scores()}
    for row in scores.read_ablations():
        known |= {f"{row[name]} ± {row[f'{name}_deviation']}" for name in ("weighted_f1", "accuracy")}
    for run in read_runs().values():
        known |= {spread(run, column).partition(" (")[0] for column in range(2)}
    said = set(re.findall(r"-?\d+\.\d+ ± \d+\.\d+", (scores.ROOT / page).read_text()))
    assert said or page == "docs/published.md"
    assert said <= known


def test_the_word_of_an_ablation_follows_its_interval():
    # five seeds: 2.78 standard errors
    assert scores.shown("-0.67", "0.29", 5) == "not shown"
    assert scores.shown("-0.82", "0.29", 5) == "hurts"
    assert scores.shown("+0.71", "0.24", 5) == "helps"
    assert scores.shown("-3.32", "3.68", 3) == "not shown"
    assert scores.shown("", "", 5) == ""


def test_runs_come_back_as_they_were_written(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "RUNS", tmp_path / "runs.csv")
    folds = [FoldScore(g, f, 70.25 + f, 40, 10) for g in range(2) for f in range(2)]
    runs = {
        ("acted", "AMuSE"): CrossValidation("weighted F1", "accuracy", folds, [(70.5, 71.0), (71.25, 72.0)]),
        ("acted", "linear model"): CrossValidation(
            "weighted F1", "accuracy", folds[::-1], [(69.5, 71.0), (70.0, 72.0)]
        ),
    }
    evidence.write_runs(runs)
    assert evidence.read_runs() == runs
    words = difference_cells(runs["acted", "AMuSE"], runs["acted", "linear model"])
    assert words == ["+0.00", "+0.00 to +0.00", "not shown to differ"]  # paired by fold, in whatever order


def test_a_missing_data_set_is_named_before_anything_is_run(tmp_path):
    (tmp_path / "enjoyment_hri").mkdir()
    with pytest.raises(SystemExit, match="expected the folder ravdess_features in it"):
        evidence.main(tmp_path, quick=True, only=None, seeds=None)


def test_every_experiment_is_a_command_with_a_folder_of_its_own():
    commands = [(e.data, tuple(e.command("DATA", "OUT"))) for e in EXPERIMENTS]
    assert len(set(commands)) == len(commands)
    assert {e.data for e in EXPERIMENTS} == set(SETS)
    assert any(e.quick for e in EXPERIMENTS)
    ensemble = next(e for e in EXPERIMENTS if e.name == AMUSE + AVERAGED)
    single = next(e for e in EXPERIMENTS if e.name == AMUSE)
    assert ensemble.folder == single.folder  # its first member is the single model


def test_means_and_deviations_are_those_of_the_runs():
    for score in scores.read_scores():
        if score.scores:
            assert float(score.mean) == pytest.approx(statistics.fmean(score.scores), abs=0.0051), score
            assert float(score.deviation) == pytest.approx(statistics.stdev(score.scores), abs=0.0101), score


def test_the_grids_unchanged_row_is_the_headlines():
    ours = {(s.data, s.model, s.metric): s.text for s in scores.read_scores()}
    [mosi] = {r["weighted_f1"] for r in scores.read_ablations() if (r["data"], r["row"]) == ("mosi", "AMuSE")}
    [demo] = {r["weighted_f1"] for r in scores.read_ablations() if (r["data"], r["row"]) == ("demo", "AMuSE")}
    assert ours["CMU-MOSI", "AMuSE on MiniLM", "weighted F1"].startswith(mosi)
    assert ours["generated", "AMuSE", "weighted F1"].startswith(demo)


def test_the_page_shows_the_delays_of_live_conversations():
    assert written(live.PAGE, live.COMMAND) == live.table(), f"run: {live.COMMAND}"


def test_the_gpu_page_shows_the_floors():
    assert written(floors.DOCS, floors.COMMAND) == floors.render(), f"run: {floors.COMMAND}"


def test_a_part_is_written_between_its_marks_only(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- make it writes this -->\nold\n<!-- end -->\nafter\n")
    rewrite(page, "make it", "| new |")
    assert written(page, "make it") == "| new |"
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("<!-- end -->\nafter\n")
    with pytest.raises(ValueError, match="expected the marks of `other`"):
        written(page, "other")


@pytest.mark.parametrize(
    ("arch", "registers", "warps", "shared", "expected"),
    [
        (80, 32, 4, 0, 1.0),  # 16 blocks of 4 warps
        (80, 128, 4, 0, 16 / 64),  # 65536 / (128 * 32) warps
        (80, 255, 8, 0, 8 / 64),  # rounded up to 256 registers
        (80, 32, 4, 80 * 1024, 8 / 64),  # two blocks of 81 KB in 164
        (90, 32, 4, 227 * 1024, 4 / 64),  # one block of 228 KB
        (86, 32, 1, 0, 16 / 48),  # 16 blocks at most
        (80, 32, 4, 164 * 1024, 0.0),  # does not fit
    ],
)
def test_occupancy_follows_the_limits_of_a_multiprocessor(arch, registers, warps, shared, expected):
    assert occupancy(arch, registers, warps, shared) == pytest.approx(expected)


def test_a_floor_is_the_longer_of_bytes_and_flops():
    chip = floors.Chip(bandwidth=100.0, flops=1000.0)
    assert floors.Work(1, bytes=50.0, flops=100.0).floor(chip) == pytest.approx(0.5)
    assert floors.Work(1, bytes=50.0, flops=800.0).floor(chip) == pytest.approx(0.8)
    assert floors.Work(2, bytes=50.0, flops=800.0, after=20.0).floor(chip) == pytest.approx(1.0)


def test_sdpa_per_stream_moves_queries_and_outputs_once_a_source():
    one = (1, 1, 10, (10,), False)
    two = (1, 1, 10, (10, 10), False)
    row = floors.BYTES * floors.HEAD_DIM
    assert floors.fused(one).bytes == 40 * row
    assert floors.sdpa_per_stream(one).bytes == (40 + 20) * row  # and the gate's product
    assert floors.fused(two).bytes == 60 * row
    assert floors.sdpa_per_stream(two).bytes == (40 + 40 + 40 + 30) * row
    assert floors.sdpa_per_stream(two).launches == 5


def session(**seconds):
    entries = [("fast", "ours", seconds["ours"]), ("fast", "eager", seconds["eager"])]
    return {
        "benchmarks": [
            {"group": group, "params": {"contender": contender}, "stats": {"median": median}}
            for group, contender, median in entries
        ]
    }


def test_the_gate_compares_ratios_and_not_times():
    before = regression.ratios(session(ours=1.0, eager=3.0))
    assert before == {"fast": 3.0}
    assert not regression.fallen(before, regression.ratios(session(ours=10.0, eager=30.0)))
    assert not regression.fallen(before, regression.ratios(session(ours=1.1, eager=3.0)))
    assert regression.fallen(before, regression.ratios(session(ours=1.3, eager=3.0))) == [
        "fast: 3.00x of eager before, 2.31x now"
    ]
    assert regression.fallen(before, {}) == ["fast: not measured any more"]
