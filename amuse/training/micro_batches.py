"""Each process's share of every batch, cut into micro-batches."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch.utils.data import Sampler

from amuse.data.batch import Batch, ConversationLoader, DialogueBatches, collate
from amuse.data.conversation import Conversations, Dialogue
from amuse.world import World


class MicroBatchSampler(Sampler[list[int]]):
    """This process's share of every batch as `accumulate` micro-batches, which are empty where dialogues run out."""

    def __init__(self, batches: DialogueBatches, accumulate: int, world: World) -> None:
        self.batches, self.accumulate, self.world = batches, accumulate, world
        self.start = 0  # batches to skip, which the epoch trained on before an interruption

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        for share in self.batches.shares(self.world.rank, self.world.size)[self.start :]:
            for part in range(self.accumulate):
                yield share[part :: self.accumulate]


def read_ahead(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """The batches, of which a thread makes up to `count` while those before them are trained on."""
    end = object()
    iterator = iter(batches)
    with ThreadPoolExecutor(1, "read ahead") as thread:
        waiting = deque(thread.submit(next, iterator, end) for _ in range(count))
        while (batch := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, iterator, end))
            yield cast(Batch, batch)


def micro_batch_loader(
    conversations: Conversations, sampler: MicroBatchSampler, workers: int = 0
) -> ConversationLoader:
    """A loader of micro-batches; an empty one becomes a batch without tokens and labels, with no effect.

    The batches do not depend on `workers`, the number of processes that make them ahead of the step.
    """
    return ConversationLoader(
        conversations,
        batch_sampler=sampler,
        collate_fn=partial(_collate_micro_batch, conversations=conversations),
        num_workers=workers,
        pin_memory=sampler.world.device.type == "cuda",
        generator=torch.Generator(),  # not the global one, from which training draws
    )


def _collate_micro_batch(dialogues: Sequence[Any], conversations: Conversations) -> Batch:
    if dialogues:
        return collate(dialogues, conversations.modalities, conversations.regression)
    some = conversations.dialogues[0]
    ghost = Dialogue(some.id, [replace(utterance, features={}, label=None) for utterance in some.utterances])
    return collate([ghost], conversations.modalities, conversations.regression)
