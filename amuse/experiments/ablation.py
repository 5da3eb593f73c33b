"""The paper's ablation tables as a grid on any data set, each row next to the paper's numbers.

Every row changes one configuration, and is compared with the unchanged one seed by seed. Rows with the same
configuration in several tables are trained once; a finished row is not run again, and an interrupted one resumes.
"""

import copy
import dataclasses
import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from amuse.cluster import check_engine, run_tasks
from amuse.config import Config
from amuse.data.load import Splits, load_splits
from amuse.experiments.comparison import only_modalities
from amuse.experiments.repetition import Scores, mean, run_once
from amuse.files import read_json, write_text
from amuse.world import choose_device

TABLES = {
    "I": "modalities and stages (the paper on MELD)",
    "II": "modalities and stages (the paper on IEMOCAP)",
    "III": "coefficients of the fusion",
    "IV": "gamma of the focal loss",
    "V": "layers of the Multimodal Attention Network",
}
# weighted F1 of the paper in per cent: MELD, IEMOCAP
UNIMODAL_AND_CONCATENATION = {
    "T": (60.41, 55.26),
    "A": (35.37, 34.17),
    "V": (46.15, 42.60),
    "T+A": (62.65, 57.27),
    "T+V": (61.58, 58.15),
    "A+V": (48.10, 47.82),
    "T+A+V": (63.56, 61.17),
}
MAN_AND_CONCATENATION = (69.92, 71.47)
AMUSE = (71.32, 73.91)
FUSION = {"random": (70.86, 72.07), "equal": (71.10, 72.89), "learned": AMUSE}
GAMMA = {0.5: (70.71, 71.46), 0.75: (71.08, 73.47), 1.0: AMUSE, 1.25: (70.97, 73.12)}
LAYERS = {1: (65.37, 68.14), 3: (69.26, 70.98), 4: AMUSE, 5: (71.03, 72.57)}
SCORES_FILE = "scores.json"  # in the folder of a run
LETTERS = {"text": "T", "audio": "A", "video": "V"}


@dataclass
class Variant:
    """A row of a table: its changes, and the paper's weighted F1, if it has one."""

    table: str
    name: str
    changes: dict[str, Any]  # "section.key" -> value
    paper: tuple[float, float] | None  # MELD, IEMOCAP
    modalities: list[str] | None = None  # None = all
    scores: list[Scores] = field(default_factory=list)  # per seed


def ablate(
    config: Config,
    out: Path,
    tables: Sequence[str] = tuple(TABLES),
    seeds: int = 1,
    progress: bool = True,
    engine: str = "local",
    gpus: float = 0.0,
) -> str:
    """Train and test every row and return the tables as Markdown; also writes ablation.md and ablation.json to `out`.

    Args:
        config: The full model; each row changes some of it.
        out: Folder of the grid; finished runs in it are kept.
        tables: Some of "I" to "V".
        seeds: Runs of each row, from `config.train.seed` upwards.
        progress: Print which row is trained.
        engine: `"local"`: one run after the other. `"ray"`: each a task of a Ray cluster that shares data and `out`.
        gpus: Of a run on Ray; fractions share a GPU.

    Raises:
        ImportError: Ray is not installed.
        ValueError: An unknown table, or regression, for which the paper has no tables.
    """
    check_engine(engine)
    unknown = set(tables) - set(TABLES)
    if unknown or not tables:
        raise ValueError(f"tables: expected some of {', '.join(TABLES)}, got {', '.join(tables) or 'none'}")
    if seeds < 1:
        raise ValueError(f"seeds: expected at least 1, got {seeds}")
    splits = load_splits(config.data, progress, choose_device(config.train.device))
    if splits.train.label_names is None:
        raise ValueError("data: expected classes, got regression")
    unchanged = Variant("", "unchanged", {}, None)
    rows = [unchanged, *(row for table in tables for row in rows_of(table, list(splits.train.modalities)))]
    numbers = range(config.train.seed, config.train.seed + seeds)
    if engine == "ray":
        # rows with the same configuration are one run; all find their scores below
        modalities = list(splits.train.modalities)
        runs = {_run(row, config, modalities, seed, out): (row, seed) for row in rows for seed in numbers}
        waiting = [(row, config, seed, out) for run, (row, seed) in runs.items() if not (run / SCORES_FILE).is_file()]
        for place, _ in run_tasks(_load_and_score, waiting, gpus=gpus):
            if progress:
                print(f"{waiting[place][0].name}, seed {waiting[place][2]} is finished", flush=True)
    for row in rows:
        for seed in numbers:
            if progress and engine == "local":
                print(f"{row.table and f'table {row.table}, '}{row.name}, seed {seed}", flush=True)
            row.scores.append(_score(row, config, splits, seed, out))
            _write(rows, out)
    return to_markdown(rows)


def rows_of(table: str, modalities: list[str]) -> list[Variant]:
    """The rows of one table for a data set with these modalities."""
    if table == "III":
        return [Variant(table, f"{name} α", {"model.fusion": name}, paper) for name, paper in FUSION.items()]
    if table == "IV":
        return [Variant(table, f"γ = {gamma:g}", {"loss.gamma": gamma}, paper) for gamma, paper in GAMMA.items()]
    if table == "V":
        return [
            Variant(table, f"{n} layer{'s' * (n > 1)}", {"model.man_layers": n}, paper) for n, paper in LAYERS.items()
        ]
    concatenation = {"model.man": False, "model.fusion": "concat"}
    rows = []
    for size in range(1, len(modalities) + 1):
        for chosen in combinations(modalities, size):
            name = "+".join(chosen) + (", concatenation" if size > 1 else " alone")
            letters = "+".join(LETTERS.get(modality, "?") for modality in chosen)
            rows.append(Variant(table, name, concatenation, UNIMODAL_AND_CONCATENATION.get(letters), list(chosen)))
    if len(modalities) > 1:
        rows.append(Variant(table, "MAN + concatenation", {"model.fusion": "concat"}, MAN_AND_CONCATENATION))
        rows.append(Variant(table, "AMuSE", {}, AMUSE))
    return rows


def changed(config: Config, row: Variant, seed: int) -> Config:
    """The configuration of one run of a row.

    Raises:
        ValueError: A change that the configuration does not allow.
    """
    config = copy.deepcopy(config)
    for place, value in {**row.changes, "train.seed": seed}.items():
        section, key = place.split(".")
        setattr(config, section, dataclasses.replace(getattr(config, section), **{key: value}))
    return config if row.modalities is None else only_modalities(config, row.modalities)


def _score(row: Variant, config: Config, splits: Splits, seed: int, out: Path) -> Scores:
    """Scores of one run, read from the folder of an earlier one if there is one."""
    modalities = list(splits.train.modalities)
    folder = _run(row, config, modalities, seed, out)
    file = folder / SCORES_FILE
    if not file.is_file():
        scores = run_once(splits.select(row.modalities or modalities), changed(config, row, seed), folder)
        write_text(json.dumps(dataclasses.asdict(scores)), file)
    return Scores(**read_json(file))


def _load_and_score(row: Variant, config: Config, seed: int, out: Path) -> Scores:
    """`_score` in a process of its own."""
    return _score(row, config, load_splits(config.data, False, choose_device(config.train.device)), seed, out)


def _run(row: Variant, config: Config, modalities: list[str], seed: int, out: Path) -> Path:
    """Folder of a run, the same for the same configuration."""
    key = json.dumps([row.modalities or modalities, dataclasses.asdict(changed(config, row, seed))], sort_keys=True)
    return out / "runs" / hashlib.sha256(key.encode()).hexdigest()[:16]


def to_markdown(rows: Sequence[Variant]) -> str:
    """Tables with mean and sample deviation over seeds, next to the paper's single runs.

    Args:
        rows: The unchanged configuration first; differences to it are taken seed by seed.
    """
    unchanged, *rows = rows
    head = ["", "weighted F1", "accuracy", "to unchanged", "parameters", "seconds", "paper, MELD", "paper, IEMOCAP"]
    lines: list[str] = []
    for table in dict.fromkeys(row.table for row in rows if row.scores):
        lines += [f"### Table {table}: {TABLES[table]}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for row in rows:
            if row.table == table and row.scores:
                paper = ("", "") if row.paper is None else (f"{row.paper[0]:.2f}", f"{row.paper[1]:.2f}")
                ours = [mean([run.weighted_f1 for run in row.scores]), mean([run.accuracy for run in row.scores])]
                seconds = statistics.fmean(run.seconds for run in row.scores)
                cost = [f"{row.scores[0].parameters:,}", f"{seconds:.0f}"]
                cells = [row.name, *ours, _difference(row.scores, unchanged.scores), *cost, *paper]
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _difference(scores: Sequence[Scores], unchanged: Sequence[Scores]) -> str:
    """Mean difference in weighted F1 and, for several seeds, its standard error; empty for the same runs."""
    differences = [a.weighted_f1 - b.weighted_f1 for a, b in zip(scores, unchanged, strict=False)]
    if list(scores) == list(unchanged[: len(scores)]):
        return ""
    text = f"{statistics.fmean(differences):+.2f}"
    count = len(differences)
    return text if count == 1 else f"{text} (error {statistics.stdev(differences) / count**0.5:.2f})"


def _write(rows: Sequence[Variant], out: Path) -> None:
    done = [dataclasses.asdict(row) for row in rows if row.scores]
    write_text(json.dumps(done, indent=2, ensure_ascii=False), out / "ablation.json")
    write_text(to_markdown(rows), out / "ablation.md")
