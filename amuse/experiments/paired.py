"""Paired differences between configurations, with confidence intervals that are valid for repeated cross-validation.

Scores of the same seed, or of the same fold of the same grouping, are subtracted. Training parts of a cross-validation
overlap, so the usual t test finds too many differences; Nadeau and Bengio ("Inference for the generalization error",
2003) correct the variance of the mean by the share of data that is tested.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from amuse.experiments.cross_validation import SCORES_FILE, CrossValidation, read_scores
from amuse.experiments.latex import latex_text
from amuse.files import csv_text


@dataclass
class Difference:
    """The mean of paired differences and its interval.

    Attributes:
        mean: Mean of first minus second.
        low, high: Bounds of the interval.
        p: Two-sided p value of no difference; 1 if all differences are 0.
        deviation: Sample deviation of the differences; 0 for a single one.
        count: Number of pairs.
    """

    mean: float
    low: float
    high: float
    p: float
    deviation: float
    count: int

    @property
    def verdict(self) -> str:
        """ "helps", "hurts" or, if the interval contains 0, "not shown"."""
        if self.low > 0:
            return "helps"
        return "hurts" if self.high < 0 else "not shown"


def paired_difference(
    first: Sequence[float], second: Sequence[float], test_share: float = 0.0, confidence: float = 0.95
) -> Difference:
    """The corrected resampled t interval of mean(first - second).

    With J differences of sample variance S^2, the mean's variance is (1 / J + test_share) S^2, on J - 1 degrees of
    freedom (Nadeau and Bengio 2003, with test_share = n_test / n_train).

    Args:
        first, second: Scores in the same order of seeds, or of groupings and folds.
        test_share: Ratio of test utterances to training utterances, validation included; 0 for seeds on one fixed
            split, where the interval covers the variation of seeds only.
        confidence: Coverage.

    Raises:
        ValueError: Fewer than two pairs, different lengths, or a share or coverage out of range.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"scores: expected two equally long lists of 2 or more, got {len(first)} and {len(second)}")
    if not test_share >= 0 or not 0 < confidence < 1:
        expected = "0 or more and a number between 0 and 1"
        raise ValueError(f"test_share, confidence: expected {expected}, got {test_share} and {confidence}")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    count, mean, deviation = len(differences), statistics.fmean(differences), statistics.stdev(differences)
    error = (1 / count + test_share) ** 0.5 * deviation
    if error == 0:
        return Difference(mean, mean, mean, float(mean == 0), 0.0, count)
    reach = float(student.ppf((1 + confidence) / 2, count - 1)) * error
    p = 2 * float(student.sf(abs(mean) / error, count - 1))
    return Difference(mean, mean - reach, mean + reach, p, deviation, count)


@dataclass
class Comparison:
    """One configuration, compared with the reference."""

    name: str
    mean: float  # mean of the pooled scores
    deviation: float
    difference: Difference | None  # None for the reference itself


def compare_folders(folders: Sequence[Path]) -> tuple[str, list[Comparison]]:
    """Compare runs of `amuse repeat` with the first of them, fold by fold, or seed by seed on a fixed split.

    Returns:
        The measure, and a comparison per folder.

    Raises:
        ValueError: Fewer than two folders; seeds, groupings, test utterances or a measure that differ from the first's;
            or scores of an earlier version, which do not say what they were measured with.
        FileNotFoundError: A folder without scores.
    """
    if len(folders) < 2:
        raise ValueError(f"runs: expected at least two folders of amuse repeat, got {len(folders)}")
    scores = [read_scores(folder) for folder in folders]
    reference, rows = scores[0], []
    for folder, each in zip(folders, scores, strict=True):
        pooled = [row[0] for row in each.pooled]
        deviation = statistics.stdev(pooled) if len(pooled) > 1 else 0.0
        difference = None if each is reference else _difference(each, reference, folder)
        rows.append(Comparison(folder.name, statistics.fmean(pooled), deviation, difference))
    return reference.measure, rows


def _difference(ours: CrossValidation, reference: CrossValidation, folder: Path) -> Difference:
    _check_alike(ours, reference, folder)
    if not ours.folds:
        return paired_difference([row[0] for row in ours.pooled], [row[0] for row in reference.pooled])
    share = statistics.fmean(f.test / f.train for f in ours.folds)
    return paired_difference([f.score for f in ours.folds], [f.score for f in reference.folds], share)


def _check_alike(ours: CrossValidation, reference: CrossValidation, folder: Path) -> None:
    """Raises ValueError, with the first thing that differs, for scores that cannot be paired."""
    if not (ours.tested and reference.tested):
        raise ValueError(
            f"{folder}: expected {SCORES_FILE} with seeds and test utterances, here and in the first folder, got one "
            "of an earlier version; repeat the same amuse repeat, which only tests runs that are finished"
        )
    kinds: dict[str, list[Any]] = {
        "measure": [each.measure for each in (ours, reference)],
        "seeds": [[t.seed for t in each.tested] for each in (ours, reference)],
        "groupings": [[t.grouping for t in each.tested] for each in (ours, reference)],
        "folds": [[(f.grouping, f.fold) for f in each.folds] for each in (ours, reference)],
        "test utterances": [[t.digest for t in each.tested] for each in (ours, reference)],
    }
    for kind, (own, first) in kinds.items():
        if own != first:
            shown = "others" if kind in ("folds", "test utterances") else f"{own}, not {first}"
            raise ValueError(f"{folder}: expected the {kind} of the first folder, got {shown}")


def to_csv(rows: Sequence[Comparison]) -> str:
    """One line per configuration; the columns of the difference are empty for the reference."""
    lines = [["name", "mean", "deviation", "difference", "low", "high", "p", "pairs", "verdict"]]
    for row in rows:
        d = row.difference
        cells = [] if d is None else [d.mean, d.low, d.high, d.p]
        numbers = [f"{value:.6g}" for value in (row.mean, row.deviation, *cells)]
        lines.append([row.name, *numbers, *([""] * 6 if d is None else [str(d.count), d.verdict])])
    return csv_text(lines)


def to_markdown(measure: str, rows: Sequence[Comparison]) -> str:
    lines = [f"| | {measure} | difference | 95 % interval | p | |", "|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(_cells(row, '±', measure))} |" for row in rows]
    return "\n".join(lines)


def to_latex(measure: str, rows: Sequence[Comparison]) -> str:
    r"""A `tabular` for the package booktabs."""
    lines = [r"\begin{tabular}{lrrrrl}", r"\toprule", rf" & {measure} & difference & 95\,\% interval & $p$ & \\"]
    cells = [_cells(row, r"$\pm$", measure, escape=True) for row in rows]
    lines += [r"\midrule", *(" & ".join(row) + r" \\" for row in cells)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _cells(row: Comparison, plus_minus: str, measure: str, escape: bool = False) -> list[str]:
    digits = 3 if measure == "Pearson r" else 2
    name = latex_text(row.name) if escape else row.name
    own = f"{row.mean:.{digits}f} {plus_minus} {row.deviation:.{digits}f}"
    if row.difference is None:
        return [name, own, "", "", "", ""]
    d = row.difference
    interval = f"{d.low:+.{digits}f} to {d.high:+.{digits}f}"
    return [name, own, f"{d.mean:+.{digits}f}", interval, "< 0.001" if d.p < 0.001 else f"{d.p:.3f}", d.verdict]
