"""Promises of paired differences: the corrected resampled t of Nadeau and Bengio, verdicts, CSV and LaTeX."""

import csv
import io
import json
import math
import random
import statistics
from dataclasses import asdict

import pytest
from typer.testing import CliRunner

from amuse.cli.main import app
from amuse.experiments.cross_validation import CrossValidation, FoldScore, Origin
from amuse.experiments.paired import paired_difference


def t_cdf(x, degrees):
    """Student's t by numerical integration of its density."""
    constant = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    steps = 20_000
    width = abs(x) / steps
    area = sum((1 + ((i + 0.5) * width) ** 2 / degrees) ** (-(degrees + 1) / 2) for i in range(steps)) * width
    return 0.5 + math.copysign(constant * area, x)


def test_the_interval_is_nadeau_and_bengios():
    first, second = [70.0, 72.5, 71.0, 69.0, 73.0], [69.0, 70.5, 71.5, 68.0, 70.0]
    difference = paired_difference(first, second, test_share=0.25)
    d = [1.0, 2.0, -0.5, 1.0, 3.0]
    error = math.sqrt((1 / 5 + 0.25) * statistics.variance(d))
    assert difference.mean == pytest.approx(1.3)
    assert difference.deviation == pytest.approx(statistics.stdev(d))
    assert difference.p == pytest.approx(2 * (1 - t_cdf(1.3 / error, 4)), abs=1e-6)
    for bound in (difference.low, difference.high):
        assert t_cdf((bound - 1.3) / error, 4) in (pytest.approx(0.025, abs=1e-6), pytest.approx(0.975, abs=1e-6))
    assert difference.low < difference.mean < difference.high


def test_a_fixed_split_has_the_usual_paired_interval_and_folds_a_wider_one():
    first, second = [1.0, 2.0, 4.0], [0.5, 1.0, 2.0]
    plain, corrected = paired_difference(first, second), paired_difference(first, second, 0.5)
    assert plain.high - plain.mean == pytest.approx(
        4.302653 * statistics.stdev([0.5, 1.0, 2.0]) / math.sqrt(3), rel=1e-5
    )
    assert (corrected.high - corrected.mean) / (plain.high - plain.mean) == pytest.approx(math.sqrt(1 + 3 * 0.5))


def test_verdicts_say_whether_the_interval_holds_0():
    up = [1.0, 1.1, 0.9, 1.05]
    assert paired_difference(up, [0.0] * 4).verdict == "helps"
    assert paired_difference([0.0] * 4, up).verdict == "hurts"
    assert paired_difference([1.0, -1.0, 0.5], [0.0] * 3).verdict == "not shown"
    same = paired_difference(up, up)
    assert (same.mean, same.p, same.verdict) == (0, 1, "not shown")


def test_overlapping_folds_find_no_differences_where_there_are_none():
    """Two equal learners may be told apart in about 5 % of the trials; the uncorrected test does so far more often."""
    rng, found = random.Random(0), {0.0: 0, 0.25: 0}
    trials = 200
    for _ in range(trials):
        # scores of 5 x 5 folds share the luck of the data, as overlapping training parts do
        luck = rng.gauss(0, 0.5)
        scores = [luck + rng.gauss(0, 1) for _ in range(25)]
        for share in found:
            found[share] += paired_difference(scores, [0.0] * 25, share).verdict != "not shown"
    assert found[0.25] / trials < 0.1
    assert found[0.0] / trials > 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [2.0]), "scores: expected two equally long lists of 2 or more, got 1 and 1"),
        (([1.0, 2.0], [2.0]), "got 2 and 1"),
        (([1.0, 2.0], [2.0, 1.0], -1.0), "test_share, confidence"),
        (([1.0, 2.0], [2.0, 1.0], 0.0, 1.0), "test_share, confidence"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(*arguments)


def write_scores(folder, shift, folds=3, seed=0, grouping=0, label=1, measure="weighted F1", tested=True):
    folder.mkdir()
    rows = [FoldScore(g, f, 70 + shift * (1 + 0.1 * f) + g, 40, 10) for g in range(2) for f in range(folds)]
    scores = CrossValidation(measure, "accuracy", rows, [(70 + shift, 71.0), (71 + shift, 72.0)])
    if tested:
        parts = [[(f"d{f}", f"u{i}", label) for i in range(10)] for f in range(folds)]
        scores.tested = [Origin.of(seed + g, grouping + g, parts) for g in range(2)]
    (folder / "scores.json").write_text(json.dumps(asdict(scores)))
    return str(folder)


def test_the_command_compares_folders_fold_by_fold(tmp_path):
    reference, better = write_scores(tmp_path / "plain", 0), write_scores(tmp_path / "with_man & gate", 2)
    table = tmp_path / "table.csv"
    printed = CliRunner().invoke(app, ["differences", reference, better, "--csv", str(table)])
    assert printed.exit_code == 0, printed.output
    expected = paired_difference([2, 2.2, 2.4] * 2, [0.0] * 6, 10 / 40)
    row = list(csv.DictReader(io.StringIO(table.read_text())))[1]
    assert float(row["difference"]) == pytest.approx(expected.mean, abs=1e-4)
    assert float(row["low"]) == pytest.approx(expected.low, abs=1e-4)
    assert float(row["deviation"]) == pytest.approx(statistics.stdev([72, 73]), abs=1e-4)
    assert (row["name"], row["pairs"], row["verdict"]) == ("with_man & gate", "6", "helps")
    interval = f"{expected.low:+.2f} to {expected.high:+.2f}"
    assert f"| with_man & gate | 72.50 ± 0.71 | +2.20 | {interval} | < 0.001 | helps |" in printed.stdout

    latex = CliRunner().invoke(app, ["differences", reference, better, "--latex"]).stdout
    assert rf"with\_man \& gate & 72.50 $\pm$ 0.71 & +2.20 & {interval} & < 0.001 & helps \\" in latex
    assert latex.strip().startswith(r"\begin{tabular}{lrrrrl}")
    assert latex.strip().endswith(r"\end{tabular}")
    assert all(line.count("&") - line.count(r"\&") == 5 for line in latex.splitlines() if line.endswith(r"\\"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": 2}, "expected the folds of the first folder, got others"),
        ({"seed": 5}, r"expected the seeds of the first folder, got [5, 6], not [0, 1]"),
        ({"grouping": 100}, r"expected the groupings of the first folder, got [100, 101], not [0, 1]"),
        ({"label": 0}, "expected the test utterances of the first folder, got others"),
        ({"measure": "Pearson r"}, "expected the measure of the first folder, got Pearson r, not weighted F1"),
        ({"tested": False}, "got one of an earlier version; repeat the same amuse repeat"),
    ],
)
def test_scores_of_other_folds_seeds_groupings_or_data_are_not_paired(tmp_path, change, message):
    folders = [write_scores(tmp_path / "a", 0), write_scores(tmp_path / "b", 0, **change)]
    for order in (folders, folders[::-1]):
        error = str(CliRunner().invoke(app, ["differences", *order]).exception)
        assert message.partition(", got ")[0] in error
    assert message in str(CliRunner().invoke(app, ["differences", *folders]).exception)


def test_folders_without_scores_are_named(tmp_path):
    reference = write_scores(tmp_path / "a", 0)
    assert "expected at least two folders" in str(CliRunner().invoke(app, ["differences", reference]).exception)
    missing = CliRunner().invoke(app, ["differences", reference, str(tmp_path / "none")])
    assert "scores.json is missing" in str(missing.exception)
