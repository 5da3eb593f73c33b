"""torch.library definitions, fakes and autograd of the fused ops.

An op is defined by schema and implemented per device by calls into a kernel library; its derivative is a second op,
joined by an `autograd.Function` outside, which costs a fraction of `custom_op` per call and is skipped when no input
needs a gradient. On CUDA tensors an op runs Triton's kernels, or with `cuda_cpp` those in CUDA C++. Where a derivative
is to be differentiated again (`create_graph=True`), it comes from the reference.
"""

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from amuse_kernels import buffers, cpu, cuda, reference
from amuse_kernels.checks import RELATIONS, AttentionInputs
from amuse_kernels.reference import accumulation_dtype

_library = torch.library.Library("amuse_kernels", "DEF")
_attention_inputs = (
    "Tensor query, Tensor[] keys, Tensor[] values, Tensor? gates, Tensor?[] key_masks, Tensor? query_groups, "
    "Tensor?[] key_groups, int[] relations, bool[] causal, bool joint, float softmax_scale, float dropout_p, "
    "Tensor? seed, *, bool cuda_cpp=False"
)
_library.define(f"p2c_attention_forward({_attention_inputs}) -> (Tensor out, Tensor lse)")
_library.define(
    f"p2c_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor? out, Tensor lse, {_attention_inputs})"
    " -> (Tensor query, Tensor[] keys, Tensor[] values, Tensor gates)"
)
_library.define(
    "adaptive_fusion_forward("
    "Tensor descriptors, Tensor? alpha, Tensor? pair_weight, Tensor? pair_bias, Tensor? present, *, "
    "bool cuda_cpp=False) -> (Tensor fused, Tensor alpha)"
)
_library.define(
    "adaptive_fusion_backward("
    "Tensor grad_fused, Tensor? grad_alpha, "
    "Tensor descriptors, Tensor? alpha, Tensor? pair_weight, Tensor? pair_bias, Tensor? present, *, "
    "bool cuda_cpp=False) -> (Tensor descriptors, Tensor alpha, Tensor pair_weight, Tensor pair_bias)"
)
_library.define(
    "interpolation_coefficients_forward(Tensor a, Tensor b, Tensor grad_b, float epsilon, *, bool cuda_cpp=False)"
    " -> Tensor"
)
_library.define(
    "interpolation_coefficients_backward(Tensor grad, Tensor a, Tensor b, Tensor grad_b, float epsilon, *, "
    "bool cuda_cpp=False) -> (Tensor a, Tensor b, Tensor grad_b)"
)

_TRITON_MODULES = {
    "p2c_attention": "attention",
    "adaptive_fusion": "fusion",
    "interpolation_coefficients": "interpolation",
}


def _on_cuda(op: str, name: str) -> Callable[..., Any]:
    """Imports triton, which is optional and slow to import, with the first call that needs it."""
    triton_kernel = None

    def run(*arguments, cuda_cpp=False):
        nonlocal triton_kernel
        if cuda_cpp:
            return getattr(cuda, name)(*arguments)
        if triton_kernel is None:
            triton_kernel = getattr(importlib.import_module(f"amuse_kernels.triton.{_TRITON_MODULES[op]}"), name)
        return triton_kernel(*arguments)

    return run


for _op in _TRITON_MODULES:
    for _name in (f"{_op}_forward", f"{_op}_backward"):
        _library.impl(_name, getattr(cpu, _name), "CPU")
        _library.impl(_name, _on_cuda(_op, _name), "CUDA")
        # torch's own fallback, which warns of a missing derivative, takes 20 us; derivatives are joined on outside.
        _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _builds_a_graph() -> bool:
    """Inside a backward: whether its result is to be differentiated again."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _graph_gradients(outputs, grad_outputs, inputs):
    """Gradients of the reference's outputs as part of a graph; None for inputs that need none."""
    given = [(out, grad) for out, grad in zip(outputs, grad_outputs, strict=True) if grad is not None]
    used_outputs, used_grads = zip(*given, strict=True)
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    grads = torch.autograd.grad(used_outputs, wanted, used_grads, create_graph=True, allow_unused=True)
    found = iter(grads)
    return [next(found) if t is not None and t.requires_grad else None for t in inputs]


# --- Peripheral-to-Central attention ---


@torch.library.register_fake("amuse_kernels::p2c_attention_forward", lib=_library)
def _attention_forward_fake(
    query: Tensor, keys: list[Tensor], *options, cuda_cpp: bool = False
) -> tuple[Tensor, Tensor]:
    return buffers.attention_outputs(query, len(keys), joint=options[7])


@torch.library.register_fake("amuse_kernels::p2c_attention_backward", lib=_library)
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
        buffers.grad_like(query),
        [buffers.grad_like(key) for key in keys],
        [buffers.grad_like(value) for value in values],
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
        if _builds_a_graph():
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
            grads = _graph_gradients(outputs, (grad_out, grad_lse), (query, gates, *keys, *values))
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
    if _needs_grad(query, gates, *keys, *values):
        lists = (*keys, *values, *masks, *groups)
        return _P2CAttention.apply(query, gates, inputs.query_groups, inputs.seed, cuda_cpp, *options, *lists)
    return _attention_forward(
        *(query, keys, values, gates, masks, inputs.query_groups, groups, *options, inputs.seed), cuda_cpp=cuda_cpp
    )


# --- Adaptive fusion ---


@torch.library.register_fake("amuse_kernels::adaptive_fusion_forward", lib=_library)
def _fusion_forward_fake(
    descriptors: Tensor,
    alpha: Tensor | None,
    pair_weight: Tensor | None,
    pair_bias: Tensor | None,
    present: Tensor | None,
    *,
    cuda_cpp: bool = False,
) -> tuple[Tensor, Tensor]:
    return buffers.fusion_outputs(descriptors, alpha)


@torch.library.register_fake("amuse_kernels::adaptive_fusion_backward", lib=_library)
def _fusion_backward_fake(
    grad_fused: Tensor,
    grad_alpha: Tensor | None,
    descriptors: Tensor,
    alpha: Tensor | None,
    pair_weight: Tensor | None,
    pair_bias: Tensor | None,
    present: Tensor | None,
    *,
    cuda_cpp: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def like(tensor: Tensor | None) -> Tensor:
        return descriptors.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)

    return like(descriptors), like(alpha), like(pair_weight), like(pair_bias)


class _AdaptiveFusion(torch.autograd.Function):
    @staticmethod
    def forward(ctx, descriptors, alpha, pair_weight, pair_bias, present, cuda_cpp):
        ctx.save_for_backward(descriptors, alpha, pair_weight, pair_bias, present)
        ctx.set_materialize_grads(False)
        ctx.cuda_cpp = cuda_cpp
        return torch.ops.amuse_kernels.adaptive_fusion_forward(
            descriptors, alpha, pair_weight, pair_bias, present, cuda_cpp=cuda_cpp
        )

    @staticmethod
    def backward(ctx, grad_fused, grad_alpha):
        descriptors, alpha, pair_weight, pair_bias, present = ctx.saved_tensors
        if _builds_a_graph():
            outputs = reference.adaptive_fusion(descriptors, alpha, pair_weight, pair_bias, present)
            inputs = (descriptors, alpha, pair_weight, pair_bias)
            return *_graph_gradients(outputs, (grad_fused, grad_alpha), inputs), None, None
        if grad_fused is None:
            grad_fused = torch.zeros_like(descriptors)
        grads = torch.ops.amuse_kernels.adaptive_fusion_backward(
            grad_fused, grad_alpha, descriptors, alpha, pair_weight, pair_bias, present, cuda_cpp=ctx.cuda_cpp
        )
        inputs = (descriptors, alpha, pair_weight, pair_bias)
        return (*(None if tensor is None else grad for tensor, grad in zip(inputs, grads, strict=True)), None, None)


def adaptive_fusion(
    descriptors: Tensor,
    alpha: Tensor | None,
    pair_weight: Tensor | None,
    pair_bias: Tensor | None,
    present: Tensor | None,
    cuda_cpp: bool = False,
) -> tuple[Tensor, Tensor]:
    """`reference.adaptive_fusion` by the fused kernels of the tensors' device."""
    *batch, modalities, width = descriptors.shape
    rows = math.prod(batch)
    dtype = accumulation_dtype(descriptors.dtype)
    arguments = (
        descriptors.reshape(rows, modalities, width),
        None if alpha is None else alpha.reshape(rows, *alpha.shape[len(batch) :]),
        None if pair_weight is None else pair_weight.to(dtype),
        None if pair_bias is None else pair_bias.to(dtype),
        None if present is None else present.reshape(rows, modalities),
    )
    if _needs_grad(descriptors, alpha, pair_weight, pair_bias):
        fused, alpha = _AdaptiveFusion.apply(*arguments, cuda_cpp)
    else:
        fused, alpha = torch.ops.amuse_kernels.adaptive_fusion_forward(*arguments, cuda_cpp=cuda_cpp)
    return fused.reshape(descriptors.shape), alpha.reshape(*batch, *alpha.shape[1:])


# --- Interpolation coefficients ---


@torch.library.register_fake("amuse_kernels::interpolation_coefficients_forward", lib=_library)
def _interpolation_forward_fake(
    a: Tensor, b: Tensor, grad_b: Tensor, epsilon: float, *, cuda_cpp: bool = False
) -> Tensor:
    return a.new_empty(a.shape)


@torch.library.register_fake("amuse_kernels::interpolation_coefficients_backward", lib=_library)
def _interpolation_backward_fake(
    grad: Tensor, a: Tensor, b: Tensor, grad_b: Tensor, epsilon: float, *, cuda_cpp: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape), b.new_empty(b.shape), grad_b.new_empty(grad_b.shape)


class _InterpolationCoefficients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, grad_b, epsilon, cuda_cpp):
        ctx.save_for_backward(a, b, grad_b)
        ctx.epsilon, ctx.cuda_cpp = epsilon, cuda_cpp
        return torch.ops.amuse_kernels.interpolation_coefficients_forward(a, b, grad_b, epsilon, cuda_cpp=cuda_cpp)

    @staticmethod
    def backward(ctx, grad):
        a, b, grad_b = ctx.saved_tensors
        if _builds_a_graph():
            output = reference.interpolation_coefficients(a, b, grad_b, ctx.epsilon)
            return *_graph_gradients((output,), (grad,), (a, b, grad_b)), None, None
        backward = torch.ops.amuse_kernels.interpolation_coefficients_backward
        return *backward(grad, a, b, grad_b, ctx.epsilon, cuda_cpp=ctx.cuda_cpp), None, None


def interpolation_coefficients(a: Tensor, b: Tensor, grad_b: Tensor, epsilon: float, cuda_cpp: bool = False) -> Tensor:
    """`reference.interpolation_coefficients` by the fused kernels of the tensors' device."""
    rows = (math.prod(a.shape[:-1]), a.shape[-1])
    arguments = (a.reshape(rows), b.reshape(rows), grad_b.reshape(rows), epsilon)
    if _needs_grad(a, b, grad_b):
        out = _InterpolationCoefficients.apply(*arguments, cuda_cpp)
    else:
        out = torch.ops.amuse_kernels.interpolation_coefficients_forward(*arguments, cuda_cpp=cuda_cpp)
    return out.reshape(a.shape)
