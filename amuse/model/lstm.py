"""Bi-LSTMs over packed sequences.

The CPU's `nn.LSTM` differentiates every step by itself: small products for the weights' gradients, and a buffer of all
steps cleared for each. `_Direction` runs the same recurrence with a backward pass by hand, in which only what the
recurrence needs happens step by step, and the rest is one product over all tokens. It serves where gradients are asked
for.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import PackedSequence

aten = torch.ops.aten


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


class _Steps(NamedTuple):
    """The steps of a direction in the order in which it takes them.

    Attributes:
        sizes: Each step's number of tokens, whose sequences are in the same order at every step.
        reverse: Whether the last step comes first.
    """

    sizes: list[int]
    reverse: bool

    def rows(self, tokens: Tensor) -> Sequence[Tensor]:
        """Each step's rows of `(T, ...)`; all views at once, since one by one they take as long as the arithmetic."""
        rows = tokens.split(self.sizes)
        return rows[::-1] if self.reverse else rows

    def shared(self, rows: Sequence[Tensor]) -> Sequence[Tensor]:
        """The rows of each step after the first whose sequence has the step before."""
        # forward, sequences end one by one; backward, they begin one by one
        return _first(rows[1:], [len(last) for last in rows[:-1]]) if self.reverse else rows[1:]

    def before(self, rows: Sequence[Tensor]) -> Sequence[Tensor]:
        """The rows of the step before, for those of `shared`."""
        return rows[:-1] if self.reverse else _first(rows[:-1], [len(this) for this in rows[1:]])

    def shifted(self, states: Tensor) -> Tensor:
        """The state before each token in this direction, 0 for the first."""
        zeros = states.new_zeros(self.sizes[0], *states.shape[1:])
        rows = states.split(self.sizes)
        if not self.reverse:
            return torch.cat([zeros, *self.before(rows)])
        lost = [size - after for size, after in zip(self.sizes, [*self.sizes[1:], 0], strict=True)]
        return torch.cat(
            [part for after, n in zip([*rows[1:], zeros[:0]], lost, strict=True) for part in (after, zeros[:n])]
        )


def _first(rows: Sequence[Tensor], counts: list[int]) -> list[Tensor]:
    return [each if len(each) == count else each.narrow(0, 0, count) for each, count in zip(rows, counts, strict=True)]


class _Direction(torch.autograd.Function):
    """One direction of a layer. Gates are input, forget, cell and output, as in `nn.LSTM`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, sizes: list[int], reverse: bool, w_x: Tensor, w_h: Tensor, b_x: Tensor, b_h: Tensor
    ) -> Tensor:
        size = w_h.shape[1]
        gates = torch.addmm(b_x + b_h, x, w_x.T)  # (T, 4 * hidden)
        hidden, cells, tanh = (gates.new_empty(len(x), size) for _ in range(3))  # tanh: of the cells
        steps, recurrent = _Steps(sizes, reverse), w_h.T
        sums, i_and_f, h, c, tanh_c = map(steps.rows, (gates, gates[:, : 2 * size], hidden, cells, tanh))
        i, f, g, o = map(steps.rows, gates.split(size, dim=1))
        shared_sums, shared_c, shared_f = map(steps.shared, (sums, c, f))
        last_h, last_c = steps.before(h), steps.before(c)
        for step, cell in enumerate(c):
            if step:
                shared_sums[step - 1].addmm_(last_h[step - 1], recurrent)
            i_and_f[step].sigmoid_()
            torch.mul(i[step], g[step].tanh_(), out=cell)
            if step:
                shared_c[step - 1].addcmul_(shared_f[step - 1], last_c[step - 1])
            torch.mul(o[step].sigmoid_(), torch.tanh(cell, out=tanh_c[step]), out=h[step])
        ctx.steps = steps
        ctx.save_for_backward(x, gates, hidden, cells, tanh, w_x, w_h)
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, gates, hidden, cells, tanh, w_x, w_h = ctx.saved_tensors
        size = w_h.shape[1]
        steps = ctx.steps
        last_hidden, last_cells = map(steps.shifted, (hidden, cells))
        # slopes of cell and hidden state by the inputs of the gates, of all tokens at once; gradients take their place
        i, f, g, o = gates.split(size, dim=1)
        by_cell = aten.tanh_backward(o, tanh)
        grad_gates = torch.empty_like(gates)
        slopes = grad_gates.split(size, dim=1)
        aten.sigmoid_backward.grad_input(g, i, grad_input=slopes[0])
        aten.sigmoid_backward.grad_input(last_cells, f, grad_input=slopes[1])
        aten.tanh_backward.grad_input(i, g, grad_input=slopes[2])
        aten.sigmoid_backward.grad_input(tanh, o, grad_input=slopes[3])
        grad_hidden, grad_cells = grad.clone(), torch.zeros_like(cells)

        grad_h, grad_c, by_c = map(steps.rows, (grad_hidden, grad_cells, by_cell))
        # input, forget and cell gates together, (n, 3, hidden), since all act through the cell
        grad_ifg, grad_o = steps.rows(grad_gates[:, : 3 * size].unflatten(1, (3, size))), steps.rows(slopes[3])
        shared_gates, shared_c, shared_f = (steps.shared(steps.rows(tensor)) for tensor in (grad_gates, grad_cells, f))
        last_h, last_c = steps.before(grad_h), steps.before(grad_c)
        for step in reversed(range(len(grad_h))):
            hidden_grad, cell_grad = grad_h[step], grad_c[step]
            cell_grad.addcmul_(hidden_grad, by_c[step])
            grad_ifg[step].mul_(cell_grad[:, None])
            grad_o[step].mul_(hidden_grad)
            if step:
                last_h[step - 1].addmm_(shared_gates[step - 1], w_h)
                last_c[step - 1].addcmul_(shared_c[step - 1], shared_f[step - 1])
        grad_x = grad_gates @ w_x if ctx.needs_input_grad[0] else None
        bias = grad_gates.sum(0)
        return grad_x, None, None, grad_gates.T @ x, grad_gates.T @ last_hidden, bias, bias
