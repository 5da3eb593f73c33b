"""Training: epochs with validation, early stopping, the best checkpoint kept, resumable, in one process or many.

A run's folder holds:
    config.yaml          everything that decided the run, resolved
    best/                the model of the best validation score (`Amuse.from_pretrained`), with its standardizer and
                         temperature
    log.jsonl            one line per epoch
    state.pt             the state that `resume` reads
    tensorboard/         when tensorboard is installed
"""

import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from amuse.config import Config
from amuse.data.batch import Batch, present_modalities
from amuse.data.load import Splits
from amuse.data.mix import Mix
from amuse.evaluation.calibration import Calibration
from amuse.evaluation.metrics import Metrics, RegressionMetrics
from amuse.evaluation.predict import Predictions, predict, score, score_predictions
from amuse.files import (
    BEST,
    MEDIA_FILE,
    STANDARDIZER_FILE,
    save_tensors,
    write_text,
)
from amuse.model.amuse import Amuse
from amuse.model.output import Output
from amuse.training.augmentation import augment, draw_mix
from amuse.training.contrastive import contrastive_loss, contrasts
from amuse.training.losses import LossDenominators, amuse_loss
from amuse.training.micro_batches import MicroBatchSampler, micro_batch_loader, read_ahead
from amuse.training.monitoring import (
    describe,
    headline,
    peak_memory_mib,
    return_free_memory,
    tensorboard,
    why_stopped,
)
from amuse.training.optimization import class_weights, learning_rate_factor, parameter_groups
from amuse.training.parallel import accumulating, local, parallel, whole
from amuse.training.shuffling import Shuffling, draw_batches
from amuse.training.state import History, TrainingState, rng_state, set_rng_state
from amuse.world import World

STEPS_PER_CLEANUP = 16  # takes some 10 ms
COMPILER = "inductor"
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class CachedContrast(NamedTuple):
    """A micro-batch's part of the contrastive loss, see `Run.cached_contrastive_loss`."""

    loss: Tensor
    gradient: Tensor
    rng: list[Tensor]


class Run:
    """One training run: model, optimiser, schedule, average of the weights, history."""

    def __init__(self, config: Config, model: Amuse, splits: Splits, folder: Path, world: World) -> None:
        self.config, self.model, self.splits = config, model, splits
        self.folder, self.world = folder, world
        train = config.train
        if train.recompute:
            model.recompute_activations()
        self.average = copy.deepcopy(model).requires_grad_(False) if train.ema > 0 else None
        if train.compile:  # in place, so that its parameters keep their names; lengths change with every batch
            model.compile(backend=COMPILER, dynamic=True)
        # a pretrained encoder may have parts that the model does not use
        partly_used = bool(model.encoders)
        self.network = parallel(model, train.strategy, world, model.blocks(), partly_used)
        if self.average is not None and train.strategy == "fsdp":
            parallel(self.average, train.strategy, world, self.average.blocks(), partly_used)
        self.optimizer = torch.optim.AdamW(parameter_groups(model, train), fused=True)
        shuffling = Shuffling.of(splits.train, train, world)
        batches = draw_batches(splits.train, train, shuffling, world)
        self.micro_batches = MicroBatchSampler(batches, train.accumulate, world)
        self.loader = micro_batch_loader(splits.train, self.micro_batches, train.workers)
        total = train.epochs * len(batches)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, total, train.warmup)
        )
        # fp16 needs its gradients scaled; bf16 has the range of fp32
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=train.precision == "fp16")
        weights = class_weights(splits.train, config.loss)
        self.class_weights = None if weights is None else weights.to(world.device)
        if train.flipped and splits.train.label_names is None:
            raise ValueError("train.flipped: expected 0 for regression, which has no predicted class to flip")
        self.history = History()
        self.state = TrainingState(
            config, shuffling, model, self.average, self.optimizer, self.scheduler, self.scaler, self.history, world
        )

    def fit(self, progress: bool) -> None:
        train, history = self.config.train, self.history
        with tensorboard(self.folder, self.world.is_main) as write:
            while not self.finished:
                started = time.perf_counter()
                losses = self.run_epoch(progress)
                predictions = predict(self.evaluated, self.splits.valid, train.batch_size, self.world)
                metrics = score_predictions(predictions, self.model.spec.label_names)
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
                if self.finished or history.epoch % train.save_epochs == 0:
                    self.state.save(self.folder)
                write(record)
                if progress:
                    tqdm.write(describe(record, better))
        if progress:
            tqdm.write(why_stopped(history.epoch, history.best_epoch, train, history.records))

    @property
    def finished(self) -> bool:
        """All epochs are over, or too many of them without a better score."""
        train, history = self.config.train, self.history
        return history.epoch >= train.epochs or history.epoch - history.best_epoch >= train.patience

    @property
    def evaluated(self) -> Amuse:
        """The model that is validated and kept."""
        return self.model if self.average is None else self.average

    def run_epoch(self, progress: bool) -> dict[str, float]:
        """Run the rest of a pass over the training split; the mean of every loss term over the whole pass."""
        train, history = self.config.train, self.history
        self.model.train()
        self.loader.set_epoch(history.epoch)
        self.micro_batches.start = history.step
        parts = self.read()
        bar = tqdm(
            total=len(self.micro_batches.batches), initial=history.step, leave=False, disable=None if progress else True
        )
        bar.set_description(f"epoch {history.epoch + 1}")
        while micro_batches := list(islice(parts, train.accumulate)):
            losses = self.step(micro_batches)
            for name, value in losses.items():
                history.totals[name] = history.totals.get(name, 0.0) + value
            history.step += 1
            if train.save_steps and history.step % train.save_steps == 0:
                self.state.save(self.folder)
            bar.update()
            bar.set_postfix(loss=f"{losses['loss']:.3f}")
        bar.close()
        means = {name: total / history.step for name, total in history.totals.items()}
        history.step, history.totals = 0, {}
        history.flipped, history.flipping = history.flipping, []
        return means

    def read(self) -> Iterator[Batch]:
        """The micro-batches of the rest of the epoch, made ahead of the step by a thread or by processes."""
        train = self.config.train
        return iter(self.loader) if train.workers else read_ahead(self.loader, train.accumulate)

    def step(self, micro_batches: list[Batch]) -> dict[str, float]:
        """Update the weights once from this process's micro-batches; the losses of the whole batch."""
        train, loss_config = self.config.train, self.config.loss
        parts: list[tuple[Batch, Mix | None]] = []
        for batch in micro_batches:
            batch = augment(batch, self.config.model, self.model.groups)
            for streams in self.model.groups.values():
                if len(streams) > 1:
                    batch.merge(streams)  # while it is on the host
            mix, device = draw_mix(batch.labels, train.mixup), self.world.device
            parts.append((batch.to(device, non_blocking=True), None if mix is None else mix.to(device)))
        weights = [self.utterance_weights(batch) for batch, _ in parts]
        denominators = self.denominators(parts, weights)
        several = len(parts) > 1 and len(self.model.modalities) > 1
        cached = self.cached_contrastive_loss(parts) if several and contrasts(loss_config) else None
        if cached is not None:
            loss_config = replace(loss_config, contrastive_kind="none")
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for index, (batch, mix) in enumerate(parts):
            with accumulating(self.network, last=index == len(parts) - 1):
                if cached is not None:
                    set_rng_state(cached[index].rng)
                output = self.forward(self.network, batch, mix)
                losses = amuse_loss(
                    output,
                    batch.labels,
                    loss_config,
                    self.class_weights,
                    batch=batch,
                    mix=mix,
                    utterance_weights=weights[index],
                    denominators=denominators,
                    gather=self.world.gather_rows if self.world.size > 1 else None,
                )
                self.note_flipped(batch, output)
                loss = losses["loss"]
                if cached is not None:
                    losses["contrastive"] = cached[index].loss
                    losses["loss"] = loss + self.config.loss.contrastive * cached[index].loss
                    loss = loss + self.config.loss.contrastive * (output.descriptors * cached[index].gradient).sum()
                # gradients are averaged over processes, losses summed
                self.scaler.scale(loss * self.world.size).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float()
        values = dict(zip(sums, self.world.sum(torch.stack(list(sums.values()))).tolist(), strict=True))
        self.check_finite(values["loss"], micro_batches)
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), train.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        if self.scheduler.last_epoch % STEPS_PER_CLEANUP == 0:
            return_free_memory()
        self.update_average()
        return values

    def forward(self, network: nn.Module, batch: Batch, mix: Mix | None) -> Output:
        dtype = AUTOCAST.get(self.config.train.precision)
        with torch.autocast(self.world.device.type, dtype=dtype, enabled=dtype is not None):
            return network(batch, mix)

    def utterance_weights(self, batch: Batch) -> Tensor | None:
        """1, plus `train.flipped` for utterances that fusion flipped in the previous epoch; None = all equal."""
        if not self.config.train.flipped:
            return None
        chosen = set(self.history.flipped)
        known = [name in chosen for _, name in batch.ids]
        return 1 + self.config.train.flipped * torch.tensor(known, device=batch.dialogue.device)

    def note_flipped(self, batch: Batch, output: Output) -> None:
        """Record which utterances fusion flips, in the micro-batches of all processes, for the next epoch."""
        if not self.config.train.flipped:
            return
        with torch.no_grad():
            rows = self.model.flipped(output.descriptors, output.present).nonzero()[:, 0].tolist()
        for names in self.world.gather([batch.ids[row][1] for row in rows]):
            self.history.flipping.extend(names)

    def denominators(self, parts: list[tuple[Batch, Mix | None]], weights: list[Tensor | None]) -> LossDenominators:
        """The loss denominators of the whole batch, summed over the micro-batches of all processes."""
        groups, classes = self.model.groups, self.class_weights
        own = [
            LossDenominators.of(batch.labels, present_modalities(batch, groups), classes, mix, batch, weight)
            for (batch, mix), weight in zip(parts, weights, strict=True)
        ]
        return LossDenominators.from_vector(self.world.sum(torch.stack([part.to_vector() for part in own]).sum(0)))

    def cached_contrastive_loss(self, parts: list[tuple[Batch, Mix | None]]) -> list[CachedContrast]:
        """The contrastive loss of all micro-batches together, and its gradient at the descriptors of each.

        Every descriptor is a negative of every other, but the graphs of all micro-batches do not fit into memory
        together. So descriptors are first computed without graphs, then again with graphs and the same dropout: the
        gradient caching of Gao et al. 2021 (arXiv 2101.06983).
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
        # the losses of the micro-batches are summed, so the first carries all of it
        losses = [loss.detach(), *(torch.zeros_like(loss) for _ in parts[1:])]
        return [CachedContrast(*entry) for entry in zip(losses, gradients, states, strict=True)]

    def check_finite(self, loss: float, micro_batches: list[Batch]) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"epoch {self.history.epoch + 1}: the loss is {loss}; lower train.learning_rate, or "
                f"look for outliers in the features of {micro_batches[0].ids[0]} to {micro_batches[-1].ids[-1]}"
            )

    def update_average(self) -> None:
        if self.average is None:
            return
        steps = self.scheduler.last_epoch
        # a short memory at first, so that the random initialisation is forgotten
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
        if self.model.spec.label_names is not None and predictions.labels is not None:
            Calibration.fit(predictions.logits, predictions.labels).save(best)
        write_text(json.dumps(metrics.to_dict(), indent=2), best / "valid.json")
