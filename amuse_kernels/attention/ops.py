"""Schema, fakes and autograd of p2c_attention."""

import torch
from torch import Tensor

from amuse_kernels.attention import cpu, cuda, reference
from amuse_kernels.attention.buffers import attention_outputs
from amuse_kernels.attention.inputs import RELATIONS, AttentionInputs
from amuse_kernels.buffers import grad_like
from amuse_kernels.library import builds_a_graph, graph_gradients, implement, library, needs_grad

_attention_inputs = (
    "Tensor query, Tensor[] keys, Tensor[] values, Tensor? gates, Tensor?[] key_masks, Tensor? query_groups, "
    "Tensor?[] key_groups, int[] relations, bool[] causal, bool joint, float softmax_scale, float dropout_p, "
    "Tensor? seed, *, bool cuda_cpp=False"
)
library.define(f"p2c_attention_forward({_attention_inputs}) -> (Tensor out, Tensor lse)")
library.define(
    f"p2c_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor? out, Tensor lse, {_attention_inputs})"
    " -> (Tensor query, Tensor[] keys, Tensor[] values, Tensor gates)"
)
for _name in ("p2c_attention_forward", "p2c_attention_backward"):
    implement(_name, cpu, cuda, "amuse_kernels.attention.triton")


@torch.library.register_fake("amuse_kernels::p2c_attention_forward", lib=library)
def _attention_forward_fake(
    query: Tensor, keys: list[Tensor], *options, cuda_cpp: bool = False
) -> tuple[Tensor, Tensor]:
    return attention_outputs(query, len(keys), joint=options[7])


@torch.library.register_fake("amuse_kernels::p2c_attention_backward", lib=library)
def _attention_backward_fake(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor | None,
    lse: Tensor,
    query: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    gates: Tensor | None,
    *options,
    cuda_cpp: bool = False,
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    grad_gates = lse.new_empty(0 if gates is None else gates.shape)
    return (
        grad_like(query),
        [grad_like(key) for key in keys],
        [grad_like(value) for value in values],
        grad_gates,
    )


_attention_forward = torch.ops.amuse_kernels.p2c_attention_forward.default
_attention_backward = torch.ops.amuse_kernels.p2c_attention_backward.default


class _P2CAttention(torch.autograd.Function):
    """Takes lists flat, P tensors each of keys, values, masks and groups: autograd does not look inside lists."""

    @staticmethod
    def forward(
        ctx, query, gates, query_groups, seed, cuda_cpp, relations, causal, joint, softmax_scale, dropout_p, *lists
    ):
        keys, values, key_masks, key_groups = _split(lists)
        ctx.options, ctx.cuda_cpp = (relations, causal, joint, softmax_scale, dropout_p), cuda_cpp
        ctx.set_materialize_grads(False)
        out, lse = _attention_forward(
            *(query, keys, values, gates, key_masks, query_groups, key_groups, *ctx.options, seed), cuda_cpp=cuda_cpp
        )
        ctx.save_for_backward(query, gates, query_groups, seed, lse, out if joint else None, *lists)
        return out, lse

    @staticmethod
    def backward(ctx, grad_out, grad_lse):
        query, gates, query_groups, seed, lse, out, *lists = ctx.saved_tensors
        keys, values, key_masks, key_groups = _split(lists)
        nothing = (None,) * (2 * len(keys))
        if builds_a_graph():
            relations, causal, joint, softmax_scale, dropout_p = ctx.options
            inputs = AttentionInputs(
                query=query,
                keys=tuple(keys),
                values=tuple(values),
                gates=gates,
                key_masks=tuple(key_masks),
                query_groups=query_groups,
                key_groups=tuple(key_groups),
                relations=tuple(RELATIONS[r] for r in relations),
                causal=tuple(causal),
                normalization="joint" if joint else "per_source",
                softmax_scale=softmax_scale,
                dropout_p=dropout_p,
                seed=seed,
            )
            outputs = reference.p2c_attention(inputs)
            grads = graph_gradients(outputs, (grad_out, grad_lse), (query, gates, *keys, *values))
            return *grads[:2], *(None,) * 8, *grads[2:], *nothing
        if grad_out is None:
            grad_out = torch.zeros_like(query)
        grad_query, grad_keys, grad_values, grad_gates = _attention_backward(
            *(grad_out, grad_lse, out, lse, query, keys, values, gates, key_masks, query_groups, key_groups),
            *(*ctx.options, seed),
            cuda_cpp=ctx.cuda_cpp,
        )
        return (
            *(grad_query, None if gates is None else grad_gates, *(None,) * 8),
            *(*grad_keys, *grad_values, *nothing),
        )


def _split(lists):
    """A flat sequence of four lists of equal lengths as those lists."""
    count = len(lists) // 4
    return lists[:count], lists[count : 2 * count], lists[2 * count : 3 * count], lists[3 * count :]


def p2c_attention(inputs: AttentionInputs, cuda_cpp: bool = False) -> tuple[Tensor, Tensor]:
    """`reference.p2c_attention` by the fused kernels of the tensors' device."""
    query, keys, values, gates = inputs.query, inputs.keys, inputs.values, inputs.gates
    assert values is not None
    relations = [RELATIONS.index(relation) for relation in inputs.relations]
    options = (relations, inputs.causal, inputs.normalization == "joint", inputs.softmax_scale, inputs.dropout_p)
    masks, groups = inputs.key_masks, inputs.key_groups
    if needs_grad(query, gates, *keys, *values):
        lists = (*keys, *values, *masks, *groups)
        return _P2CAttention.apply(query, gates, inputs.query_groups, inputs.seed, cuda_cpp, *options, *lists)
    return _attention_forward(
        *(query, keys, values, gates, masks, inputs.query_groups, groups, *options, inputs.seed), cuda_cpp=cuda_cpp
    )
