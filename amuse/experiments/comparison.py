"""AMuSE against each modality alone and plain concatenation, trained in the same way: what does fusion add?"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from amuse.config import Config
from amuse.data.load import Splits, guess_dataset, load_splits
from amuse.evaluation.metrics import Metrics
from amuse.evaluation.predict import evaluate
from amuse.report import write_report
from amuse.report.from_run import explain_run
from amuse.training.state import STATE_FILE
from amuse.training.train import train_on
from amuse.world import choose_device

CONFIGS = Path(__file__).parents[1] / "configs"
SHIPPED = {"synthetic": "demo.yaml", "meld": "meld.yaml", "mosi": "mosi.yaml"}


def compare(
    data: Path | None = None,
    out: Path = Path("runs/compare"),
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
) -> str:
    """Train every contender on the same splits and return a table of test scores.

    With generated conversations it also writes `report.html` into `out`: the first test conversation, explained.

    Args:
        data: Folder of prepared data, tables, MELD or CMU-MOSI; None = generated conversations.
        out: Folder of the runs, one folder each; runs of an earlier call are overwritten.
        config_file: Default: the one shipped for the data set, else the defaults.
        overrides: See `Config.load`.

    Raises:
        ValueError, FileNotFoundError: Faulty data or configuration; says what is wrong.
    """
    dataset = "synthetic" if data is None else guess_dataset(data)
    if config_file is None and dataset in SHIPPED:
        config_file = CONFIGS / SHIPPED[dataset]
    paths = [] if data is None else [f"data.path={data}"]
    config = Config.load(config_file, [*paths, f"data.dataset={dataset}", *overrides])
    splits = load_splits(config.data, device=choose_device(config.train.device))

    rows = []
    for name, part, changed in contenders(config, splits):
        folder = out / name.replace(" ", "_")
        (folder / STATE_FILE).unlink(missing_ok=True)
        print(f"--- {name}", flush=True)
        started = time.perf_counter()
        model = train_on(part, changed, folder)
        metrics = evaluate(model, part.test, config.train.batch_size)
        assert isinstance(metrics, Metrics)
        seconds = time.perf_counter() - started
        parameters = sum(p.numel() for p in model.parameters())
        rows.append((name, 100 * metrics.weighted_f1, 100 * metrics.accuracy, parameters, seconds))
    test = splits.test
    lines = [
        f"{dataset}: {splits.train.num_utterances} training and {test.num_utterances} test utterances, "
        f"{len(test.label_names or [])} classes, {torch.get_num_threads()} threads",
        f"{'':<22}  {'weighted F1':>11}  {'accuracy':>8}  {'parameters':>10}  {'seconds':>7}",
    ]
    lines += [f"{n:<22}  {f1:>11.2f}  {acc:>8.2f}  {size:>10,}  {s:>7.1f}" for n, f1, acc, size, s in rows]
    if dataset == "synthetic":
        lines += ["", _report(out / rows[0][0].replace(" ", "_"), out / "report.html")]
    return "\n".join(lines)


def _report(run: Path, path: Path) -> str:
    """Explain the first test conversation; a line that says where the report is, or why there is none."""
    try:
        write_report(explain_run(run, progress=False), path)
    except ImportError as error:
        return f"no report of a conversation: {error}"
    return f"one conversation with explanations of its predictions: {path}"


def contenders(config: Config, splits: Splits) -> list[tuple[str, Splits, Config]]:
    """Name, data and configuration of every contender; with one modality there is nothing to fuse."""
    modalities = list(splits.train.modalities)
    if len(modalities) == 1:
        return [(f"AMuSE, {modalities[0]}", splits, config)]
    concatenation = dataclasses.replace(config, model=dataclasses.replace(config.model, man=False, fusion="concat"))
    single = [(f"{name} alone", splits.select([name]), only_modalities(config, [name])) for name in modalities]
    return [("AMuSE, all modalities", splits, config), ("concatenation", splits, concatenation), *single]


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
