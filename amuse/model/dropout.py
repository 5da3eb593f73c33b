"""Dropout with cheap random numbers on the CPU.

`nn.Dropout` draws a Bernoulli number for every element from the Mersenne Twister, which takes longer there than the
layer norm, the activation and the residual of a layer together. Here one 64-bit number decides about four elements.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 2**16  # values of the 16 bits that decide about an element; probabilities are multiples of 1 / LEVELS


class Dropout(nn.Module):
    """`nn.Dropout`, alone or with the sum that follows it: residual + dropout(x).

    The random numbers come from torch's generator. On the CPU the probability is rounded to a multiple of 2 ** -16, and
    kept elements are scaled accordingly; elsewhere, and when compiled, this is `F.dropout`.

    Args:
        p: Probability in [0, 1) of an element to be set to 0 in training.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        dropped = self._dropped_levels()
        if not dropped:
            return x
        return cast(Tensor, _Dropped.apply(None, x, dropped)) if cheaper_here(x) else F.dropout(x, self.p)

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + dropout(x), which have one shape."""
        dropped = self._dropped_levels()
        if dropped and cheaper_here(x):
            return cast(Tensor, _Dropped.apply(residual, x, dropped))
        return residual + (F.dropout(x, self.p) if dropped else x)

    def _dropped_levels(self) -> int:
        """How many of the values of 16 bits mean that an element is dropped in this call; never all of them."""
        return min(round(self.p * LEVELS), LEVELS - 1) if self.training else 0

    def extra_repr(self) -> str:
        return f"p={self.p}"


def cheaper_here(x: Tensor) -> bool:
    """Whether this module's random numbers are cheaper for a tensor; GPUs and compilers draw numbers in the kernel."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor | None, x: Tensor, dropped: int) -> Tensor:
        # each 64-bit number is four of 16 bits, signed
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        kept = (words.view(torch.int16)[: x.numel()] >= dropped - LEVELS // 2).view(x.shape)
        ctx.save_for_backward(kept)  # one byte per element; PyTorch saves them multiplied by the scale
        ctx.scale, ctx.has_residual = LEVELS / (LEVELS - dropped), residual is not None
        factor = kept.to(x.dtype)
        return (x * factor).mul_(ctx.scale) if residual is None else torch.addcmul(residual, x, factor, value=ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        (kept,) = ctx.saved_tensors
        dropped = torch.ops.aten.native_dropout_backward(grad, kept, ctx.scale)
        return grad if ctx.has_residual else None, dropped, None
