"""Run by tests/test_own_blocks.py in two processes: `torchrun -m tests.own_blocks_worker FOLDER`.

Trains on prepared data in blocks; writes what every process read and the losses, and a run that was interrupted within
an epoch next to one that was not.
"""

import json
import sys
from contextlib import suppress
from pathlib import Path
from unittest import mock

import torch

from amuse.config import Config
from amuse.data import own_blocks
from amuse.data.load import Splits
from amuse.data.prepared import read_prepared
from amuse.data.synthetic import synthetic_conversations
from amuse.encoders import stored
from amuse.model.amuse import Amuse
from amuse.training.run import Run
from amuse.training.train import seed_everything, train_on
from amuse.world import World, join_world
from tests.prepared_folder import write_prepared

DIALOGUES = 16  # eight shards of two, four for each process
WINDOW = 4  # two blocks for each of two processes
CONFIG = Config.load(
    None,
    [
        "model.d_model=16",
        "model.num_heads=2",
        "model.man_layers=1",
        "model.dropout=0",
        "train.epochs=2",
        "train.batch_size=4",
        "train.keep=last",
        "train.save_steps=1",
        "train.shuffle_block=2",
        "train.own_blocks=true",
    ],
)


def splits_in(folder: Path) -> Splits:
    counts = {"train": DIALOGUES, "valid": 2, "test": 2}
    if not folder.exists():
        write_prepared(
            folder, {split: synthetic_conversations(split, num_dialogues=n, seed=1) for split, n in counts.items()}
        )
    train, valid, test = (read_prepared(folder, split) for split in counts)
    return Splits(train, valid, test, None)


def make_run(folder: Path, splits: Splits, world: World) -> Run:
    seed_everything(0)
    return Run(CONFIG, Amuse(CONFIG.model, splits.spec("minilm")), splits, folder, world)


def watch(run: Run) -> dict[str, list]:
    """What a run reads and trains on from now on."""
    seen: dict[str, list] = {"files": [], "steps": []}
    opened, step = stored._open, run.step

    def noted_open(path):
        seen["files"].append(Path(path).name)
        return opened(path)

    def noted_step(micro_batches):
        seen["steps"].append([name for batch in micro_batches for _, name in batch.ids if batch.labels is not None])
        return step(micro_batches)

    stored._open = noted_open
    run.step = noted_step  # type: ignore[method-assign]
    return seen


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    own_blocks.WINDOW = WINDOW
    with join_world(torch.device("cpu")) as world:
        with world.main_first():
            splits = splits_in(folder / "data")
        train_on(splits, CONFIG, folder / "whole", progress=False)
        interrupt(splits, folder / "cut")
        world.barrier()
        train_on(splits, CONFIG, folder / "cut", resume=True, progress=False)
        interrupt(splits, folder / "for one")
        run = make_run(folder, splits, world)
        seen = watch(run)
        epochs = []
        for epoch in range(2):
            run.history.epoch = epoch
            losses = run.run_epoch(progress=False)
            epochs.append({"losses": losses, "files": sorted(set(seen["files"])), "steps": list(seen["steps"])})
            seen["files"].clear()
            seen["steps"].clear()
        (folder / f"{world.rank}.json").write_text(json.dumps(epochs))


def interrupt(splits: Splits, folder: Path) -> None:
    """Trains to the middle of the second epoch."""
    step, count = Run.step, [0]

    def interrupted(self, micro_batches):
        count[0] += 1
        if count[0] == 7:
            raise KeyboardInterrupt
        return step(self, micro_batches)

    with mock.patch.object(Run, "step", interrupted), suppress(KeyboardInterrupt):
        train_on(splits, CONFIG, folder, progress=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
