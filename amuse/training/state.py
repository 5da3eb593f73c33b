"""The state from which an interrupted training resumes: saved, read and checked."""

import json
import math
import zipfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amuse.config import Config, split_data_keys
from amuse.files import LOG_FILE, save_state, write_text
from amuse.model.amuse import Amuse
from amuse.training.parallel import shard_like, whole
from amuse.training.shuffling import Shuffling
from amuse.world import World

STATE_FILE = "state.pt"
STATE_VERSION = 2  # states without "data" have it in the model's configuration, where version 0.1 kept it
# settings that depend on the machine, which a resumed run may change
MACHINE = {"accumulate", "device", "recompute", "save_epochs", "save_steps", "strategy"}
SHUFFLING = {"shuffle_block", "own_blocks"}  # compared as they were decided with the data


@dataclass
class History:
    """Progress so far; saved with the state."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the current epoch
    totals: dict[str, float] = field(default_factory=dict)  # sums of their losses
    best_epoch: int = 0
    best_score: float = -math.inf
    records: list[dict[str, Any]] = field(default_factory=list)
    flipped: list[str] = field(default_factory=list)  # utterances that fusion flipped in the previous epoch
    flipping: list[str] = field(default_factory=list)  # and so far in the current one

    def restore(self, saved: dict[str, Any]) -> None:
        """Take every value from a saved history; files of version 0.1 lack the flipped utterances."""
        for entry in fields(self):
            if entry.name in saved:
                setattr(self, entry.name, saved[entry.name])


@dataclass
class TrainingState:
    """Everything that a resumed training needs to end as it would have without the interruption."""

    config: Config
    shuffling: Shuffling
    model: Amuse
    average: Amuse | None
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    history: History
    world: World

    def save(self, folder: Path) -> None:
        """Write the state and the log of the epochs; every process must call it."""
        state = {
            "version": STATE_VERSION,
            "config": asdict(self.config),
            "shuffling": asdict(self.shuffling),
            "data": asdict(self.model.spec),
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
        save_state(state, folder / STATE_FILE)
        write_text("".join(json.dumps(record) + "\n" for record in self.history.records), folder / LOG_FILE)

    def load(self, folder: Path) -> None:
        """Continue from the state in `folder`.

        Raises:
            ValueError: A damaged state, one of another version, or of a run with another configuration.
        """
        path = folder / STATE_FILE
        try:
            with zipfile.ZipFile(path) as archive:  # torch.load does not verify checksums
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} is damaged")
            state = torch.load(path, map_location=self.world.device, weights_only=True)
        except Exception as error:  # unpickling fails in many ways
            raise ValueError(f"{path}: not a complete training state: {error}") from None
        if state.get("version") != STATE_VERSION:
            raise ValueError(f"{path}: written by another version of this package; finish the run with that version")
        saved = dict(state["config"])
        saved["model"], written_by_0_1 = split_data_keys(saved["model"])
        self._check_same({**saved, "DataSpec": state.get("data", written_by_0_1)})
        self._check_shuffling(state)
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
        self.history.restore(state["history"])
        if self.world.rank < len(state["rng"]):  # a process that the interrupted run lacked keeps its own seed
            set_rng_state(state["rng"][self.world.rank])

    def _check_same(self, saved: dict[str, Any]) -> None:
        current = {**asdict(self.config), "DataSpec": asdict(self.model.spec)}
        for section in saved:
            for key, value in saved[section].items():
                if key not in MACHINE | SHUFFLING and current[section].get(key) != value:
                    raise ValueError(
                        f"{section}.{key}: the run was started with {value!r}, resumed with "
                        f"{current[section].get(key)!r}; resume with the same configuration"
                    )

    def _check_shuffling(self, state: dict[str, Any]) -> None:
        """Another order of the epoch would repeat some of its dialogues and leave out others."""
        current = asdict(self.shuffling)
        # states of versions that knew no blocks, or no processes with blocks of their own, were drawn without them
        block = state["config"]["train"].get("shuffle_block", 0)
        before = {"block": current["block"] if block is None else block, "own_blocks": False}
        saved = state.get("shuffling", before)
        if saved["block"] != current["block"]:
            raise _other_setting("shuffle_block", saved["block"], current["block"])
        size, here = len(state["rng"]), self.world.size
        # one process draws the same batches either way
        was, now = saved["own_blocks"] and size > 1, current["own_blocks"] and here > 1
        within = state["history"]["step"] > 0
        if was and within and size != here:
            raise ValueError(
                f"the state was saved within an epoch of {size} processes with blocks of their own; "
                f"expected as many to resume it, got {here}"
            )
        # between epochs, what was left to the data may be decided otherwise for another number of processes
        settings = {state["config"]["train"].get("own_blocks", False), self.config.train.own_blocks}
        if was != now and (within or (min(size, here) > 1 and settings != {None})):
            raise _other_setting("own_blocks", was, now)


def _other_setting(key: str, saved: bool | int, current: bool | int) -> ValueError:
    value = str(saved).lower()
    return ValueError(
        f"train.{key}: the run was started with {value}, resumed with {str(current).lower()}; "
        f"resume with --set train.{key}={value}"
    )


def rng_state() -> list[Tensor]:
    """States of this process's generators: torch's and, where there is one, the current GPU's."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def set_rng_state(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0].cpu())
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1].cpu())
