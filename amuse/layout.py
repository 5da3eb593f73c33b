"""The layout of sequences among packed tokens: all that follows from their lengths, computed once on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Steps(NamedTuple):
    """The order in which an LSTM reads packed sequences: every first token, the longest sequence's first, then every
    second one, and so on, as in `torch.nn.utils.rnn.PackedSequence`.

    Attributes:
        order: int64 `(T,)`, the token at each place.
        inverse: int64 `(T,)`, the place of each token.
        batch_sizes: int64 on the host, the number of sequences with a first token, a second one, and so on.
    """

    order: Tensor
    inverse: Tensor
    batch_sizes: Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """U sequences of packed tokens, one after the other without padding; T tokens in all.

    Attributes:
        lengths: int64 `(U,)` on the host; 0 is a sequence without a token.
        cu_seq: int32 `(U + 1,)`, cumulative lengths, as `amuse_kernels.p2c_attention_varlen` reads them.
        row: int64 `(T,)`, the sequence of each token, non-decreasing.
        position: int64 `(T,)`, the place of each token in its sequence.
        present: bool `(U,)`, which sequences have a token.
        steps: The tokens in the order of an LSTM.
    """

    lengths: Tensor
    cu_seq: Tensor
    row: Tensor
    position: Tensor
    present: Tensor
    steps: Steps

    @classmethod
    def of(cls, lengths: Tensor | Sequence[int]) -> Layout:
        """The layout of sequences of these lengths, on the host."""
        lengths = torch.as_tensor(lengths, dtype=torch.int64)
        if len(lengths) == 1:
            return cls._of_one(lengths)
        cu_seq = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        row = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        position = torch.arange(len(row)) - cu_seq[row]
        return cls(lengths, cu_seq.int(), row, position, lengths > 0, _steps(lengths, row, position))

    @classmethod
    def _of_one(cls, lengths: Tensor) -> Layout:
        """`of` a single sequence, which an LSTM reads as it is; in a conversation all come alone."""
        count = int(lengths)
        position = torch.arange(count)
        steps = Steps(position, position, torch.ones_like(position))
        offsets = torch.tensor([0, count], dtype=torch.int32)
        return cls(lengths, offsets, torch.zeros_like(position), position, lengths > 0, steps)

    @property
    def max_len(self) -> int:
        """The longest sequence, 0 without a token."""
        return self.steps.batch_sizes.shape[0]

    @property
    def num_tokens(self) -> int:
        return self.row.shape[0]

    def map(self, convert: Callable[[Tensor], Tensor]) -> Layout:
        """This layout with every tensor converted, except for those needed on the host."""
        return replace(
            self,
            cu_seq=convert(self.cu_seq),
            row=convert(self.row),
            position=convert(self.position),
            present=convert(self.present),
            steps=map_steps(self.steps, convert),
        )


class Merge(NamedTuple):
    """The tokens of several streams as one: of every sequence its tokens of the first stream, then of the second.

    Attributes:
        order: int64 `(T,)`, the token of the concatenated streams at each place.
        inverse: int64 `(T,)`, the place of each token.
        layout: The layout of the result.
    """

    order: Tensor
    inverse: Tensor
    layout: Layout

    @classmethod
    def of(cls, layouts: Sequence[Layout]) -> Merge:
        """The merge of streams of the same sequences, on the host."""
        lengths = torch.stack([layout.lengths for layout in layouts])  # (S, U)
        layout = Layout.of(lengths.sum(0))
        starts = layout.cu_seq[:-1] + lengths.cumsum(0) - lengths
        inverse = torch.cat(
            [start[Layout.of(own).row] + Layout.of(own).position for start, own in zip(starts, lengths, strict=True)]
        )
        return cls(torch.argsort(inverse), inverse, layout)

    def map(self, convert: Callable[[Tensor], Tensor]) -> Merge:
        return Merge(convert(self.order), convert(self.inverse), self.layout.map(convert))


def map_steps(steps: Steps, convert: Callable[[Tensor], Tensor]) -> Steps:
    """The steps with every tensor converted, except for those needed on the host."""
    return Steps(convert(steps.order), convert(steps.inverse), steps.batch_sizes)


def grouped_steps(group: Tensor) -> Steps:
    """Rows of the same group, int64 `(U,)`, as sequences, in their order: the steps of an LSTM over each group."""
    rows = torch.argsort(group, stable=True)
    _, lengths = torch.unique_consecutive(group[rows], return_counts=True)
    steps = Layout.of(lengths).steps
    order = rows[steps.order]
    return Steps(order, torch.argsort(order), steps.batch_sizes)


def _steps(lengths: Tensor, row: Tensor, position: Tensor) -> Steps:
    longest = int(lengths.max()) if len(lengths) else 0
    batch_sizes = torch.bincount(position, minlength=longest)
    starts = batch_sizes.cumsum(0) - batch_sizes
    rank = torch.argsort(torch.argsort(lengths, descending=True, stable=True))
    inverse = starts[position] + rank[row]
    return Steps(torch.argsort(inverse), inverse, batch_sizes)
