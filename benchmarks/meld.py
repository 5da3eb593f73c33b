"""Batches of MELD's real lengths: how many utterances a dialogue has, how many words and seconds an utterance has.

`meld_lengths.csv` holds these numbers, and nothing else, of 64 dialogues drawn at random from MELD's training split
(declare-lab/MELD, `train_sent_emo.csv`: words counted between spaces, seconds from StartTime to EndTime). What is said,
who speaks and the labels are drawn at random here.
"""

import csv
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from amuse.config import Config, LossConfig, ModelConfig
from amuse.data.batch import Batch, DialogueBatches
from amuse.data.spec import DataSpec
from amuse.model.amuse import Amuse
from amuse.training.losses import amuse_loss
from benchmarks.stock import StockAmuse, StockInputs

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


def half_to_full(tokens: dict[str, int], utterances: int = 10, count: int = 16) -> Batch:
    """`count` dialogues, each utterance with half to all of `tokens` of each modality."""
    return _batch(
        [
            [{m: int(torch.randint((n + 1) // 2, n + 1, ())) for m, n in tokens.items()} for _ in range(utterances)]
            for _ in range(count)
        ]
    )


def passes(chosen: list[Batch], compiled: bool = False) -> dict[str, Callable[[], Tensor]]:
    """A training step on each batch, by each contender from the same weights; gives the first step's loss.

    "ours", "reference" (the same on the reference ops) and "stock PyTorch", which `compiled` adds a second time under
    torch.compile.
    """
    settings = config()

    def contender(make: Callable[[Amuse], nn.Module], arguments: Callable[[Batch], Any], backend: str = "cpu") -> Any:
        torch.manual_seed(0)
        model = make(Amuse(replace(settings.model, backend=backend), spec()).train())
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        given = [(arguments(batch), batch) for batch in chosen]

        def run() -> Tensor:
            losses = [training_step(model, inputs, batch, settings, optimizer) for inputs, batch in given]
            return losses[0]

        return run

    def stock(model: Amuse) -> nn.Module:
        return StockAmuse(model).train()

    def compiled_stock(model: Amuse) -> nn.Module:
        return cast(nn.Module, torch.compile(stock(model)))

    runs = {
        "ours": contender(lambda model: model, lambda batch: (batch,)),
        "reference": contender(lambda model: model, lambda batch: (batch,), "reference"),
        "stock PyTorch": contender(stock, StockInputs.of),
    }
    return runs | ({"stock PyTorch, compiled": contender(compiled_stock, StockInputs.of)} if compiled else {})


def check(chosen: list[Batch], tolerance: float = 1e-4) -> None:
    """Without dropout, the stock model has our loss and our gradients of all features.

    Raises:
        AssertionError: it has not; its times would mean nothing.
    """
    torch.manual_seed(0)
    settings = config()
    model = Amuse(replace(settings.model, dropout=0.0), spec()).train()
    for batch in chosen:
        features = [x.requires_grad_() for x in batch.tokens.values()]
        found = []
        for run in (lambda batch=batch: model(batch), lambda batch=batch: StockAmuse(model)(*StockInputs.of(batch))):
            loss = amuse_loss(run(), batch.labels, settings.loss)["loss"]
            found.append([loss.detach(), *torch.autograd.grad(loss, features)])
        for ours, stock in zip(*found, strict=True):
            error = float((ours - stock).abs().max() / stock.abs().max())
            if not error <= tolerance:
                raise AssertionError(f"the stock model is off by {error:.2g} of the largest value")
        for x in features:
            x.requires_grad_(False)


def training_step(
    model: nn.Module, inputs: Sequence[Any], batch: Batch, settings: Config, optimizer: torch.optim.Optimizer
) -> Tensor:
    """Forward, losses, backward, clipping and update, as in training; the loss."""
    loss = amuse_loss(model(*inputs), batch.labels, settings.loss)["loss"]
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), settings.train.grad_clip)
    optimizer.step()
    return loss.detach()
