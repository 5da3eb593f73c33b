"""AMuSE against each modality alone and plain concatenation, trained in the same way: what does fusion add?"""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from amuse.config import Config
from amuse.data.load import Splits, guess_dataset, load_splits
from amuse.evaluation.metrics import Metrics
from amuse.evaluation.predict import evaluate
from amuse.experiments.rivals import RIVALS
from amuse.experiments.search import SEARCH_FILE, Trial, search, write_trials
from amuse.model.amuse import Amuse
from amuse.report import write_report
from amuse.report.from_run import explain_run
from amuse.training.state import STATE_FILE
from amuse.training.train import train_on
from amuse.world import choose_device

CONFIGS = Path(__file__).parents[1] / "configs"
SHIPPED = {"synthetic": "demo.yaml", "meld": "meld.yaml", "mosi": "mosi.yaml"}


def compare(
    data: str | PathLike[str] | None = None,
    out: Path = Path("runs/compare"),
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    rivals: Sequence[str] = (),
    trials: int = 1,
    seeds: int = 1,
) -> str:
    """Train every contender on the same splits and return a table of test scores.

    Settings are searched by validation scores, as many trials for each contender (`amuse.experiments.search`), and all
    of them are written to `search.csv` in `out`. The chosen settings are then trained with further seeds.

    With generated conversations it also writes `report.html` into `out`: the first test conversation, explained.

    Args:
        data: Folder of prepared data (or its URL), tables, MELD or CMU-MOSI; None = generated conversations.
        out: Folder of the runs, one folder each; runs of an earlier call are overwritten.
        config_file: Default: the one shipped for the data set, else the defaults.
        overrides: See `Config.load`.
        rivals: Published fusions to compare with, out of `amuse.experiments.rivals.RIVALS`; ("all",) = every one.
        trials: Settings that are tried for each contender; the first are the configuration's own.
        seeds: Runs of each contender; more than one gives mean and sample deviation.

    Raises:
        ValueError, FileNotFoundError: Faulty data or configuration; says what is wrong.
    """
    chosen = list(RIVALS) if list(rivals) == ["all"] else list(rivals)
    for name in chosen:
        if name not in RIVALS:
            raise ValueError(f"rivals: expected names out of {', '.join(RIVALS)}, or all, got {name!r}")
    for name, count in (("trials", trials), ("seeds", seeds)):
        if count < 1:
            raise ValueError(f"{name}: expected at least 1, got {count}")
    dataset = "synthetic" if data is None else guess_dataset(data)
    if config_file is None and dataset in SHIPPED:
        config_file = CONFIGS / SHIPPED[dataset]
    paths = [] if data is None else [f"data.path={data}"]
    config = Config.load(config_file, [*paths, f"data.dataset={dataset}", *overrides])
    splits = load_splits(config.data, device=choose_device(config.train.device))

    competing = contenders(config, splits)
    if len(splits.train.modalities) > 1:
        competing += [(name, splits, config, RIVALS[name]) for name in chosen]
    elif chosen:
        raise ValueError(
            f"rivals: expected data of several modalities to fuse, got {', '.join(splits.train.modalities)}"
        )
    lines, tried = [], []
    for name, part, own, kind in competing:
        folder = out / name.replace(" ", "_")
        print(f"--- {name}", flush=True)
        started = time.perf_counter()
        settings, model, found = search(name, part, own, folder, trials, kind)
        tried += found
        scores = [_scores(model, part, settings)]
        for seed in range(1, seeds):
            again = dataclasses.replace(settings, train=dataclasses.replace(settings.train, seed=own.train.seed + seed))
            place = folder / f"seed{seed}"
            (place / STATE_FILE).unlink(missing_ok=True)
            scores.append(_scores(train_on(part, again, place, kind=kind), part, again))
        seconds = time.perf_counter() - started
        parameters = sum(p.numel() for p in model.parameters())
        f1, accuracy = (spread([100 * values[i] for values in scores]) for i in (0, 1))
        lines.append(f"{name:<22}  {f1:>13}  {accuracy:>13}  {parameters:>10,}  {seconds:>7.1f}")
    if trials > 1:
        write_trials(tried, out / SEARCH_FILE)
    test = splits.test
    lines = [
        f"{dataset}: {splits.train.num_utterances} training and {test.num_utterances} test utterances, "
        f"{len(test.label_names or [])} classes, {torch.get_num_threads()} threads, trials {trials}, seeds {seeds}",
        f"{'':<22}  {'weighted F1':>13}  {'accuracy':>13}  {'parameters':>10}  {'seconds':>7}",
        *lines,
    ]
    if dataset == "synthetic":
        lines += ["", _report(_best_run(out / competing[0][0].replace(" ", "_"), tried), out / "report.html")]
    return "\n".join(lines)


def _scores(model: Amuse, splits: Splits, config: Config) -> tuple[float, float]:
    metrics = evaluate(model, splits.test, config.train.batch_size)
    assert isinstance(metrics, Metrics)
    return metrics.weighted_f1, metrics.accuracy


def spread(values: Sequence[float]) -> str:
    """Mean and sample deviation; one value alone."""
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def _best_run(folder: Path, trials: list[Trial]) -> Path:
    """The run of the first contender's best trial."""
    own = [trial for trial in trials if trial.contender == trials[0].contender]
    return folder if len(own) == 1 else folder / f"trial{max(own, key=lambda trial: trial.score).number}"


def _report(run: Path, path: Path) -> str:
    """Explain the first test conversation; a line that says where the report is, or why there is none."""
    try:
        write_report(explain_run(run, progress=False), path)
    except ImportError as error:
        return f"no report of a conversation: {error}"
    return f"one conversation with explanations of its predictions: {path}"


def contenders(config: Config, splits: Splits) -> list[tuple[str, Splits, Config, type[Amuse]]]:
    """Name, data, configuration and kind of AMuSE and its parts; with one modality there is nothing to fuse."""
    modalities = list(splits.train.modalities)
    if len(modalities) == 1:
        return [(f"AMuSE, {modalities[0]}", splits, config, Amuse)]
    concatenation = dataclasses.replace(config, model=dataclasses.replace(config.model, man=False, fusion="concat"))
    single = [(f"{name} alone", splits.select([name]), only_modalities(config, [name]), Amuse) for name in modalities]
    return [("AMuSE, all modalities", splits, config, Amuse), ("concatenation", splits, concatenation, Amuse), *single]


def only_modalities(config: Config, modalities: Sequence[str]) -> Config:
    """The configuration without settings of other modalities and without groups of streams that become empty."""
    streams = {name: [s for s in members if s in modalities] for name, members in config.model.streams.items()}
    streams = {name: members for name, members in streams.items() if members}
    grouped = {stream for members in streams.values() for stream in members}
    names = {*streams, *(set(modalities) - grouped)}
    kept: dict[str, Any] = {
        name: {m: chance for m, chance in getattr(config.model, name).items() if m in names}
        for name in ("modality_dropout", "modality_swap")
    }
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **kept, streams=streams))
