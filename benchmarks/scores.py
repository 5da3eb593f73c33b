"""Writes the scores of the docs from the files in results: `python -m benchmarks.scores`.

scores.csv, ablations.csv: a row is a mean over runs on the test split, in per cent, with the sample deviation over
seeds where there were several, and the single scores where they are known. runs.csv: cross-validated, fold by fold
(`benchmarks.evidence`). published.csv: what others report.
"""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from scipy.stats import t as student

from benchmarks import cross_validated, gates
from benchmarks.experiments import SETS as FOLDED
from benchmarks.pages import rewrite
from benchmarks.published import published_table

ROOT = Path(__file__).parents[1]
COMMAND = "python -m benchmarks.scores"
RESULTS = Path(__file__).parent / "results"
SETS = {
    "generated": "generated conversations (`demo.yaml`), three seeds",
    "MELD": "MELD, text only, frozen MPNet (`meld.yaml` with that encoder), five seeds",
    "CMU-MOSI": "CMU-MOSI, words by frozen MPNet, text, audio and video (`mosi.yaml` with that encoder), five seeds",
}
SEEDS = {"mosi": 5, "demo": 3}
TABLES = {
    ("mosi", "I"): "modalities and stages; rows of single modalities and of concatenation have neither MAN nor fusion",
    ("mosi", "III"): "coefficients of the fusion",
    ("mosi", "IV"): "γ of the focal loss; `mosi.yaml` has 0, the cross-entropy",
    ("mosi", "V"): "layers of the MAN; `mosi.yaml` has one",
    ("demo", "I"): "modalities and stages",
    ("demo", "III"): "coefficients of the fusion",
    ("demo", "IV"): "γ of the focal loss",
    ("demo", "V"): "layers of the MAN; `demo.yaml` has two",
}


class Score(NamedTuple):
    """One row of scores.csv."""

    data: str
    model: str
    metric: str
    mean: str
    deviation: str
    scores: tuple[float, ...]

    @property
    def text(self) -> str:
        return _spread(self.mean, self.deviation)


def read_scores() -> list[Score]:
    return [Score(**row | {"scores": tuple(map(float, row["scores"].split()))}) for row in _rows("scores.csv")]  # type: ignore[arg-type]


def read_ablations() -> list[dict[str, str]]:
    """The rows of the paper's tables on CMU-MOSI ("mosi") and on generated conversations ("demo")."""
    return _rows("ablations.csv")


def headline() -> str:
    """One table: each data set, AMuSE's score, what to compare it with."""
    lines = []
    for data, name in SETS.items():
        ours, *others = (s for s in read_scores() if s.data == data and s.metric == _headline_metric(data))
        compared = "; ".join(f"{other.model} {other.text}" for other in others)
        lines.append([name, ours.metric, f"**{ours.text}**", compared])
    return _table(["test split", "%", "AMuSE", "for comparison"], lines)


def runs(data: str) -> str:
    """The scores of every run on `data` that are known, and the F1 of each class."""
    ours = [score for score in read_scores() if score.data == data and score.model.startswith("AMuSE")]
    overall = [score for score in ours if not score.metric.startswith("F1 of")]
    lines = [[s.model, s.metric, f"**{s.text}**", ", ".join(f"{x:.2f}" for x in s.scores)] for s in overall]
    classes = [score for score in ours if score.metric.startswith("F1 of")]
    names = [*dict.fromkeys(s.metric.removeprefix("F1 of ") for s in classes)]
    cells = {(s.model, s.metric.removeprefix("F1 of ")): s.text for s in classes}
    models = dict.fromkeys(s.model for s in classes)
    by_class = _table(["model", *names], [[m, *(cells.get((m, name), "") for name in names)] for m in models])
    return _table(["model", "%", "mean", "seeds 0, 1, 2, ..."], lines) + "\n\nF1 of each class:\n\n" + by_class


def ablations(data: str) -> str:
    """The paper's tables on `data`; "to unchanged" is the mean difference to the same seed of the configuration."""
    parts = []
    for (of, table), title in TABLES.items():
        if of == data:
            rows = [row for row in read_ablations() if (row["data"], row["table"]) == (data, table)]
            parts.append(f"### Table {table}: {title}\n\n" + _table(*_columns(rows)))
    return "\n\n".join(parts)


def _headline_metric(data: str) -> str:
    return "accuracy" if data == "CMU-MOSI" else "weighted F1"


def _columns(rows: list[dict[str, str]]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of a grid's table, without columns that are empty in all rows."""
    columns: dict[str, Callable[[dict[str, str]], str]] = {
        "": lambda row: row["row"],
        "weighted F1": lambda row: _spread(row["weighted_f1"], row["weighted_f1_deviation"]),
        "seeds 0, 1, ...": lambda row: row["seeds"].replace(" ", ", "),
        "accuracy": lambda row: _spread(row["accuracy"], row["accuracy_deviation"]),
        "to unchanged": lambda row: (
            f"{row['difference']} (error {row['difference_error']})" if row["difference"] else ""
        ),
        "shown": lambda row: shown(row["difference"], row["difference_error"], SEEDS[row["data"]]),
        "parameters": lambda row: f"{int(row['parameters']):,}" if row["parameters"] else "",
        "seconds": lambda row: row["seconds"],
        "paper, MELD": lambda row: row["paper_meld"],
        "paper, IEMOCAP": lambda row: row["paper_iemocap"],
    }
    used = {head: cell for head, cell in columns.items() if any(map(cell, rows))}
    return list(used), [[cell(row) for cell in used.values()] for row in rows]


def shown(difference: str, error: str, seeds: int) -> str:
    """helps, hurts or not shown: whether the 95 % interval of the mean difference over seeds contains 0."""
    if not difference or not error:
        return ""
    by, reach = float(difference), float(student.ppf(0.975, seeds - 1)) * float(error)
    return "helps" if by > reach else "hurts" if by < -reach else "not shown"


def _published() -> str:
    ours = {s.metric: s.text for s in read_scores() if (s.data, s.model) == ("MELD", "AMuSE on MPNet")}
    return published_table(ours["weighted F1"], ours["accuracy"])


def _rows(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _spread(mean: str, deviation: str) -> str:
    return f"{mean} ± {deviation}" if deviation else mean


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


# Page -> command in its mark -> its content
PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {COMMAND: headline},
    "MODEL_CARD.md": {COMMAND: lambda: f"{headline()}\n\nCross-validated:\n\n{cross_validated.summary()}"},
    "docs/results.md": {f"{COMMAND} (fixed)": headline, f"{COMMAND} (folds)": cross_validated.summary},
    "docs/results_meld.md": {f"{COMMAND} (MELD)": lambda: runs("MELD")},
    "docs/results_mosi.md": {f"{COMMAND} (MOSI)": lambda: runs("CMU-MOSI")},
    "docs/results_folds.md": {
        f"{COMMAND} ({data})": (lambda data=data: cross_validated.table(data))  # type: ignore[misc]
        for data in FOLDED
    },
    "docs/published.md": {COMMAND: _published},
    "docs/ablations.md": {
        f"{COMMAND} (mosi)": lambda: ablations("mosi"),
        f"{COMMAND} (demo)": lambda: ablations("demo"),
        f"{COMMAND} (acted)": lambda: cross_validated.grid("ablation_acted.csv"),
        f"{COMMAND} (enjoyment)": lambda: cross_validated.grid("ablation_enjoyment.csv"),
        f"{COMMAND} (gates)": gates.table,
    },
}

if __name__ == "__main__":
    for page, parts in PARTS.items():
        for mark, content in parts.items():
            rewrite(ROOT / page, mark, content())
