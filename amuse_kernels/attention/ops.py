"""Schema, fakes and autograd of p2c_attention."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from amuse_kernels.attention import reference
from amuse_kernels.attention.buffers import Gradients, empty_gradients, empty_outputs
from amuse_kernels.attention.inputs import AttentionInputs
from amuse_kernels.library import graph_gradients, implement, library, needs_a_graph, needs_grad

_INPUTS = (
    "Tensor query, Tensor[] keys, Tensor[] values, Tensor? gates, Tensor?[] key_masks, Tensor? query_groups, "
    "Tensor?[] key_groups, int[] relations, bool[] causal, bool joint, float softmax_scale, float dropout_p, "
    "Tensor? seed, Tensor? cu_seq_q=None, Tensor[]? cu_seq_k=None, SymInt max_q=0, SymInt[]? max_k=None, *, "
    "bool cuda_cpp=False"
)
library.define(f"p2c_attention_forward({_INPUTS}) -> (Tensor out, Tensor lse)")
library.define(
    f"p2c_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor? out, Tensor lse, {_INPUTS})"
    " -> (Tensor query, Tensor[] keys, Tensor[] values, Tensor gates)"
)


def kernels(backend: ModuleType) -> dict[str, Callable[..., Any]]:
    """The functions of a backend by the name of the op, with the op's arguments."""

    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return backend.p2c_attention_forward(AttentionInputs(*inputs))

    def backward(grad_out: Tensor, grad_lse: Tensor | None, out: Tensor | None, lse: Tensor, *inputs: Any) -> Any:
        return backend.p2c_attention_backward(grad_out, grad_lse, out, lse, AttentionInputs(*inputs))

    return {"p2c_attention_forward": forward, "p2c_attention_backward": backward}


implement("amuse_kernels.attention", kernels)


@torch.library.register_fake("amuse_kernels::p2c_attention_forward", lib=library)
def _forward_fake(*inputs: Any, cuda_cpp: bool = False) -> tuple[Tensor, Tensor]:
    return empty_outputs(AttentionInputs(*inputs))


@torch.library.register_fake("amuse_kernels::p2c_attention_backward", lib=library)
def _backward_fake(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor | None,
    lse: Tensor,
    *inputs: Any,
    cuda_cpp: bool = False,
) -> Gradients:
    return empty_gradients(AttentionInputs(*inputs))


forward = torch.ops.amuse_kernels.p2c_attention_forward.default
_backward = torch.ops.amuse_kernels.p2c_attention_backward.default


class _P2CAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cuda_cpp, *entries):
        inputs = AttentionInputs.from_flat(entries)
        out, lse = forward(*inputs.arguments, cuda_cpp=cuda_cpp)
        ctx.set_materialize_grads(False)
        ctx.cuda_cpp = cuda_cpp
        ctx.numbers = [None if isinstance(entry, Tensor) else entry for entry in entries]
        tensors = [entry if isinstance(entry, Tensor) else None for entry in entries]
        ctx.save_for_backward(lse, out if inputs.joint else None, *tensors)
        return out, lse

    @staticmethod
    def backward(ctx, grad_out, grad_lse):
        lse, out, *tensors = ctx.saved_tensors
        entries = [number if tensor is None else tensor for tensor, number in zip(tensors, ctx.numbers, strict=True)]
        inputs = AttentionInputs.from_flat(entries)
        if needs_a_graph(grad_out, grad_lse):
            return None, *graph_gradients(lambda: reference.p2c_attention(inputs), (grad_out, grad_lse), entries)
        if grad_out is None:
            grad_out = torch.zeros_like(inputs.query)
        query, keys, values, gates = _backward(grad_out, grad_lse, out, lse, *inputs.arguments, cuda_cpp=ctx.cuda_cpp)
        gates = None if inputs.gates is None else gates
        grads = (query, *keys, *values, gates)  # the first entries after the number of sources
        return None, None, *grads, *(None for _ in entries[1 + len(grads) :])


def p2c_attention(inputs: AttentionInputs, cuda_cpp: bool = False) -> tuple[Tensor, Tensor]:
    """`reference.p2c_attention` by the fused kernels of the tensors' device."""
    if torch.is_grad_enabled() and needs_grad(*inputs.differentiable):
        return _P2CAttention.apply(cuda_cpp, *_apart(inputs.flat()))
    return forward(*inputs.arguments, cuda_cpp=cuda_cpp)


def _apart(entries: Sequence[Any]) -> list[Any]:
    """Views in place of a tensor's repetitions, such as the offsets of self-attention: torch.compile refuses them."""
    if not torch.compiler.is_compiling():
        return list(entries)
    found: list[Any] = []
    for entry in entries:
        again = isinstance(entry, Tensor) and any(entry is other for other in found)
        found.append(entry.view_as(entry) if again else entry)
    return found
