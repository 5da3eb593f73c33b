"""How the batches of an epoch are drawn from the training split."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Self

from amuse.config import TrainConfig
from amuse.data.batch import DialogueBatches
from amuse.data.conversation import Conversations
from amuse.data.own_blocks import OwnBlocks
from amuse.data.prepared import shard_block
from amuse.training.optimization import dialogue_weights
from amuse.world import World

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shuffling:
    """What the configuration leaves to the data, decided.

    Attributes:
        block: Neighbouring dialogues that are read together, see `DialogueBatches`; 0 shuffles exactly.
        own_blocks: Whether every process draws from blocks that no other reads, see `OwnBlocks`.
    """

    block: int
    own_blocks: bool

    @classmethod
    def of(cls, train: Conversations, config: TrainConfig, world: World) -> Self:
        """Without a setting, blocks are a shard's dialogues, and each process has its own, if shards are remote.

        Where the batch size or the number of blocks rules out blocks of their own, the processes share all blocks,
        which is logged. Balanced drawing, which needs all dialogues, stays exact and fetches a shard again when the
        cache does not hold it.

        Raises:
            ValueError: `own_blocks` without blocks.
        """
        remote = 0 if config.balance else shard_block(train)
        block = remote if config.shuffle_block is None else config.shuffle_block
        if config.own_blocks and not block:
            raise ValueError("train.own_blocks: expected train.shuffle_block above 0 with it, got 0")
        if config.own_blocks is not None or not (block and remote):
            return cls(block, bool(config.own_blocks))
        problem = OwnBlocks.obstacle(len(train), config.batch_size, block, world.size)
        if problem and world.is_main:
            logger.warning("every process fetches all shards, since they cannot have blocks of their own: %s", problem)
        return cls(block, problem is None)


def draw_batches(train: Conversations, config: TrainConfig, shuffling: Shuffling, world: World) -> DialogueBatches:
    """The sampler of batches of all processes together.

    Raises:
        ValueError: Settings that exclude each other, or blocks that cannot be divided among the processes.
    """
    kind: Callable[..., DialogueBatches]
    if shuffling.own_blocks and world.size > 1:
        kind = partial(OwnBlocks, processes=world.size)
    else:
        kind = partial(DialogueBatches, shuffle=True, weights=dialogue_weights(train, config))
    return kind(
        [len(dialogue) for dialogue in train.dialogues],
        config.batch_size,
        seed=config.seed,
        max_utterances=config.max_utterances,
        tokens=[sum(len(x) for u in dialogue.utterances for x in u.entries.values()) for dialogue in train.dialogues],
        max_tokens=config.max_tokens,
        block=shuffling.block,
    )
