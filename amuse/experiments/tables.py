"""Rows of ablation grids with their results, as Markdown, CSV and LaTeX."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from amuse.experiments.latex import latex_text
from amuse.experiments.paired import Difference
from amuse.experiments.rows import TABLES, Variant
from amuse.files import csv_text

CSV_HEAD = (
    *("table", "row", "measure", "mean", "deviation", "second", "second_mean", "runs"),
    *("difference", "low", "high", "p", "shows", "gap", "parameters", "seconds", "paper_meld", "paper_iemocap"),
)


@dataclass
class Result:
    """The scores of a row.

    Attributes:
        measure, second: "weighted F1" and "accuracy" in per cent, or "Pearson r" and "MAE".
        scores: Both per seed, or of the pooled predictions per grouping.
        paired: The measure per seed, or per fold of every grouping.
        test_share: Test utterances per training utterance of a fold; 0 for a fixed split.
        gap: Training score minus that on validation data per seed, or on the test part per fold.
        parameters, seconds: Of a run; None for folds.
    """

    measure: str
    second: str
    scores: list[list[float]]
    paired: list[float]
    test_share: float = 0.0
    gap: list[float] = field(default_factory=list)
    parameters: int | None = None
    seconds: float | None = None


@dataclass
class GridRow:
    """A variant, its result, and its difference to the unchanged configuration.

    Attributes:
        difference: None for the unchanged configuration and for a single run.
        by: The mean difference; None for the unchanged configuration.
    """

    variant: Variant
    result: Result
    difference: Difference | None
    by: float | None

    @property
    def shows(self) -> str:
        """A plain word: helps, hurts or not shown."""
        if self.by is None:
            return ""
        return "one run" if self.difference is None else self.difference.verdict


def grid_markdown(rows: Sequence[GridRow]) -> str:
    """One table per table of the paper or of ours, each row beside the paper's single runs.

    The difference is to the unchanged configuration, the first row, with its 95 % interval.
    """
    parts = []
    for table in dict.fromkeys(row.variant.table for row in rows if row.variant.table):
        head, lines = _cells([row for row in rows if row.variant.table == table], "±")
        parts += [f"### Table {table}: {TABLES[table]}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        parts += [f"| {' | '.join(line)} |" for line in lines]
        parts.append("")
    return "\n".join(parts)


def grid_latex(rows: Sequence[GridRow]) -> str:
    r"""A `tabular` per table, for the package booktabs."""
    parts = []
    for table in dict.fromkeys(row.variant.table for row in rows if row.variant.table):
        head, lines = _cells([row for row in rows if row.variant.table == table], r"$\pm$")
        parts += [f"% Table {table}: {TABLES[table]}", rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule"]
        parts += [" & ".join(map(latex_text, head)) + r" \\", r"\midrule"]
        parts += [" & ".join(cell if "$" in cell else latex_text(cell) for cell in line) + r" \\" for line in lines]
        parts += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(parts)


def grid_csv(rows: Sequence[GridRow]) -> str:
    """A line per row, the unchanged configuration first; cells without a value are empty."""
    lines: list[Sequence[object]] = [CSV_HEAD]
    for row in rows:
        result, d = row.result, row.difference
        first, second = ([pair[i] for pair in result.scores] for i in range(2))
        numbers = [row.by, *((d.low, d.high, d.p) if d else (None,) * 3)]
        lines.append(
            [
                row.variant.table,
                row.variant.name,
                result.measure,
                f"{statistics.fmean(first):.6g}",
                f"{statistics.stdev(first):.6g}" if len(first) > 1 else "",
                result.second,
                f"{statistics.fmean(second):.6g}",
                len(first),
                *("" if number is None else f"{number:.6g}" for number in numbers),
                row.shows,
                f"{statistics.fmean(result.gap):.6g}" if result.gap else "",
                "" if result.parameters is None else result.parameters,
                "" if result.seconds is None else f"{result.seconds:.0f}",
                *(row.variant.paper or ("", "")),
            ]
        )
    return csv_text(lines)


def _cells(rows: Sequence[GridRow], plus_minus: str) -> tuple[list[str], list[list[str]]]:
    """Head and cells, without the columns that are empty in all rows."""
    head = [
        "",
        rows[0].result.measure,
        rows[0].result.second,
        "to unchanged",
        "95 % interval",
        "shown",
        "training - held out",
        "parameters",
        "seconds",
        "paper, MELD",
        "paper, IEMOCAP",
    ]
    lines = [_line(row, plus_minus) for row in rows]
    used = [i for i in range(len(head)) if not i or any(line[i] for line in lines)]
    return [head[i] for i in used], [[line[i] for i in used] for line in lines]


def _line(row: GridRow, plus_minus: str) -> list[str]:
    result, d = row.result, row.difference
    digits = 3 if result.measure == "Pearson r" else 2

    def spread(values: list[float]) -> str:
        mean = f"{statistics.fmean(values):.{digits}f}"
        return mean if len(values) == 1 else f"{mean} {plus_minus} {statistics.stdev(values):.{digits}f}"

    return [
        row.variant.name,
        spread([pair[0] for pair in result.scores]),
        spread([pair[1] for pair in result.scores]),
        "" if row.by is None else f"{row.by:+.{digits}f}",
        "" if d is None else f"{d.low:+.{digits}f} to {d.high:+.{digits}f}",
        row.shows,
        spread(result.gap) if result.gap else "",
        "" if result.parameters is None else f"{result.parameters:,}",
        "" if result.seconds is None else f"{result.seconds:.0f}",
        *(("", "") if row.variant.paper is None else (f"{value:.2f}" for value in row.variant.paper)),
    ]
