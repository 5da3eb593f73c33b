"""Train a model on the data of a configuration, or on conversations in memory."""

import logging
import random
from pathlib import Path

import numpy as np
import torch

from amuse.config import Config
from amuse.data.load import Splits, read_splits, standardize_splits
from amuse.data.preflight import SMALL, check_scorable
from amuse.evaluation.calibration import ENOUGH
from amuse.files import (
    BEST,
    CONFIG_FILE,
    remove_leftovers,
)
from amuse.model.amuse import Amuse
from amuse.training.optimization import centre_outputs
from amuse.training.run import Run
from amuse.training.state import STATE_FILE
from amuse.world import choose_device, join_world

logger = logging.getLogger(__name__)

LARGE = 1_000_000
"""Parameters from which on a model memorises fewer than `SMALL` labels."""


def train(config: Config, folder: str | Path, resume: bool = False, progress: bool = True) -> Amuse:
    """Train as `config` says and return the best model; under torchrun all processes train one model.

    Args:
        config: Everything that decides the run.
        folder: Folder of the run.
        resume: Resume from the last saved state; the result is the same as without the interruption.
        progress: Show progress bars.

    Raises:
        FileExistsError: The folder has a run and `resume` is not set.
        ValueError: Resuming with another configuration, or from a damaged state.
        FloatingPointError: The loss is not finite.
    """
    folder = Path(folder)
    if (folder / STATE_FILE).exists() and not resume:
        raise FileExistsError(f"{folder}: has a run already; resume it (--resume) or choose another folder")
    with join_world(choose_device(config.train.device)) as world:
        with world.main_first():
            splits = read_splits(config.data, progress and world.is_main, world.device)
        splits = standardize_splits(config.data, splits, world)
        return train_on(splits, config, folder, resume, progress)


def train_on(
    splits: Splits,
    config: Config,
    folder: Path,
    resume: bool = False,
    progress: bool = True,
    kind: type[Amuse] = Amuse,
) -> Amuse:
    """`train` on conversations in memory.

    Args:
        splits: The conversations.
        config, folder, resume, progress: As for `train`.
        kind: The model to train.

    Raises:
        ValueError: A split without a label, which could not be scored.
    """
    check_scorable({"train": splits.train, "valid": splits.valid, "test": splits.test})
    seed_everything(config.train.seed)
    with join_world(choose_device(config.train.device)) as world:
        model = kind(config.model, splits.spec(config.data.encoder)).to(world.device)
        centre_outputs(model, splits.train)
        if world.is_main:
            _advise(model, splits)
        if world.rank > 0:  # the same weights, but its own dropout
            torch.manual_seed(config.train.seed + 1_000_003 * world.rank)
        run = Run(config, model, splits, folder, world)
        if resume and (folder / STATE_FILE).exists():
            run.state.load(folder)
        elif world.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            config.save(folder / CONFIG_FILE)
        if world.is_main:
            for place in (folder, folder / BEST):
                remove_leftovers(place)
        run.fit(progress and world.is_main)
        world.barrier()
        return kind.from_pretrained(folder / BEST).to(world.device)


def _advise(model: Amuse, splits: Splits) -> None:
    """Warn of a model too large for its data, and of a validation split too small to calibrate on."""
    labels, checked = (sum(u.label is not None for u in part.utterances()) for part in (splits.train, splits.valid))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if labels < SMALL and parameters > LARGE:
        logger.warning(
            "%d labelled utterances for %.1f million parameters: a smaller model generalises better from so few; "
            "try --config small",
            labels,
            parameters / 1e6,
        )
    if model.spec.label_names is not None and checked < ENOUGH:
        logger.warning(
            "%d labelled validation utterances: probabilities are not calibrated, which takes at least %d",
            checked,
            ENOUGH,
        )


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (libraries that draw from numpy's global generator)
    torch.manual_seed(seed)
