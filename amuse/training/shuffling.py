"""How the batches of an epoch are drawn from the training split."""

from dataclasses import dataclass
from typing import Self

from amuse.config import TrainConfig
from amuse.data.batch import DialogueBatches
from amuse.data.conversation import Conversations
from amuse.data.own_blocks import OwnBlocks
from amuse.data.prepared import shard_block
from amuse.training.optimization import dialogue_weights
from amuse.world import World


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
    def of(cls, train: Conversations, config: TrainConfig) -> Self:
        """Without a setting, blocks are a shard's dialogues, and each process has its own, if shards are remote.

        Balanced drawing, which needs all dialogues, stays exact and fetches a shard again when the cache does not hold
        it.

        Raises:
            ValueError: `own_blocks` without blocks.
        """
        remote = 0 if config.balance else shard_block(train)
        block = remote if config.shuffle_block is None else config.shuffle_block
        if config.own_blocks and not block:
            raise ValueError("train.own_blocks: expected train.shuffle_block above 0 with it, got 0")
        return cls(block, bool(block and remote) if config.own_blocks is None else config.own_blocks)


def draw_batches(train: Conversations, config: TrainConfig, shuffling: Shuffling, world: World) -> DialogueBatches:
    """The sampler of batches of all processes together."""
    lengths = [len(dialogue) for dialogue in train.dialogues]
    tokens = [sum(len(x) for u in dialogue.utterances for x in u.entries.values()) for dialogue in train.dialogues]
    if shuffling.own_blocks and world.size > 1:
        return OwnBlocks(
            lengths,
            config.batch_size,
            block=shuffling.block,
            processes=world.size,
            seed=config.seed,
            max_utterances=config.max_utterances,
            tokens=tokens,
            max_tokens=config.max_tokens,
        )
    return DialogueBatches(
        lengths,
        config.batch_size,
        shuffle=True,
        seed=config.seed,
        max_utterances=config.max_utterances,
        tokens=tokens,
        max_tokens=config.max_tokens,
        weights=dialogue_weights(train, config),
        block=shuffling.block,
    )
