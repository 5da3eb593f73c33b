"""Ablations as a grid on any data: every row changes one thing and is compared with the unchanged configuration.

On a fixed split a row is run with several seeds; with `data.folds` it is cross-validated. Differences are paired, seed
by seed or fold by fold, with the intervals of `amuse.experiments.paired`. Rows with the same configuration in several
tables are trained once; a finished row is not run again, and an interrupted one resumes.
"""

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from amuse.cluster import check_engine, run_tasks
from amuse.config import Config
from amuse.data.load import Splits, load_splits
from amuse.experiments.cross_validation import SCORES_FILE, cross_validate, read_scores
from amuse.experiments.paired import paired_difference
from amuse.experiments.repetition import Scores, run_once
from amuse.experiments.rows import PAPER_TABLES, TABLES, Variant, changed, rows_of
from amuse.experiments.tables import GridRow, Result, grid_csv, grid_latex, grid_markdown
from amuse.files import read_json, write_text
from amuse.world import choose_device


def ablate(
    config: Config,
    out: Path,
    tables: Sequence[str] = PAPER_TABLES,
    seeds: int = 1,
    progress: bool = True,
    engine: str = "local",
    gpus: float = 0.0,
) -> list[GridRow]:
    """Train and test every row; writes ablation.md, .csv, .tex and .json to `out`, after every row.

    Args:
        config: The full model; each row changes some of it. With `data.folds` every row is cross-validated.
        out: Folder of the grid; finished runs in it are kept.
        tables: Some of `TABLES`.
        seeds: Runs of each row, from `config.train.seed` upwards, or groupings into folds.
        progress: Print which row is trained.
        engine: `"local"`: one run after the other. `"ray"`: each, or with folds each row, a task of a Ray cluster that
            shares data and `out`.
        gpus: Of a task; fractions share a GPU.

    Raises:
        ImportError: Ray is not installed.
        ValueError: An unknown table, or regression without folds.
    """
    check_engine(engine)
    unknown = set(tables) - set(TABLES)
    if unknown or not tables:
        raise ValueError(f"tables: expected some of {', '.join(TABLES)}, got {', '.join(tables) or 'none'}")
    if seeds < 1:
        raise ValueError(f"seeds: expected at least 1, got {seeds}")
    splits = load_splits(config.data, progress, choose_device(config.train.device))
    regression = splits.train.label_names is None
    if regression and not config.data.folds:
        raise ValueError("data: expected classes, or folds for regression, got regression on a fixed split")
    names = list(splits.train.modalities)
    variants = [row for table in tables for row in rows_of(table, names, regression)]
    variants = [Variant("", "unchanged", {}), *variants]
    if engine == "ray":
        _train_on_cluster(variants, config, splits, seeds, out, progress, gpus)
    unchanged: Result | None = None
    rows: list[GridRow] = []
    for variant in variants:
        if progress and engine == "local":
            print(f"{variant.table and f'table {variant.table}, '}{variant.name}", flush=True)
        result = _result(variant, config, splits, seeds, out, progress)
        unchanged = unchanged or result
        same = variant.modalities in (None, names) and changed(config, variant, config.train.seed) == config
        rows.append(GridRow(variant, result, None, None) if same else compared(variant, result, unchanged))
        _write(rows, out)
    return rows


def compared(variant: Variant, result: Result, unchanged: Result) -> GridRow:
    """A row with its paired difference."""
    by = statistics.fmean(a - b for a, b in zip(result.paired, unchanged.paired, strict=True))
    several = len(result.paired) > 1
    found = paired_difference(result.paired, unchanged.paired, result.test_share) if several else None
    return GridRow(variant, result, found, by)


def _result(variant: Variant, config: Config, splits: Splits, seeds: int, out: Path, progress: bool) -> Result:
    """Scores of a variant, read from the folders of earlier runs where there are any."""
    if config.data.folds:
        own = changed(config, variant, config.train.seed)
        data = own.data if variant.modalities is None else dataclasses.replace(own.data, modalities=variant.modalities)
        own = dataclasses.replace(own, data=data)
        folder = _folder(own, variant, splits, out)
        if not (folder / SCORES_FILE).is_file() or len(read_scores(folder).pooled) != seeds:
            cross_validate(own, folder, seeds, progress=progress)
        found = read_scores(folder)
        share = statistics.fmean(fold.test / fold.train for fold in found.folds)
        pooled = [list(pair) for pair in found.pooled]
        gap = [fold.training - fold.score for fold in found.folds if fold.training is not None]
        return Result(found.measure, found.second, pooled, [fold.score for fold in found.folds], share, gap)
    chosen = variant.modalities or list(splits.train.modalities)
    runs = []
    for seed in range(config.train.seed, config.train.seed + seeds):
        own = changed(config, variant, seed)
        folder = _folder(own, variant, splits, out)
        file = folder / SCORES_FILE
        if not file.is_file():
            scores = run_once(splits.select(chosen), own, folder)
            write_text(json.dumps(dataclasses.asdict(scores)), file)
        runs.append(Scores(**read_json(file)))
    return Result(
        "weighted F1",
        "accuracy",
        [[run.weighted_f1, run.accuracy] for run in runs],
        [run.weighted_f1 for run in runs],
        gap=[run.training - run.validation for run in runs],
        parameters=runs[0].parameters,
        seconds=statistics.fmean(run.seconds for run in runs),
    )


def _train_on_cluster(
    variants: Sequence[Variant], config: Config, splits: Splits, seeds: int, out: Path, progress: bool, gpus: float
) -> None:
    """Fills the folders from which `_result` then reads the scores; variants that are alike share one."""
    count = 1 if config.data.folds else seeds
    planned: dict[Path, tuple[Variant, Config, int, Path]] = {}
    for variant in variants:
        for seed in range(config.train.seed, config.train.seed + count):
            own = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
            folder = _folder(changed(own, variant, seed), variant, splits, out)
            planned.setdefault(folder, (variant, own, seeds if config.data.folds else 1, out))
    tasks = list(planned.values())
    for place, _ in run_tasks(_load_and_score, tasks, gpus=gpus):
        if progress:
            print(f"{tasks[place][0].name}, seed {tasks[place][1].train.seed} is finished", flush=True)


def _load_and_score(variant: Variant, config: Config, seeds: int, out: Path) -> None:
    """`_result` in a process of its own, for what it leaves in the folder."""
    splits = load_splits(config.data, False, choose_device(config.train.device))
    _result(variant, config, splits, seeds, out, progress=False)


def _folder(config: Config, variant: Variant, splits: Splits, out: Path) -> Path:
    chosen = variant.modalities or list(splits.train.modalities)
    key = json.dumps([chosen, dataclasses.asdict(config)], sort_keys=True)
    return out / "runs" / hashlib.sha256(key.encode()).hexdigest()[:16]


def _write(rows: Sequence[GridRow], out: Path) -> None:
    write_text(
        json.dumps([dataclasses.asdict(row) for row in rows], indent=2, ensure_ascii=False), out / "ablation.json"
    )
    for suffix, text in (("md", grid_markdown(rows)), ("csv", grid_csv(rows)), ("tex", grid_latex(rows))):
        write_text(text, out / f"ablation.{suffix}")
