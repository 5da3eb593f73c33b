"""Batches to which every process contributes dialogues from blocks of its own, so that processes share few files."""

from collections.abc import Sequence
from itertools import chain, pairwise, zip_longest

from amuse.data.batch import POOL, WINDOW, DialogueBatches, permuted


class OwnBlocks(DialogueBatches):
    """Batches with an equal number of dialogues from each of several processes, each with blocks of its own.

    An epoch puts its blocks in a random order and cuts their dialogues into one equal part per process: a block that a
    cut divides is read by the processes on both sides, every other one by a single process. Each draws its dialogues
    from a window of its part, so that all windows together are as large as that of one process; sorted by length within
    a pool, so that the shares of a batch have about the same length.

    Without a bound on utterances or tokens, all batches but the last are full, as many as an exact shuffling has. With
    one, a process whose dialogues fit into fewer batches of a pool than those of another has empty shares there.

    Every dialogue is in one batch of the epoch. Which ones are in a batch depends on the number of processes.

    Args:
        lengths, seed, tokens: As for `DialogueBatches`.
        batch_size, max_utterances, max_tokens: Of all processes together.
        block: Above 0, see `DialogueBatches`.
        processes: How many.

    Attributes:
        batch_size, budgets: As in `DialogueBatches`, but of the share of one process in a batch.

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
        if problem := self.obstacle(len(lengths), batch_size, block, processes):
            raise ValueError(f"{problem}; or set train.own_blocks=false")
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

    @staticmethod
    def obstacle(dialogues: int, batch_size: int, block: int, processes: int) -> str | None:
        """Why so many dialogues cannot be drawn in this way; None if they can."""
        if batch_size % processes:
            return (
                f"train.batch_size: expected a multiple of the {processes} processes, which read blocks of their own, "
                f"got {batch_size}"
            )
        count = -(-dialogues // block)
        if count < processes:
            return (
                f"train.shuffle_block: expected a block for each of {processes} processes, got {count} blocks of "
                f"{block} dialogues"
            )
        return None

    def shares(self, rank: int, size: int) -> list[list[int]]:
        if size != self.processes:
            raise ValueError(f"size: expected {self.processes} processes, got {size}")
        return [step[rank] for step in self._steps()]

    def _batches(self) -> list[list[int]]:
        return [list(chain(*step)) for step in self._steps()]

    def _steps(self) -> list[tuple[list[int], ...]]:
        """For every step the dialogues of each process."""
        generator = self._generator()
        order = list(chain(*permuted(self._blocks(), generator)))
        cuts = [len(order) * rank // self.processes for rank in range(self.processes + 1)]
        owned = [order[begin:end] for begin, end in pairwise(cuts)]
        # whole batches, so that only the last one of the epoch is smaller
        window = max(max(WINDOW // self.processes, 1) * self.block // self.batch_size, 1) * self.batch_size
        pool = self.batch_size * POOL
        steps = []
        for begin in range(0, max(map(len, owned)), window):
            drawn = [permuted(own[begin : begin + window], generator) for own in owned]
            for first in range(0, max(map(len, drawn)), pool):
                pools = [sorted(part[first : first + pool], key=lambda i: self.lengths[i]) for part in drawn]
                batches = [self._cut(each) for each in pools]
                steps += permuted(list(zip_longest(*batches, fillvalue=[])), generator)
        return steps
