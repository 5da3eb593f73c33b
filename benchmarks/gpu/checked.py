"""A call of p2c_attention through the public op on the GPU, its outputs and gradients against the formula in fp64."""

from typing import Any

import torch
from torch import Tensor

from amuse_kernels import p2c_attention
from benchmarks.gpu.device import Gpu, Nothing
from benchmarks.gpu.journal import Record
from tests.attention_cases import Case, make_case
from tests.ptx.package.attention_calls import AttentionCall, hide_what_is_masked, inputs_of


def call_attention(case: Case, backend: str, device: torch.device) -> tuple[AttentionCall, tuple[Any, ...]]:
    """The call, on the CPU, and what the backend gives for it on `device`, brought back: out, lse and gradients.

    Keys and values behind masks are NaN.
    """
    hide_what_is_masked(case)
    call = AttentionCall(inputs_of(case), torch.randn(case.query.shape).to(case.query.dtype))
    inputs = call.inputs
    leaves = [_to(t, device).requires_grad_() for t in (inputs.query, *inputs.keys, *inputs.values)]
    count = len(inputs.keys)
    options = {name: _moved(value, device) for name, value in case.options.items() if name != "gates"}
    gates = None if inputs.gates is None else _to(inputs.gates, device).requires_grad_()
    out, lse = p2c_attention(
        leaves[0], leaves[1 : 1 + count], leaves[1 + count :], gates=gates, return_lse=True, backend=backend, **options
    )
    call.draw_upstream(lse.detach().cpu())
    upstream = [_to(tensor, device) for tensor in (call.grad_out, call.grad_lse) if tensor is not None]
    differentiated = [*leaves, *([] if gates is None else [gates])]
    grads = [grad.cpu() for grad in torch.autograd.grad([out, lse], differentiated, upstream)]
    grad_gates = None if gates is None else grads.pop()
    results = (out.detach().cpu(), lse.detach().cpu(), grads[0], grads[1 : 1 + count], grads[1 + count :], grad_gates)
    return call, results


def check_attention(device: Gpu | Nothing, backend: str, dtype: torch.dtype, **sizes: Any) -> Record:
    """`sizes` are those of `make_case`; the record says the largest error, 1 being what docs/numerics.md allows."""
    case = make_case(dtype=dtype, **sizes)
    call, results = call_attention(case, backend, device.device)
    error, tensor = call.worst(*results)
    found: Record = {"contender": f"ours, {backend}", "error_of_budget": error, "tensor": tensor}
    if not error <= 1:
        found |= {"status": "wrong", "reason": f"{tensor}: {error:.3g} times the error that docs/numerics.md allows"}
    return found


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy with the same strides."""
    moved = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return moved.copy_(tensor.detach())


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_moved(entry, device) for entry in value]
    return value.to(device) if isinstance(value, Tensor) else value
