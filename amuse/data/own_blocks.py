"""Batches to which every process contributes dialogues from files that no other process reads."""

from collections.abc import Sequence
from itertools import chain, zip_longest

from amuse.data.batch import POOL, WINDOW, DialogueBatches, permuted


class OwnBlocks(DialogueBatches):
    """Batches with an equal number of dialogues from each of several processes, each with blocks of its own.

    An epoch deals its blocks, in a random order, to the processes in turn. Each draws its dialogues from a window of
    its blocks, so that all windows together are as large as that of one process; sorted by length within a pool, so
    that the shares of a batch have about the same length. Where a process runs out of dialogues, its shares are empty.

    Every dialogue is in one batch of the epoch. Which ones are in a batch depends on the number of processes.

    Args:
        lengths, seed, tokens: As for `DialogueBatches`.
        batch_size, max_utterances, max_tokens: Of all processes together.
        block: Above 0, see `DialogueBatches`.
        processes: How many.

    Raises:
        ValueError: A batch size that is not a multiple of the processes, or fewer blocks than processes.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        block: int,
        processes: int,
        seed: int = 0,
        max_utterances: int | None = None,
        tokens: Sequence[int] | None = None,
        max_tokens: int | None = None,
    ) -> None:
        if batch_size % processes:
            raise ValueError(
                f"train.batch_size: expected a multiple of the {processes} processes, which read blocks of their own, "
                f"got {batch_size}; or set train.own_blocks=false"
            )
        count = -(-len(lengths) // block)
        if count < processes:
            raise ValueError(
                f"train.shuffle_block: expected a block for each of {processes} processes, got {count} blocks of "
                f"{block} dialogues; set a smaller one, or train.own_blocks=false"
            )
        super().__init__(
            lengths,
            batch_size // processes,
            shuffle=True,
            seed=seed,
            max_utterances=None if max_utterances is None else max(max_utterances // processes, 1),
            tokens=tokens,
            max_tokens=None if max_tokens is None else max(max_tokens // processes, 1),
            block=block,
        )
        self.processes = processes

    def shares(self, rank: int, size: int) -> list[list[int]]:
        if size != self.processes:
            raise ValueError(f"size: expected {self.processes} processes, got {size}")
        return [step[rank] for step in self._steps()]

    def _batches(self) -> list[list[int]]:
        return [list(chain(*step)) for step in self._steps()]

    def _steps(self) -> list[tuple[list[int], ...]]:
        """For every step the dialogues of each process."""
        generator = self._generator()
        blocks = permuted(self._blocks(), generator)
        owned = [blocks[rank :: self.processes] for rank in range(self.processes)]
        width = max(WINDOW // self.processes, 1)
        size = self.batch_size * POOL
        steps = []
        for begin in range(0, len(owned[0]), width):
            orders = [permuted(list(chain(*own[begin : begin + width])), generator) for own in owned]
            for first in range(0, max(map(len, orders)), size):
                pools = [sorted(order[first : first + size], key=lambda i: self.lengths[i]) for order in orders]
                batches = [self._cut(pool) for pool in pools]
                steps += permuted(list(zip_longest(*batches, fillvalue=[])), generator)
        return steps
