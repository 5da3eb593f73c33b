"""What a training says about itself after every epoch: a line for the terminal, TensorBoard."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from amuse.metrics import Metrics, RegressionMetrics


def headline(metrics: Metrics | RegressionMetrics) -> dict[str, float]:
    if isinstance(metrics, Metrics):
        return {"weighted_f1": metrics.weighted_f1, "accuracy": metrics.accuracy}
    return {"mae": metrics.mae, "pearson": metrics.pearson}


def describe(record: dict[str, Any], better: bool) -> str:
    scores = "  ".join(f"{name} {value:.4f}" for name, value in record["valid"].items())
    mark = "  (best so far)" if better else ""
    return f"epoch {record['epoch']:>3}  loss {record['train']['loss']:.4f}  {scores}  {record['seconds']:.1f} s{mark}"


@contextlib.contextmanager
def tensorboard(folder: Path, wanted: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes an epoch's record for TensorBoard, or does nothing: not wanted, or not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        wanted = False
    if not wanted:
        yield lambda record: None
        return
    with SummaryWriter(str(folder / "tensorboard")) as writer:

        def write(record: dict[str, Any]) -> None:
            for part in ("train", "valid"):
                for name, value in record[part].items():
                    writer.add_scalar(f"{part}/{name}", value, record["epoch"])
            writer.add_scalar("learning_rate", record["learning_rate"], record["epoch"])

        yield write
