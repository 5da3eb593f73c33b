"""p2c_attention by the CUDA C++ kernels: the native module plans launches, which are queued on the current stream."""

from typing import Any

import torch
from torch import Tensor

from amuse_kernels.attention.buffers import attention_outputs
from amuse_kernels.attention.native import attention_inputs
from amuse_kernels.buffers import dense, grad_like, multiplies_as_tf32, rows_dense
from amuse_kernels.native import address, module, run


def p2c_attention_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """See `cpu.p2c_attention_forward`."""
    query, keys, joint, seed = arguments[0], arguments[1], arguments[9], arguments[12]
    out, lse = attention_outputs(query, len(keys), joint)
    inputs = attention_inputs(*arguments[:12])
    run(module().cuda_p2c_attention_forward(inputs, out, lse, address(seed), multiplies_as_tf32()), query.device)
    return out, lse


def p2c_attention_backward(
    grad_out: Tensor, grad_lse: Tensor | None, out: Tensor | None, lse: Tensor, *arguments: Any
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """See `cpu.p2c_attention_backward`."""
    (query, keys, values, gates), seed = arguments[:4], arguments[12]
    grad_query, grad_keys, grad_values = grad_like(query), [*map(grad_like, keys)], [*map(grad_like, values)]
    grad_gates = lse.new_empty(0 if gates is None else gates.shape)
    grad_out = rows_dense(grad_out)  # copies are kept until the kernels are queued
    lse, grad_lse = dense(lse, grad_lse)
    inputs = attention_inputs(*arguments[:12])
    workspace = None

    def allocate(size: int) -> int:
        nonlocal workspace
        workspace = query.new_empty(size, dtype=torch.uint8)
        return address(workspace)

    plan = module().cuda_p2c_attention_backward(
        *(inputs, grad_out, out, lse, grad_lse),
        *(grad_query, grad_keys, grad_values, None if gates is None else grad_gates),
        *(address(seed), multiplies_as_tf32(), allocate),
    )
    run(plan, query.device)
    return grad_query, grad_keys, grad_values, grad_gates
