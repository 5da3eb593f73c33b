"""Packed samples through kernels that get them padded: what the same kernels by offsets must give."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from amuse_kernels.attention.buffers import Gradients, empty_gradients, empty_outputs
from amuse_kernels.attention.inputs import AttentionInputs
from amuse_kernels.attention.padding import PaddedInputs


def forward_padded(
    forward: Callable[[AttentionInputs], tuple[Tensor, Tensor]], inputs: AttentionInputs
) -> tuple[Tensor, Tensor]:
    """Runs a `forward` of dense inputs on packed ones."""
    padded = PaddedInputs.of(inputs)
    results = empty_outputs(inputs)
    for result, dense in zip(results, forward(padded.inputs), strict=True):
        result.copy_(padded.queries.unpad(dense, inputs.query.shape[2]))
    return results


def backward_padded(
    backward: Callable[..., Gradients],
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor | None,
    lse: Tensor,
    inputs: AttentionInputs,
) -> Gradients:
    """Runs a `backward` of dense inputs on packed ones."""
    padded = PaddedInputs.of(inputs)
    given: list[Any] = [None if t is None else padded.queries.pad(t) for t in (grad_out, grad_lse, out)]
    # a row of the padding sees no key
    dense = backward(*given, padded.queries.pad(lse, -torch.inf), padded.inputs)
    grads = empty_gradients(inputs)
    grads.query.copy_(padded.queries.unpad(dense.query, inputs.query.shape[2]))
    for found, of_source in ((grads.keys, dense.keys), (grads.values, dense.values)):
        for grad, padding, given_grad in zip(found, padded.keys, of_source, strict=True):
            grad.copy_(padding.unpad(given_grad, grad.shape[2]))
    grads.gates.copy_(dense.gates)
    return grads
