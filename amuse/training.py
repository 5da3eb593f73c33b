"""Training: epochs with validation, early stopping, the best checkpoint kept, resumable after every epoch.

A run's folder holds:
    config.yaml          everything that decided the run, resolved
    best/                the model of the best validation score (`Amuse.from_pretrained`), with its standardizer
    log.jsonl            one line an epoch
    state.pt             what `resume` needs
    tensorboard/         when tensorboard is installed
"""

import contextlib
import copy
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from amuse.config import Config, LossConfig, TrainConfig
from amuse.data.batch import Batch, ConversationLoader, make_loader
from amuse.data.load import Splits, load_splits
from amuse.encoder import TextEncoder
from amuse.evaluation import choose_device, evaluate, score
from amuse.files import BEST, CONFIG_FILE, STANDARDIZER_FILE, save_state, save_tensors, write_text
from amuse.losses import amuse_loss
from amuse.metrics import Metrics, RegressionMetrics
from amuse.model import Amuse

STATE_FILE = "state.pt"
LOG_FILE = "log.jsonl"
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class History:
    """What has happened so far; saved with the state."""

    epoch: int = 0  # epochs done
    best_epoch: int = 0
    best_score: float = -math.inf
    records: list[dict[str, Any]] = field(default_factory=list)


def train(config: Config, folder: str | Path, resume: bool = False, progress: bool = True) -> Amuse:
    """Train as `config` says and return the best model.

    Args:
        config: `model.modalities` and `model.label_names` are filled in from the data.
        folder: of the run.
        resume: go on from the last finished epoch, to the same result as without the interruption.
        progress: show progress bars.

    Raises:
        FileExistsError: the folder holds a run and `resume` is not set.
        ValueError: resuming with another configuration, or from a damaged state.
        FloatingPointError: the loss is not finite.
    """
    folder = Path(folder)
    if (folder / STATE_FILE).exists() and not resume:
        raise FileExistsError(f"{folder}: holds a run already; resume it or choose another folder")
    splits = load_splits(config.data, progress)
    return train_on(splits, config, folder, resume, progress)


def train_on(splits: Splits, config: Config, folder: Path, resume: bool = False, progress: bool = True) -> Amuse:
    """`train` on conversations that are there already."""
    seed_everything(config.train.seed)
    config = copy.deepcopy(config)
    config.model.modalities = dict(splits.train.modalities)
    config.model.label_names = splits.train.label_names
    if 0 in config.model.modalities.values():
        config.model.text_encoder = config.data.encoder
    config.model.__post_init__()
    device = choose_device(config.train.device)
    model = Amuse(config.model).to(device)
    loader = make_loader(
        splits.train,
        config.train.batch_size,
        shuffle=True,
        seed=config.train.seed,
        max_utterances=config.train.max_utterances,
    )
    run = Run(config, model, loader, splits, folder, device)
    if resume and (folder / STATE_FILE).exists():
        run.load_state()
    else:
        folder.mkdir(parents=True, exist_ok=True)
        config.save(folder / CONFIG_FILE)
    run.fit(progress)
    return Amuse.from_pretrained(folder / BEST).to(device)


class Run:
    """The moving parts of one training: model, optimiser, schedule, average of the weights, history."""

    def __init__(
        self,
        config: Config,
        model: Amuse,
        loader: ConversationLoader,
        splits: Splits,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.config, self.model, self.loader, self.splits = config, model, loader, splits
        self.folder, self.device = folder, device
        self.optimizer = torch.optim.AdamW(parameter_groups(model, config.train))
        total = config.train.epochs * len(loader)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, total, config.train.warmup)
        )
        # fp16 needs its gradients scaled; bf16 has the range of fp32
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
        self.average = copy.deepcopy(model).requires_grad_(False) if config.train.ema > 0 else None
        self.class_weights = class_weights(splits, config.loss)
        self.history = History()

    def fit(self, progress: bool) -> None:
        train, history = self.config.train, self.history
        with tensorboard(self.folder) as write:
            while history.epoch < train.epochs and history.epoch - history.best_epoch < train.patience:
                started = time.perf_counter()
                losses = self.run_epoch(progress)
                metrics = evaluate(self.evaluated, self.splits.valid, train.batch_size)
                history.epoch += 1
                better = score(metrics) > history.best_score
                if better:
                    history.best_score, history.best_epoch = score(metrics), history.epoch
                if better or train.keep == "last":
                    self.save_best(metrics)
                record = {
                    "epoch": history.epoch,
                    "train": losses,
                    "valid": headline(metrics),
                    "learning_rate": self.scheduler.get_last_lr()[0],
                    "seconds": round(time.perf_counter() - started, 2),
                }
                history.records.append(record)
                self.save_state()
                write(record)
                if progress:
                    tqdm.write(describe(record, better))

    @property
    def evaluated(self) -> Amuse:
        """The model that is validated and kept."""
        return self.model if self.average is None else self.average

    def run_epoch(self, progress: bool) -> dict[str, float]:
        """One pass over the training split; the mean of every loss term."""
        self.model.train()
        self.loader.set_epoch(self.history.epoch)
        totals: dict[str, float] = {}
        bar = tqdm(self.loader, f"epoch {self.history.epoch + 1}", leave=False, disable=not progress)
        for batch in bar:
            losses = self.step(batch.to(self.device))
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value
            bar.set_postfix(loss=f"{losses['loss']:.3f}")
        return {name: total / len(self.loader) for name, total in totals.items()}

    def step(self, batch: Batch) -> dict[str, float]:
        train = self.config.train
        dtype = AUTOCAST.get(train.precision)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            output = self.model(batch)
        losses = amuse_loss(output, batch.labels, self.config.loss, self.class_weights)
        if not math.isfinite(losses["loss"].item()):
            raise FloatingPointError(
                f"epoch {self.history.epoch + 1}: the loss is {losses['loss'].item()}; lower train.learning_rate, or "
                f"look for outliers in the features of {batch.ids[0]} to {batch.ids[-1]}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(losses["loss"]).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), train.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        if self.average is not None:
            steps = self.scheduler.last_epoch
            # a short memory at first, so that the random start is forgotten
            decay = min(train.ema, (1 + steps) / (10 + steps))
            with torch.no_grad():
                for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
                    mean.lerp_(value, 1 - decay)
        return {name: value.item() for name, value in losses.items()}

    def save_best(self, metrics: Metrics | RegressionMetrics) -> None:
        best = self.folder / BEST
        self.evaluated.save_pretrained(best)
        if self.splits.standardizer is not None:
            save_tensors(self.splits.standardizer.state_dict(), best / STANDARDIZER_FILE)
        write_text(json.dumps(metrics.to_dict(), indent=2), best / "valid.json")

    def save_state(self) -> None:
        state = {
            "config": asdict(self.config),
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": asdict(self.history),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        save_state(state, self.folder / STATE_FILE)
        lines = [json.dumps(record) for record in self.history.records]
        write_text("\n".join(lines) + "\n", self.folder / LOG_FILE)

    def load_state(self) -> None:
        path = self.folder / STATE_FILE
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # unpickling fails in many ways
            raise ValueError(f"{path}: not a complete training state: {error}") from None
        saved, current = state["config"], asdict(self.config)
        for section in saved:
            for key, value in saved[section].items():
                if current[section].get(key) != value:
                    raise ValueError(
                        f"{section}.{key}: the run was started with {value!r}, resumed with "
                        f"{current[section].get(key)!r}; resume with the same configuration"
                    )
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = History(**state["history"])
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"]:
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda_rng"]])


def parameter_groups(model: Amuse, config: TrainConfig) -> list[dict[str, Any]]:
    """A pretrained encoder learns more slowly, its lower layers most; biases, norms and gates do not decay."""
    own = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("encoders.")]
    rated = [(own, config.learning_rate)]
    for encoder in model.encoders.values():
        for depth, members in enumerate(cast(TextEncoder, encoder).layer_groups()):
            rated.append((members, config.encoder_learning_rate * config.encoder_decay**depth))
    groups = []
    for parameters, rate in rated:
        for decays in (True, False):
            members = [p for p in parameters if (p.dim() > 1) == decays]
            if members:
                groups.append({"params": members, "lr": rate, "weight_decay": config.weight_decay if decays else 0.0})
    return groups


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """Linear rise over the first `warmup` share of all steps, then a cosine down to 0."""
    rise = warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(total - rise, 1)))


def class_weights(splits: Splits, config: LossConfig) -> Tensor | None:
    """Frequency in the training split to the power of -config.class_weights, 1 on average."""
    if config.class_weights == 0 or splits.train.label_names is None:
        return None
    weights = splits.train.class_counts().clamp(min=1).double() ** -config.class_weights
    return (weights / weights.mean()).float()


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (libraries that draw from numpy's global generator)
    torch.manual_seed(seed)


def headline(metrics: Metrics | RegressionMetrics) -> dict[str, float]:
    if isinstance(metrics, Metrics):
        return {"weighted_f1": metrics.weighted_f1, "accuracy": metrics.accuracy}
    return {"mae": metrics.mae, "pearson": metrics.pearson}


def describe(record: dict[str, Any], better: bool) -> str:
    scores = "  ".join(f"{name} {value:.4f}" for name, value in record["valid"].items())
    mark = "  (best so far)" if better else ""
    return f"epoch {record['epoch']:>3}  loss {record['train']['loss']:.4f}  {scores}  {record['seconds']:.1f} s{mark}"


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes an epoch's record for TensorBoard, or does nothing where that is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        yield lambda record: None
        return
    with SummaryWriter(str(folder / "tensorboard")) as writer:

        def write(record: dict[str, Any]) -> None:
            for part in ("train", "valid"):
                for name, value in record[part].items():
                    writer.add_scalar(f"{part}/{name}", value, record["epoch"])
            writer.add_scalar("learning_rate", record["learning_rate"], record["epoch"])

        yield write
