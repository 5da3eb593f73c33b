"""Run by tests/test_distributed.py in two processes and in one: `torchrun -m tests.distributed_worker FOLDER`."""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from unittest import mock

import torch

from amuse.config import Config
from amuse.data.load import Splits
from amuse.data.prepared import read_prepared
from amuse.data.synthetic import synthetic_conversations
from amuse.model.amuse import Amuse
from amuse.training.parallel import whole
from amuse.training.run import Run
from amuse.training.train import seed_everything, train
from amuse.world import join_world
from tests.prepared_folder import write_prepared

TINY = [
    "data.num_dialogues=7",
    "model.d_model=16",
    "model.num_heads=2",
    "model.man_layers=1",
    "model.dropout=0",
    "train.epochs=2",
    "train.batch_size=4",  # 7 dialogues: the last batch of an epoch has 3, uneven shares
    "train.warmup=0",
]
CASES = {
    "nce": [],
    "infonce": ["loss.contrastive_kind=infonce", "loss.class_weights=0.5", "loss.label_smoothing=0.1"],
    "files, in blocks": ["train.shuffle_block=2"],
    "one dialogue": ["train.batch_size=1"],  # the second process has nothing to do
    "teacher, speakers": [
        "model.gate_teacher=true",
        "model.speaker_head=true",
        "model.temporal=attention",
        "train.recompute=true",
    ],
}
WAYS = {
    "ddp": [],
    "ddp, accumulate": ["train.accumulate=2"],
    "fsdp, accumulate": ["train.strategy=fsdp", "train.accumulate=2"],
}


def some_absent() -> Splits:
    """Conversations in which modalities and labels are missing, so that the processes count differently."""
    train, valid, test = (
        synthetic_conversations(split, num_dialogues=7, absent_rate=0.3) for split in ("train", "valid", "test")
    )
    for utterance in train.dialogues[0].utterances:
        utterance.label = None
    return Splits(train, valid, test, None)


def in_files(splits: Splits, folder: Path) -> Splits:
    """The same conversations as prepared data, whose features are read when a batch needs them."""
    parts = {"train": splits.train, "valid": splits.valid, "test": splits.test}
    if not folder.exists():
        write_prepared(folder, parts)
    train, valid, test = (read_prepared(folder, split) for split in parts)
    return Splits(train, valid, test, None)


def first_gradients(overrides: list[str], folder: Path) -> dict[str, torch.Tensor]:
    """The losses of the first step and every parameter's gradient before it is clipped."""
    config = Config.load(None, [*TINY, *overrides])
    splits = some_absent()
    seed_everything(0)
    with join_world(torch.device("cpu")) as world:
        if config.train.shuffle_block:
            splits = in_files(splits, folder / f"{' '.join(overrides)} {world.rank}")
        run = Run(config, Amuse(config.model, splits.spec(config.data.encoder)), splits, folder, world)
        run.model.train()
        found: dict[str, torch.Tensor] = {}
        original = torch.nn.utils.clip_grad_norm_

        def captured(parameters, norm):
            named = run.model.named_parameters()
            found.update({name: whole(p.grad).clone() for name, p in named if p.grad is not None})
            return original(parameters, norm)

        torch.nn.utils.clip_grad_norm_ = captured
        try:
            parts = iter(run.loader)
            losses = run.step([next(parts) for _ in range(config.train.accumulate)])
        finally:
            torch.nn.utils.clip_grad_norm_ = original
        return {**found, "losses": torch.tensor(list(losses.values()))}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    main_process = int(os.environ["RANK"]) == 0
    with join_world(torch.device("cpu")):
        for case, settings in CASES.items():
            for way, how in WAYS.items():
                found = first_gradients([*settings, *how], folder)
                if main_process:
                    torch.save(found, folder / f"{case}, {way}.pt")
        for strategy in ("ddp", "fsdp"):
            config = Config.load(None, [*TINY, f"train.strategy={strategy}", "train.ema=0.5"])
            train(config, folder / strategy, progress=False)
            interrupt_after_one_epoch(config, folder / f"{strategy} cut")
            if main_process:
                shutil.copytree(folder / f"{strategy} cut", folder / f"{strategy} to one")
            train(config, folder / f"{strategy} cut", resume=True, progress=False)


def interrupt_after_one_epoch(config: Config, folder: Path) -> None:
    run_epoch = Run.run_epoch

    def interrupted(self: Run, progress: bool) -> dict[str, float]:
        if self.history.epoch == 1:
            raise KeyboardInterrupt
        return run_epoch(self, progress)

    with mock.patch.object(Run, "run_epoch", interrupted), suppress(KeyboardInterrupt):
        train(config, folder, progress=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
