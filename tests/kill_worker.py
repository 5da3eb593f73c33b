"""Run by tests/test_kill.py: trains in forked children, kills each at another moment, resumes in the next one.

The features are in files and an epoch is drawn in blocks, so that a life that resumes within one has to find its place.

    python -m tests.kill_worker FOLDER

A fork costs nothing, where a new process would import torch for seconds. Prints one line per death.
"""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from amuse.config import Config
from amuse.data import batch
from amuse.data.load import Splits
from amuse.data.prepared import read_prepared
from amuse.data.synthetic import synthetic_conversations
from amuse.files import BEST
from amuse.model.amuse import Amuse
from amuse.training.state import STATE_FILE
from amuse.training.train import train_on
from tests.prepared_folder import write_prepared

CONFIG = Config.load(
    None,
    [
        "model.d_model=16",
        "model.num_heads=2",
        "model.man_layers=1",
        "train.epochs=3",
        "train.batch_size=2",
        "train.ema=0.9",
        "train.mixup=0.4",
        "train.keep=last",
        "train.save_steps=2",
        "train.shuffle_block=1",
    ],
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_replacement(number: int, before: bool) -> None:
    """Have this process die just before or just after it puts its `number`-th file in place."""
    replace, count = os.replace, [0]

    def replace_and_die(*paths: object) -> None:
        count[0] += 1
        if count[0] == number and before:
            die()
        replace(*paths)  # type: ignore[arg-type]
        if count[0] == number:
            die()

    os.replace = replace_and_die


def run(folder: Path, prepare: Callable[[], None], kill_after: float | None) -> bool:
    """Trains in a child; returns whether it ended without being killed."""
    child = os.fork()
    if child == 0:
        prepare()
        train_on(SPLITS, CONFIG, folder, resume=True, progress=False)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"a resumed run failed with {os.WEXITSTATUS(status)}")
    check(folder)
    return os.WIFEXITED(status)


def check(folder: Path) -> None:
    """Whatever has a file's name is whole."""
    if (folder / STATE_FILE).exists():
        torch.load(folder / STATE_FILE, weights_only=True)
    if (folder / BEST / "config.json").exists():
        Amuse.from_pretrained(folder / BEST)


def in_files(folder: Path) -> Splits:
    counts = {"train": 6, "valid": 3, "test": 3}
    write_prepared(folder, {split: synthetic_conversations(split, num_dialogues=n) for split, n in counts.items()})
    train, valid, test = (read_prepared(folder, split) for split in counts)
    return Splits(train, valid, test, None)


def main(folder: Path) -> None:
    # here, not in a child, so that the children find all modules imported
    train_on(SPLITS, CONFIG, folder / "whole", progress=False)
    started = time.perf_counter()
    assert run(folder / "timed", lambda: None, None)
    duration = time.perf_counter() - started
    draw = random.Random(0)
    deaths = 0
    while deaths < 10:
        if run(folder / "random", lambda: None, draw.uniform(0, duration / 3)):
            shutil.rmtree(folder / "random")  # it came to its end: from the beginning, killed sooner
            duration /= 2
        else:
            deaths += 1
    assert run(folder / "random", lambda: None, None)
    print(f"random {deaths}")
    lives = 0
    # each life gets a file further than the last one, so that the run ends
    while not run(folder / "files", partial(at_replacement, 1 + lives, lives % 2 == 0), None):
        lives += 1
    print(f"files {lives}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    batch.WINDOW = 3  # blocks, of six
    SPLITS = in_files(Path(sys.argv[1]) / "data")
    main(Path(sys.argv[1]))
