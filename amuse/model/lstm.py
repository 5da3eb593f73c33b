"""Bi-LSTMs over packed sequences.

The CPU's `nn.LSTM` differentiates every step by itself: small products for the weights' gradients, and a buffer of all
steps cleared for each. `_Direction` runs the same recurrence with a backward pass by hand, in which only what the
recurrence needs happens step by step, and the rest is one product over all tokens. It serves where gradients are asked
for.
"""

from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import PackedSequence


class Run(NamedTuple):
    """A step of a direction and the step before it in this direction; both have their sequences in the same order.

    Attributes:
        rows: The step's tokens. shared: Those of them whose sequence has the step before.
        before: The tokens of that step.
    """

    rows: slice
    shared: slice
    before: slice


def bi_lstm(lstm: nn.LSTM, x: Tensor, batch_sizes: Tensor) -> Tensor:
    """`lstm` over tokens `(T, width)` in the order of a `PackedSequence`, to `(T, 2 * hidden)`."""
    sizes = batch_sizes.tolist()
    if not by_hand_here(x) or sizes[0] == sizes[-1]:  # equal lengths are not packed at all, which oneDNN is fast at
        return cast(Tensor, lstm(PackedSequence(x, batch_sizes))[0].data)
    for layer in range(lstm.num_layers):
        if layer and lstm.training:
            x = F.dropout(x, lstm.dropout)
        directions = [
            _Direction.apply(x, sizes, bool(suffix), *(getattr(lstm, f"{name}_l{layer}{suffix}") for name in _WEIGHTS))
            for suffix in ("", "_reverse")
        ]
        x = torch.cat(directions, dim=-1)
    return x


def by_hand_here(x: Tensor) -> bool:
    """Whether `_Direction` is the faster one: on the CPU, for gradients, in full precision."""
    plain = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or x.device.type != "cpu"
    return not plain and torch.is_grad_enabled() and x.dtype in (torch.float32, torch.float64)


_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class _Direction(torch.autograd.Function):
    """One direction of a layer. Gates are input, forget, cell and output, as in `nn.LSTM`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, sizes: list[int], reverse: bool, w_x: Tensor, w_h: Tensor, b_x: Tensor, b_h: Tensor
    ) -> Tensor:
        size = w_h.shape[1]
        gates = torch.addmm(b_x + b_h, x, w_x.T)  # (T, 4 * hidden)
        hidden, cells = gates.new_empty(len(x), size), gates.new_empty(len(x), size)
        for rows, shared, before in (runs := _runs(sizes, reverse)):
            gates[shared].addmm_(hidden[before], w_h.T)
            gate, cell = gates[rows], cells[rows]
            gate[:, : 2 * size].sigmoid_()
            gate[:, 2 * size : 3 * size].tanh_()
            gate[:, 3 * size :].sigmoid_()
            torch.mul(gate[:, :size], gate[:, 2 * size : 3 * size], out=cell)
            cells[shared].addcmul_(gates[shared, size : 2 * size], cells[before])
            torch.mul(gate[:, 3 * size :], cell.tanh(), out=hidden[rows])
        ctx.runs = runs
        ctx.save_for_backward(x, gates, hidden, cells, w_x, w_h)
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, gates, hidden, cells, w_x, w_h = ctx.saved_tensors
        size = w_h.shape[1]
        last_hidden, last_cells = torch.zeros_like(hidden), torch.zeros_like(cells)
        for _, shared, before in ctx.runs:
            last_hidden[shared] = hidden[before]
            last_cells[shared] = cells[before]
        # slopes of cell and hidden state by the inputs of the gates, of all tokens at once
        i, f, g, o = gates.split(size, dim=1)
        tanh = cells.tanh()
        slopes = torch.cat([g * i * (1 - i), last_cells * f * (1 - f), i * (1 - g * g), tanh * o * (1 - o)], dim=1)
        by_cell = o * (1 - tanh * tanh)
        grad_gates, grad_hidden, grad_cells = torch.empty_like(gates), grad.clone(), torch.zeros_like(cells)
        for rows, shared, before in reversed(ctx.runs):
            grad_h, grad_c, grad_gate, slope = grad_hidden[rows], grad_cells[rows], grad_gates[rows], slopes[rows]
            grad_c.addcmul_(grad_h, by_cell[rows])
            for gate in range(3):
                part = slice(gate * size, (gate + 1) * size)
                torch.mul(grad_c, slope[:, part], out=grad_gate[:, part])
            torch.mul(grad_h, slope[:, 3 * size :], out=grad_gate[:, 3 * size :])
            grad_hidden[before].addmm_(grad_gates[shared], w_h)
            grad_cells[before].addcmul_(grad_cells[shared], f[shared])
        bias = grad_gates.sum(0)
        grads = grad_gates @ w_x if ctx.needs_input_grad[0] else None, None, None
        return *grads, grad_gates.T @ x, grad_gates.T @ last_hidden, bias, bias


def _runs(sizes: list[int], reverse: bool) -> list[Run]:
    """The steps in the order in which a direction takes them."""
    starts = [0, *accumulate(sizes)]
    steps = list(enumerate(sizes))
    runs, last = [], 0
    last_start = 0
    for step, size in reversed(steps) if reverse else steps:
        start, shared = starts[step], min(size, last)
        runs.append(
            Run(slice(start, start + size), slice(start, start + shared), slice(last_start, last_start + shared))
        )
        last, last_start = size, start
    return runs
