"""Operations of the model on packed tokens that are not token-wise."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amuse.layout import Layout, Steps
from amuse.model.lstm import bi_lstm
from amuse.model.precision import at_least_fp32
from amuse_kernels.nn import Packed


def pack(tokens: Tensor, layout: Layout) -> Packed:
    """`(T, d)` tokens with their layout, as the attention layers need it."""
    return Packed(tokens, layout.cu_seq, layout.max_len)


def average(tokens: Tensor, layout: Layout) -> Tensor:
    """Average of the `(T, d)` tokens of each sequence, `(U, d)`; 0 for an empty one.

    Summed segment by segment in fp32 or higher, without atomics, so that every run gives the same bits.
    """
    offsets, values = layout.cu_seq, at_least_fp32(tokens)
    means: Any = torch.segment_reduce(values, "mean", offsets=offsets, axis=0, unsafe=True, initial=0)
    return cast(Tensor, means.to(tokens.dtype))


class BiLSTM(nn.Module):
    """A bidirectional LSTM over packed sequences."""

    def __init__(self, width: int, d_model: int, num_layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        between = dropout if num_layers > 1 else 0.0
        self.lstm = nn.LSTM(width, d_model // 2, num_layers, batch_first=True, bidirectional=True, dropout=between)

    def forward(self, x: Tensor, steps: Steps) -> Tensor:
        """From `(T, width)` tokens of the sequences in `steps` to `(T, d_model)`."""
        if not len(x):  # the weights still need a gradient of 0, for which other processes may wait
            return self.lstm(F.pad(x, (0, 0, 0, 1))[None])[0][0, :0]
        if len(steps.batch_sizes) == len(x):  # a single sequence, which is in order
            return bi_lstm(self.lstm, x, steps.batch_sizes)
        out = bi_lstm(self.lstm, reorder(x, steps.order, steps.inverse), steps.batch_sizes)
        return reorder(out, steps.inverse, steps.order)


def reorder(rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """`rows[order]` for a permutation, whose inverse makes the backward pass a gather: fast and deterministic."""
    return cast(Tensor, _Reorder.apply(rows, order, inverse))


class _Reorder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None
