"""Each process's share of every batch, cut into micro-batches."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import Sampler

from amuse.data.batch import Batch, ConversationLoader, DialogueBatches, collate
from amuse.data.conversation import Conversations
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
        # a batch is sorted by length, so strides of it have about the same number of utterances
        step = self.world.size * self.accumulate
        for batch in list(self.batches)[self.start :]:
            for part in range(self.accumulate):
                yield batch[self.world.rank + self.world.size * part :: step]


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
    ghost = collate(conversations.dialogues[:1], conversations.modalities, conversations.regression)
    none = torch.zeros(len(ghost), dtype=torch.int64)
    ghost = ghost.with_tokens({name: x[:0] for name, x in ghost.tokens.items()}, dict.fromkeys(ghost.tokens, none))
    ghost.labels = None
    return ghost
