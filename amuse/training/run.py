"""Training: epochs with validation, early stopping, the best checkpoint kept, resumable, in one process or many.

A run's folder holds:
    config.yaml          everything that decided the run, resolved
    best/                the model of the best validation score (`Amuse.from_pretrained`), with its standardizer and
                         temperature
    log.jsonl            one line an epoch
    state.pt             what `resume` needs
    tensorboard/         when tensorboard is installed
"""

import copy
import json
import math
import random
import time
import zipfile
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from amuse.config import Config
from amuse.data.batch import Batch, DialogueBatches
from amuse.data.load import Splits, load_splits
from amuse.evaluation.calibration import Calibration
from amuse.evaluation.metrics import Metrics, RegressionMetrics
from amuse.evaluation.predict import Predictions, choose_device, predict, score, score_predictions
from amuse.files import (
    BEST,
    CONFIG_FILE,
    MEDIA_FILE,
    STANDARDIZER_FILE,
    remove_leftovers,
    save_state,
    save_tensors,
    write_text,
)
from amuse.model.amuse import Amuse, Output
from amuse.model.stages import present_modalities
from amuse.training.augmentation import Mix, augment, draw_mix
from amuse.training.losses import Totals, amuse_loss, contrastive_loss, contrasts
from amuse.training.monitoring import describe, headline, peak_memory_mib, tensorboard
from amuse.training.optimization import (
    centre_outputs,
    class_weights,
    dialogue_weights,
    learning_rate_factor,
    parameter_groups,
)
from amuse.training.parallel import (
    Shares,
    World,
    accumulating,
    join_world,
    local,
    parallel,
    shard_like,
    share_loader,
    whole,
)

STATE_FILE = "state.pt"
STATE_VERSION = 2
LOG_FILE = "log.jsonl"
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# settings of the machine, which a resumed run may change
MACHINE = {"accumulate", "device", "recompute", "save_steps", "strategy"}


@dataclass
class History:
    """What has happened so far; saved with the state."""

    epoch: int = 0  # epochs done
    step: int = 0  # steps done of the epoch under way
    totals: dict[str, float] = field(default_factory=dict)  # sums of their losses
    best_epoch: int = 0
    best_score: float = -math.inf
    records: list[dict[str, Any]] = field(default_factory=list)


def train(config: Config, folder: str | Path, resume: bool = False, progress: bool = True) -> Amuse:
    """Train as `config` says and return the best model; under torchrun all processes train one model.

    Args:
        config: `model.modalities` and `model.label_names` are filled in from the data.
        folder: of the run.
        resume: go on from the last saved state, to the same result as without the interruption.
        progress: show progress bars.

    Raises:
        FileExistsError: the folder holds a run and `resume` is not set.
        ValueError: resuming with another configuration, or from a damaged state.
        FloatingPointError: the loss is not finite.
    """
    folder = Path(folder)
    if (folder / STATE_FILE).exists() and not resume:
        raise FileExistsError(f"{folder}: holds a run already; resume it or choose another folder")
    with join_world(choose_device(config.train.device)) as world:
        with world.main_first():
            splits = load_splits(config.data, progress and world.is_main)
        return train_on(splits, config, folder, resume, progress)


def train_on(splits: Splits, config: Config, folder: Path, resume: bool = False, progress: bool = True) -> Amuse:
    """`train` on conversations that are there already."""
    seed_everything(config.train.seed)
    config = copy.deepcopy(config)
    config.model.modalities = dict(splits.train.modalities)
    config.model.label_names = splits.train.label_names
    if 0 in config.model.modalities.values():
        config.model.text_encoder = config.data.encoder
    config.model.raw = dict(splits.raw)
    config.model.__post_init__()
    with join_world(choose_device(config.train.device)) as world:
        model = Amuse(config.model).to(world.device)
        centre_outputs(model, splits.train)
        if world.rank > 0:  # the same weights, but dropout of its own
            torch.manual_seed(config.train.seed + 1_000_003 * world.rank)
        run = Run(config, model, splits, folder, world)
        if resume and (folder / STATE_FILE).exists():
            run.load_state()
        elif world.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            config.save(folder / CONFIG_FILE)
        if world.is_main:
            for place in (folder, folder / BEST):
                remove_leftovers(place)
        run.fit(progress and world.is_main)
        world.barrier()
        return Amuse.from_pretrained(folder / BEST).to(world.device)


class Run:
    """The moving parts of one training: model, optimiser, schedule, average of the weights, history."""

    def __init__(self, config: Config, model: Amuse, splits: Splits, folder: Path, world: World) -> None:
        self.config, self.model, self.splits = config, model, splits
        self.folder, self.world = folder, world
        train = config.train
        if train.recompute:
            model.recompute_activations()
        self.average = copy.deepcopy(model).requires_grad_(False) if train.ema > 0 else None
        # a pretrained encoder may have parts that the model does not read
        partly_used = bool(model.encoders)
        self.network = parallel(model, train.strategy, world, model.blocks(), partly_used)
        if self.average is not None and train.strategy == "fsdp":
            parallel(self.average, train.strategy, world, self.average.blocks(), partly_used)
        self.optimizer = torch.optim.AdamW(parameter_groups(model, train))
        batches = DialogueBatches(
            [len(dialogue) for dialogue in splits.train.dialogues],
            train.batch_size,
            shuffle=True,
            seed=train.seed,
            max_utterances=train.max_utterances,
            weights=dialogue_weights(splits.train, train),
        )
        self.shares = Shares(batches, train.accumulate, world)
        self.loader = share_loader(splits.train, self.shares)
        total = train.epochs * len(batches)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, total, train.warmup)
        )
        # fp16 needs its gradients scaled; bf16 has the range of fp32
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=train.precision == "fp16")
        weights = class_weights(splits.train, config.loss)
        self.class_weights = None if weights is None else weights.to(world.device)
        self.history = History()

    def fit(self, progress: bool) -> None:
        train, history = self.config.train, self.history
        with tensorboard(self.folder, self.world.is_main) as write:
            while history.epoch < train.epochs and history.epoch - history.best_epoch < train.patience:
                started = time.perf_counter()
                losses = self.run_epoch(progress)
                predictions = predict(self.evaluated, self.splits.valid, train.batch_size, self.world)
                metrics = score_predictions(predictions, self.config.model.label_names)
                history.epoch += 1
                better = score(metrics) > history.best_score
                if better:
                    history.best_score, history.best_epoch = score(metrics), history.epoch
                if better or train.keep == "last":
                    self.save_best(metrics, predictions)
                record = {
                    "epoch": history.epoch,
                    "train": losses,
                    "valid": headline(metrics),
                    "learning_rate": self.scheduler.get_last_lr()[0],
                    "seconds": round(time.perf_counter() - started, 2),
                    "memory_mib": round(peak_memory_mib(self.world.device)),
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
        """What is left of a pass over the training split; the mean of every loss term over the whole pass."""
        train, history = self.config.train, self.history
        self.model.train()
        self.loader.set_epoch(history.epoch)
        self.shares.start = history.step
        parts = iter(self.loader)
        bar = tqdm(total=len(self.shares.batches), initial=history.step, leave=False, disable=not progress)
        bar.set_description(f"epoch {history.epoch + 1}")
        while share := list(islice(parts, train.accumulate)):
            losses = self.step(share)
            for name, value in losses.items():
                history.totals[name] = history.totals.get(name, 0.0) + value
            history.step += 1
            if train.save_steps and history.step % train.save_steps == 0:
                self.save_state()
            bar.update()
            bar.set_postfix(loss=f"{losses['loss']:.3f}")
        bar.close()
        means = {name: total / history.step for name, total in history.totals.items()}
        history.step, history.totals = 0, {}
        return means

    def step(self, share: list[Batch]) -> dict[str, float]:
        """One update from this process's parts of a batch; the losses of the whole batch."""
        train, loss_config = self.config.train, self.config.loss
        parts: list[tuple[Batch, Mix | None]] = []
        for batch in share:
            batch = augment(batch.to(self.world.device), self.config.model)
            parts.append((batch, draw_mix(batch.labels, train.mixup)))
        totals = self.totals(parts)
        several = len(parts) > 1 and len(self.model.modalities) > 1
        ahead = self.contrast_ahead(parts) if several and contrasts(loss_config) else None
        if ahead is not None:
            loss_config = replace(loss_config, contrastive_kind="none")
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for index, (batch, mix) in enumerate(parts):
            with accumulating(self.network, last=index == len(parts) - 1):
                if ahead is not None:
                    set_rng_state(ahead[index].rng)
                output = self.forward(self.network, batch, mix)
                losses = amuse_loss(
                    output,
                    batch.labels,
                    loss_config,
                    self.class_weights,
                    batch=batch,
                    mix=mix,
                    totals=totals,
                    gather=self.world.gather_rows if self.world.size > 1 else None,
                )
                loss = losses["loss"]
                if ahead is not None:
                    losses["contrastive"] = ahead[index].loss
                    losses["loss"] = loss + self.config.loss.contrastive * ahead[index].loss
                    loss = loss + self.config.loss.contrastive * (output.descriptors * ahead[index].gradient).sum()
                # the processes' gradients are averaged, their losses add up
                self.scaler.scale(loss * self.world.size).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float()
        values = dict(zip(sums, self.world.sum(torch.stack(list(sums.values()))).tolist(), strict=True))
        self.check_finite(values["loss"], share)
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), train.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.update_average()
        return values

    def forward(self, network: nn.Module, batch: Batch, mix: Mix | None) -> Output:
        dtype = AUTOCAST.get(self.config.train.precision)
        with torch.autocast(self.world.device.type, dtype=dtype, enabled=dtype is not None):
            return network(batch, mix)

    def totals(self, parts: list[tuple[Batch, Mix | None]]) -> Totals:
        """Of all parts in all processes."""
        groups = self.model.groups
        own = [
            Totals.of(batch.labels, present_modalities(batch, groups), self.class_weights, mix, batch)
            for batch, mix in parts
        ]
        return Totals.from_vector(self.world.sum(torch.stack([total.to_vector() for total in own]).sum(0)))

    def contrast_ahead(self, parts: list[tuple[Batch, Mix | None]]) -> list["Contrast"]:
        """The contrastive loss of all parts at once, and its gradient at each part's descriptors.

        Every descriptor is a negative of every other one, but the graphs of all parts do not fit into memory together.
        So the descriptors are computed without graphs first, and again with them, with the same dropout.
        """
        states, descriptors = [], []
        with torch.no_grad():
            for batch, mix in parts:
                states.append(rng_state())
                descriptors.append(self.forward(self.model, batch, mix).descriptors.float())
        leaves = [rows.requires_grad_() for rows in descriptors]
        present = torch.cat([present_modalities(batch, self.model.groups) for batch, _ in parts])
        loss = contrastive_loss(torch.cat(leaves), present, self.config.loss, self.world.gather_rows)
        gradients = torch.autograd.grad(loss, leaves)
        shares = [loss.detach() if index == 0 else torch.zeros_like(loss) for index in range(len(parts))]
        return [Contrast(*entry) for entry in zip(shares, gradients, states, strict=True)]

    def check_finite(self, loss: float, share: list[Batch]) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"epoch {self.history.epoch + 1}: the loss is {loss}; lower train.learning_rate, or "
                f"look for outliers in the features of {share[0].ids[0]} to {share[-1].ids[-1]}"
            )

    def update_average(self) -> None:
        if self.average is None:
            return
        steps = self.scheduler.last_epoch
        # a short memory at first, so that the random start is forgotten
        decay = min(self.config.train.ema, (1 + steps) / (10 + steps))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
                local(mean).lerp_(local(value), 1 - decay)

    def save_best(self, metrics: Metrics | RegressionMetrics, predictions: Predictions) -> None:
        weights = whole(self.evaluated.state_dict())
        if not self.world.is_main:
            return
        best = self.folder / BEST
        self.evaluated.save_pretrained(best, weights)
        if self.splits.standardizer is not None:
            save_tensors(self.splits.standardizer.state_dict(), best / STANDARDIZER_FILE)
        if self.splits.media is not None:
            write_text(json.dumps(self.splits.media), best / MEDIA_FILE)
        if self.config.model.label_names is not None and predictions.labels is not None:
            Calibration.fit(predictions.logits, predictions.labels).save(best)
        write_text(json.dumps(metrics.to_dict(), indent=2), best / "valid.json")

    def save_state(self) -> None:
        state = {
            "version": STATE_VERSION,
            "config": asdict(self.config),
            "model": whole(self.model.state_dict()),
            "average": None if self.average is None else whole(self.average.state_dict()),
            "optimizer": whole(self.optimizer.state_dict()),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": asdict(self.history),
            "rng": self.world.gather(rng_state()),
        }
        if not self.world.is_main:
            return
        save_state(state, self.folder / STATE_FILE)
        write_text("".join(json.dumps(record) + "\n" for record in self.history.records), self.folder / LOG_FILE)

    def load_state(self) -> None:
        path = self.folder / STATE_FILE
        try:
            with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} is damaged")
            state = torch.load(path, map_location=self.world.device, weights_only=True)
        except Exception as error:  # unpickling fails in many ways
            raise ValueError(f"{path}: not a complete training state: {error}") from None
        if state.get("version") != STATE_VERSION:
            raise ValueError(f"{path}: written by another version of this package, which has to finish the run")
        self.check_same(state["config"])
        for model, weights in ((self.model, state["model"]), (self.average, state["average"])):
            if model is not None:
                own = model.state_dict()
                model.load_state_dict({name: shard_like(value, own[name]) for name, value in weights.items()})
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {
            index: {name: shard_like(value, parameters[index]) for name, value in entry.items()}
            for index, entry in state["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict({**state["optimizer"], "state": moments})
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = History(**state["history"])
        if self.world.rank < len(state["rng"]):  # a process that the interrupted run did not have keeps its seed
            set_rng_state(state["rng"][self.world.rank])

    def check_same(self, saved: dict[str, Any]) -> None:
        current = asdict(self.config)
        for section in saved:
            for key, value in saved[section].items():
                if key not in MACHINE and current[section].get(key) != value:
                    raise ValueError(
                        f"{section}.{key}: the run was started with {value!r}, resumed with "
                        f"{current[section].get(key)!r}; resume with the same configuration"
                    )


@dataclass
class Contrast:
    """What a part of a batch contributes to the contrastive loss, see `Run.contrast_ahead`."""

    loss: Tensor
    gradient: Tensor
    rng: list[Tensor]


def rng_state() -> list[Tensor]:
    """Of this process: torch's generator and, where there is one, the current GPU's."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def set_rng_state(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0].cpu())
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1].cpu())


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (libraries that draw from numpy's global generator)
    torch.manual_seed(seed)
