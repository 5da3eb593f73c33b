"""Plain flash attention for one source without options, to compare the package's kernels with."""

import math
from typing import Any

import torch
from torch import Tensor

from amuse_kernels.launch import Launch
from tests.ptx.emulator.fixtures.attention_triton import attention_backward, attention_delta, attention_forward


def forward(tile: Launch, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor) -> Launch:
    """With the tile of a launch of the package's: tensors `(slices, seqlen, D)`, lse `(slices, seqlen)`.

    The grid is that of axis 0; axis 1 has as many programs as there are slices.
    """
    scale_log2 = query.shape[2] ** -0.5 * math.log2(math.e)
    args = (query, key, value, out, lse, query.shape[1], key.shape[1], scale_log2)
    return _launch(attention_forward, tile, "BLOCK_Q", query.shape[1], args, BLOCK_N=_keys(tile), CAUSAL=False)


def backward(
    tile: Launch,
    tensors: tuple[Tensor, Tensor, Tensor],
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    grads: tuple[Tensor, Tensor, Tensor],
) -> list[Launch]:
    """Gradients of query, key and value; that of the queries is summed in fp32 and starts at zero."""
    query, key = tensors[:2]
    lengths, delta = (query.shape[1], key.shape[1]), torch.empty_like(lse)
    args = (*tensors, grad_out, lse, delta, *grads, *lengths, query.shape[2] ** -0.5)
    return [
        _launch(attention_delta, tile, "BLOCK_Q", lengths[0], (out, grad_out, delta, lengths[0])),
        _launch(attention_backward, tile, "BLOCK_K", lengths[1], args, BLOCK_N=_keys(tile), CAUSAL=False),
    ]


def like(ours: list[Launch]) -> list[Launch]:
    """The launches of a call with the tile of the package's forward or backward for one source."""
    tile = ours[-1]
    tokens, lse = torch.zeros(2, 512, tile.constexprs["D"], dtype=torch.float16), torch.zeros(2, 512)
    if tile.kernel.fn.__name__ == "attention_forward":
        return [forward(tile, tokens, tokens, tokens, tokens, lse)]
    grads = (tokens.float(), tokens, tokens)
    return backward(tile, (tokens, tokens, tokens), tokens, tokens, lse, grads)


def _keys(tile: Launch) -> int:
    return tile.constexprs["BLOCK_K"]


def _launch(kernel: Any, tile: Launch, block: str, length: int, args: tuple[Any, ...], **constexprs: Any) -> Launch:
    """A program for each `block` of `length`."""
    constexprs = {"BLOCK_M": tile.constexprs["BLOCK_Q"], **constexprs, "D": tile.constexprs["D"]}
    return Launch(kernel, -(-length // tile.constexprs[block]), args, constexprs, tile.num_warps, tile.num_stages)
