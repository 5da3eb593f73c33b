"""Ops of a training step that would launch a kernel on a GPU, and those for whose result the host would wait.

    python -m benchmarks.launches

Counted on a CPU while the step runs, as a GPU would run it: views and allocations launch nothing; an LSTM is one op
forward and one backward, as cuDNN has it; dropout is one op; offsets are looked into on CPU tensors only, which is left
out. An op may launch more than one kernel on a GPU; optimisers and norms of all gradients are one op each.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

from amuse.model.amuse import Amuse
from benchmarks import meld
from benchmarks.meld import training_step

NOTHING_TO_LAUNCH = {
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "detach",
    "alias",
    "lift_fresh",
    "_record_function_enter_new",
    "_record_function_exit",
}
VIEWS = {"_unsafe_view", "_reshape_alias", "unsafe_split", "unsafe_chunk", "split_with_sizes", "unbind", "split"}
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique_consecutive", "_unique2", "equal", "bincount"}
LOOKING_INTO_CPU_TENSORS = ("attention.varlen", "attention.inputs", "nn.sources")


class Launches(TorchDispatchMode):
    """Counts while it is active and not `paused`."""

    def __init__(self) -> None:
        super().__init__()
        self.launching: Counter[str] = Counter()
        self.waiting: Counter[str] = Counter()
        self.paused = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().split("::")[1].split(".")[0]
        by_mask = name in ("index", "index_put_", "index_put") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if self.paused:
            pass
        elif by_mask or name in WAITING:
            self.waiting[f"{name} by mask" if by_mask else name] += 1
        elif not function.is_view and name not in NOTHING_TO_LAUNCH | VIEWS:
            self.launching[name] += 1
        return function(*args, **(kwargs or {}))


def count(step: Callable[[], Any]) -> Launches:
    """The ops of one call of `step`, counted as on a GPU."""
    counter = Launches()
    with ExitStack() as stack:
        for module in LOOKING_INTO_CPU_TENSORS:
            stack.enter_context(mock.patch(f"amuse_kernels.{module}.can_read", return_value=False))
        for choice in ("dropout.cheaper_here", "lstm.by_hand_here"):
            stack.enter_context(mock.patch(f"amuse.model.{choice}", return_value=False))
        stack.enter_context(mock.patch("torch.nn.functional.dropout", lambda x, p: torch.native_dropout(x, p, True)[0]))
        plain = nn.LSTM.forward

        def forward(lstm: nn.LSTM, packed: PackedSequence) -> tuple[PackedSequence, None]:
            weights = list(lstm.parameters())
            out = _OneOp.apply(counter, lambda x: plain(lstm, packed._replace(data=x))[0].data, packed.data, *weights)
            return packed._replace(data=out), None

        stack.enter_context(mock.patch.object(nn.LSTM, "forward", forward))
        stack.enter_context(counter)
        step()
    return counter


class _OneOp(torch.autograd.Function):
    """A function of a tensor and weights that counts as one op, and so does its backward pass."""

    @staticmethod
    def forward(ctx: Any, counter: Launches, function: Callable[[Tensor], Tensor], x: Tensor, *weights: Tensor) -> Any:
        counter.launching["lstm"] += 1
        counter.paused = True
        with torch.enable_grad():
            ctx.inputs = [x.detach().requires_grad_(), *weights]
            ctx.out = function(ctx.inputs[0])
        counter.paused = False
        ctx.counter = counter
        return ctx.out.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        ctx.counter.launching["lstm_backward"] += 1
        ctx.counter.paused = True
        found = torch.autograd.grad(ctx.out, ctx.inputs, grad)
        ctx.counter.paused = False
        return None, None, *found


def main() -> None:
    config, batch = meld.config(), meld.batches()[0]
    model = Amuse(config.model, meld.spec()).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    training_step(model, (batch,), batch, config, optimizer)  # the optimiser makes its state
    counter = count(lambda: training_step(model, (batch,), batch, config, optimizer))
    print(f"launching {counter.launching.total()}: {dict(counter.launching.most_common())}")
    print(f"waiting {counter.waiting.total()}: {dict(counter.waiting)}")


if __name__ == "__main__":
    main()
