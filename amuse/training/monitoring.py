"""Reports of training progress: a line per epoch, TensorBoard, peak memory."""

import contextlib
import ctypes
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from amuse.config import TrainConfig
from amuse.evaluation.metrics import Metrics, RegressionMetrics


def headline(metrics: Metrics | RegressionMetrics) -> dict[str, float]:
    if isinstance(metrics, Metrics):
        return {"weighted_f1": metrics.weighted_f1, "accuracy": metrics.accuracy}
    return {"mae": metrics.mae, "pearson": metrics.pearson}


def describe(record: dict[str, Any], better: bool) -> str:
    scores = "  ".join(f"{name} {value:.4f}" for name, value in record["valid"].items())
    mark = "  (best so far)" if better else ""
    return f"epoch {record['epoch']:>3}  loss {record['train']['loss']:.4f}  {scores}  {record['seconds']:.1f} s{mark}"


def why_stopped(epoch: int, best_epoch: int, config: TrainConfig, records: Sequence[dict[str, Any]]) -> str:
    """Why training stopped, and which epoch's model is kept."""
    if epoch < config.epochs:
        reason = f"no better validation score for {config.patience} epochs (train.patience)"
    else:
        reason = f"all {config.epochs} epochs are done (train.epochs)"
    kept = best_epoch if config.keep == "best" else epoch
    scores: dict[str, float] = next((record["valid"] for record in records if record["epoch"] == kept), {})
    shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
    best = "" if kept == best_epoch else f"; the best was epoch {best_epoch}"
    return f"stopped after epoch {epoch}: {reason}; kept epoch {kept}: {shown}{best}"


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory in MiB: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB on Linux


def return_free_memory() -> None:
    """Gives freed memory back to the system, where the C library is glibc.

    Batches of varying sizes leave gaps in its heap, so that a process would grow by some MiB in every step, for
    hundreds of them.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def tensorboard(folder: Path, wanted: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes an epoch's record for TensorBoard; it does nothing if not wanted or not installed."""
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
