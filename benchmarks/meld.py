"""Batches of MELD's real lengths: how many utterances a dialogue has, how many words and seconds an utterance has.

`meld_lengths.csv` holds these numbers, and nothing else, of 64 dialogues drawn at random from MELD's training split
(declare-lab/MELD, `train_sent_emo.csv`: words counted between spaces, seconds from StartTime to EndTime). What is said,
who speaks and the labels are drawn at random here.
"""

import csv
import itertools
from pathlib import Path

import torch
from torch import Tensor, nn

from amuse.config import Config, LossConfig, ModelConfig
from amuse.data.batch import Batch, DialogueBatches
from amuse.data.spec import DataSpec
from amuse.training.losses import amuse_loss

LENGTHS = Path(__file__).parent / "meld_lengths.csv"
WIDTHS = {"text": 384, "audio": 64, "video": 128}
CLASSES = 7
# the defaults of `amuse data prepare`; two of the text's tokens mark its beginning and its end
AUDIO_RATE, FRAMES, MARKS = 5.0, 4, 2


def config() -> Config:
    """The whole network of the paper with heads concatenated, as `nn.MultiheadAttention` has them."""
    return Config(model=ModelConfig(d_model=256, num_heads=4, head_merge="concat"), loss=LossConfig())


def spec() -> DataSpec:
    return DataSpec(WIDTHS, [str(c) for c in range(CLASSES)])


def dialogues() -> list[list[dict[str, int]]]:
    """Tokens of each modality of each utterance of each dialogue."""
    with LENGTHS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        [
            {
                "text": int(row["words"]) + MARKS,
                "audio": max(round(AUDIO_RATE * float(row["seconds"])), 1),
                "video": FRAMES,
            }
            for row in group
        ]
        for _, group in itertools.groupby(rows, key=lambda row: row["dialogue"])
    ]


def batches(size: int = 16) -> list[Batch]:
    """An epoch's batches of `size` dialogues, drawn as in training."""
    every = dialogues()
    chosen = DialogueBatches([len(dialogue) for dialogue in every], size, shuffle=True, seed=0)
    return [_batch([every[i] for i in indices]) for indices in chosen]


def _batch(chosen: list[list[dict[str, int]]]) -> Batch:
    utterances = [utterance for dialogue in chosen for utterance in dialogue]
    lengths = {m: torch.tensor([utterance[m] for utterance in utterances]) for m in WIDTHS}
    return Batch.of(
        {m: torch.randn(int(lengths[m].sum()), width) for m, width in WIDTHS.items()},
        lengths,
        [len(dialogue) for dialogue in chosen],
        speaker=torch.randint(0, 3, (len(utterances),)),
        labels=torch.randint(0, CLASSES, (len(utterances),)),
    )


def training_step(model: nn.Module, batch: Batch, config: Config, optimizer: torch.optim.Optimizer) -> Tensor:
    """Forward, losses, backward, clipping and update, as in training; the loss."""
    loss = amuse_loss(model(batch), batch.labels, config.loss)["loss"]
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.train.grad_clip)
    optimizer.step()
    return loss.detach()
