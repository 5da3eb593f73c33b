"""p2c_attention by the C++ CPU kernels; outputs are allocated here."""

from typing import Any

import torch
from torch import Tensor

from amuse_kernels.attention.buffers import Gradients, empty_gradients, empty_outputs
from amuse_kernels.attention.inputs import AttentionInputs
from amuse_kernels.attention.native import native_inputs
from amuse_kernels.buffers import dense, rows_dense
from amuse_kernels.native import module


def p2c_attention_forward(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """Output and lse, see `amuse_kernels.p2c_attention`."""
    out, lse = empty_outputs(inputs)
    module().p2c_attention_forward(_native(inputs), out, lse)
    return out, lse


def p2c_attention_backward(
    grad_out: Tensor, grad_lse: Tensor | None, out: Tensor | None, lse: Tensor, inputs: AttentionInputs
) -> Gradients:
    """Gradients of the inputs; `out` is needed for joint only."""
    grads = empty_gradients(inputs)
    grad_gates = None if inputs.gates is None else grads.gates
    lse, grad_lse = dense(lse, grad_lse)
    module().p2c_attention_backward(
        *(_native(inputs), rows_dense(grad_out), out, lse, grad_lse),
        *(grads.query, grads.keys, grads.values, grad_gates),
    )
    return grads


def _native(inputs: AttentionInputs) -> Any:
    seed = 0 if inputs.seed is None else int(inputs.seed)
    return native_inputs(inputs, seed=seed, num_threads=torch.get_num_threads())
