"""p2c_attention by the CUDA C++ kernels: the native module plans launches, which are queued on the current stream."""

from torch import Tensor

from amuse_kernels.attention.buffers import Gradients, empty_gradients, empty_outputs
from amuse_kernels.attention.inputs import AttentionInputs
from amuse_kernels.attention.native import native_inputs
from amuse_kernels.buffers import dense, multiplies_as_tf32, rows_dense
from amuse_kernels.native import Workspace, address, module, run


def p2c_attention_forward(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """See `cpu.p2c_attention_forward`."""
    out, lse = empty_outputs(inputs)
    plan = module().cuda_p2c_attention_forward(
        native_inputs(inputs), out, lse, address(inputs.seed), multiplies_as_tf32()
    )
    run(plan, inputs.query.device)
    return out, lse


def p2c_attention_backward(
    grad_out: Tensor, grad_lse: Tensor | None, out: Tensor | None, lse: Tensor, inputs: AttentionInputs
) -> Gradients:
    """See `cpu.p2c_attention_backward`."""
    grads = empty_gradients(inputs)
    grad_gates = None if inputs.gates is None else grads.gates
    grad_out = rows_dense(grad_out)  # copies are kept until the kernels are queued
    lse, grad_lse = dense(lse, grad_lse)
    workspace = Workspace(inputs.query)
    plan = module().cuda_p2c_attention_backward(
        *(native_inputs(inputs), grad_out, out, lse, grad_lse),
        *(grads.query, grads.keys, grads.values, grad_gates),
        *(address(inputs.seed), multiplies_as_tf32(), workspace.allocate),
    )
    run(plan, inputs.query.device)
    return grads
