"""The public ops: documentation, argument checks, autocast, choice of the backend."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from amuse_kernels.attention.inputs import AttentionInputs, check_attention
from amuse_kernels.attention.ops import p2c_attention as fused_attention
from amuse_kernels.attention.reference import p2c_attention as reference_attention
from amuse_kernels.attention.reference import weights_and_lse
from amuse_kernels.attention.unchecked import attend_unchecked
from amuse_kernels.attention.varlen import check_attention_varlen, of_batch
from amuse_kernels.checks import check_flag
from amuse_kernels.dispatch import choose_backend
from amuse_kernels.fusion.inputs import check_fusion
from amuse_kernels.fusion.ops import adaptive_fusion as fused_fusion
from amuse_kernels.fusion.reference import adaptive_fusion as reference_fusion
from amuse_kernels.interpolation.inputs import check_interpolation
from amuse_kernels.interpolation.ops import interpolation_coefficients as fused_interpolation
from amuse_kernels.interpolation.reference import interpolation_coefficients as reference_interpolation


def p2c_attention(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    gates: Tensor | None = None,
    key_masks: Sequence[Tensor | None] | None = None,
    query_groups: Tensor | None = None,
    key_groups: Sequence[Tensor | None] | None = None,
    relations: Sequence[str] | None = None,
    causal: bool | Sequence[bool] = False,
    normalization: str = "per_source",
    softmax_scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Peripheral-to-Central attention (AMuSE, Eq. 1): queries attend to P sources at once.

    With S_p = softmax_scale * Q K_p^T, W_p = exp(S_p) on visible pairs and 0 elsewhere:

    - "per_source" (the paper): O = sum_p g_p (W_p / rowsum(W_p)) V_p
    - "joint" (one softmax over all sources, the gate a bias log g_p): O = sum_p g_p W_p V_p / sum_p g_p rowsum(W_p)

    A pair (i, j) is visible when key mask, group relation and causal flag all allow it. A row of a source without a
    visible key contributes exactly 0 and receives exactly 0 gradient; so does an absent modality, whose mask is all
    False. Keys and values that no query of their sample may see can hold NaN or Inf, and so can a query that sees
    no key.

    Args:
        query: `(B, H, Lq, D)`, fp16, bf16, fp32 or fp64; D a multiple of 8 from 8 to 256. Lq may be 0. How a GPU
            multiplies fp32 is up to `torch.backends.cuda.matmul.fp32_precision`: by default about exactly, on tensor
            cores where that is fast; "ieee": Triton multiplies in fp32 itself; "tf32": coarser and faster.
        keys, values: P tensors each (1 to 8), `(B, H, Lp, D)`, dtype and device of the query. Lp may be 0. A last
            dimension that is contiguous is read in place, whatever the other strides.
        gates: broadcastable to `(B, H, P)`, any floating dtype; default ones. Non-negative for "joint" (checked on
            CPU tensors). The paper's gate is the constant 1 / (P + 1).
        key_masks: P entries, bool `(B, Lp)`, True = attend, or None.
        query_groups: integers `(B, Lq)`, for example the speaker of each utterance.
        key_groups: P entries, integers `(B, Lp)`, or None where the relation is "any".
        relations: P entries, "any" (default) | "same" | "different": group of the key relative to the query's.
        causal: bool, or one per source: key position <= query position; needs Lp == Lq.
        normalization: "per_source" | "joint".
        softmax_scale: default `D ** -0.5`.
        dropout_p: probability in [0, 1) to drop a normalised weight; the rest is scaled by 1 / (1 - dropout_p).
        seed: of the dropout, 0 <= seed < 2**63; equal seeds drop equal pairs on every backend. None draws one from
            torch's generator.
        return_lse: also return the natural log-sum-exp of the scores.
        backend: None = the best available | "triton" | "cuda" | "cpu" | "reference". A named backend never falls back.

    Returns:
        `(B, H, Lq, D)` in the query's dtype, stored so that `.transpose(1, 2).reshape(B, Lq, H * D)` is a view; with
        `return_lse` also the lse in fp32 (fp64 for fp64): `(B, H, Lq, P)`, or `(B, H, Lq)` for "joint"
        (log sum_p g_p rowsum(W_p)); -inf in rows that see no key. Both differentiable in query, keys, values, gates.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what was expected.
        BackendUnavailableError: the named backend cannot run here.
    """
    check_flag("return_lse", return_lse)
    if values is None:
        raise TypeError("values: expected a list or tuple with one entry per source, got None")
    without_autocast, (query, keys, values) = _autocast(query, keys, values)
    inputs = check_attention(
        query,
        keys,
        values,
        gates=gates,
        key_masks=key_masks,
        query_groups=query_groups,
        key_groups=key_groups,
        relations=relations,
        causal=causal,
        normalization=normalization,
        softmax_scale=softmax_scale,
        dropout_p=dropout_p,
        seed=seed,
    )
    name = choose_backend("p2c_attention", inputs.query, backend, inputs.differentiable)
    with without_autocast:
        out, lse = _attend(inputs, name)
    return (out, lse) if return_lse else out


def p2c_attention_varlen(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    cu_seq_q: Tensor,
    cu_seq_k: Sequence[Tensor],
    max_q: int,
    max_k: Sequence[int],
    *,
    gates: Tensor | None = None,
    query_groups: Tensor | None = None,
    key_groups: Sequence[Tensor | None] | None = None,
    relations: Sequence[str] | None = None,
    causal: bool | Sequence[bool] = False,
    normalization: str = "per_source",
    softmax_scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`p2c_attention` of packed samples: the tokens of all B samples one after the other, none of them padding.

    Sample b is exactly `p2c_attention` of its own tokens; positions, for causal and for dropout, count from its start.
    Names and layout are those of `torch.nn.attention.varlen.varlen_attn`.

    Args:
        query: `(Tq, H, D)`.
        keys, values: P tensors each, `(Tp, H, D)`.
        cu_seq_q: int32 `(B + 1,)` on the tensors' device: cumulative lengths, 0 first and Tq last.
        cu_seq_k: P such tensors. A source of length 0 is an absent modality.
        max_q: the longest sequence of queries, or more.
        max_k: P ints, of each source. Host numbers, so that nothing waits for a GPU.
        gates: broadcastable to `(B, H, P)`.
        query_groups: integers `(Tq,)`.
        key_groups: P entries, integers `(Tp,)`, or None where the relation is "any".
        causal: bool, or one per source; needs `cu_seq_k[p]` equal to `cu_seq_q`.
        relations, normalization, softmax_scale, dropout_p, seed, return_lse, backend: see `p2c_attention`.

    Returns:
        `(Tq, H, D)` in the query's dtype; with `return_lse` also the lse: `(Tq, H, P)`, or `(Tq, H)` for "joint".

    Raises:
        TypeError, ValueError: naming the argument, what it was and what was expected. Offsets are looked into on CPU
            tensors only.
        BackendUnavailableError: the named backend cannot run here.
    """
    check_flag("return_lse", return_lse)
    options = (query_groups, key_groups, relations, softmax_scale)
    plain = causal is return_lse is False and type(dropout_p) is float and dropout_p == 0.0
    if plain and normalization == "per_source" and options == (None,) * 4 and backend in (None, "cpu"):
        out = attend_unchecked(query, keys, values, cu_seq_q, cu_seq_k, max_q, max_k, gates)
        if out is not None:
            return out
    without_autocast, (query, keys, values) = _autocast(query, keys, values)
    inputs = check_attention_varlen(
        query,
        keys,
        values,
        cu_seq_q,
        cu_seq_k,
        max_q,
        max_k,
        gates=gates,
        query_groups=query_groups,
        key_groups=key_groups,
        relations=relations,
        causal=causal,
        normalization=normalization,
        softmax_scale=softmax_scale,
        dropout_p=dropout_p,
        seed=seed,
    )
    name = choose_backend("p2c_attention_varlen", inputs.query, backend, inputs.differentiable)
    with without_autocast:
        out, lse = _attend(inputs, name)
    return (of_batch(out), of_batch(lse)) if return_lse else of_batch(out)


def p2c_attention_weights(
    query: Tensor,
    keys: Sequence[Tensor],
    *,
    gates: Tensor | None = None,
    key_masks: Sequence[Tensor | None] | None = None,
    query_groups: Tensor | None = None,
    key_groups: Sequence[Tensor | None] | None = None,
    relations: Sequence[str] | None = None,
    causal: bool | Sequence[bool] = False,
    normalization: str = "per_source",
    softmax_scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, ...] | tuple[tuple[Tensor, ...], Tensor]:
    """The weights with which `p2c_attention` adds up the values, gates and dropout applied: O = sum_p weights_p V_p.

    For explanations and tests; it materialises (Lq x Lp) and always runs in plain PyTorch. Arguments as for
    `p2c_attention`; `backend` None or "reference".

    Returns:
        P tensors `(B, H, Lq, Lp)` in the query's dtype; with `return_lse` a pair of that and the lse.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what was expected.
    """
    if backend not in (None, "reference"):
        raise ValueError(f"backend: the weights are computed by 'reference' only, got {backend!r}")
    check_flag("return_lse", return_lse)
    without_autocast, (query, keys) = _autocast(query, keys)
    inputs = check_attention(
        query,
        keys,
        None,
        gates=gates,
        key_masks=key_masks,
        query_groups=query_groups,
        key_groups=key_groups,
        relations=relations,
        causal=causal,
        normalization=normalization,
        softmax_scale=softmax_scale,
        dropout_p=dropout_p,
        seed=seed,
    )
    with without_autocast:
        weights, lse = weights_and_lse(inputs)
    cast = tuple(weight.to(inputs.query.dtype) for weight in weights)
    return (cast, lse) if return_lse else cast


def adaptive_fusion(
    descriptors: Tensor,
    alpha: Tensor | None = None,
    *,
    pair_weight: Tensor | None = None,
    pair_bias: Tensor | None = None,
    present: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Adaptive fusion (AMuSE, Eq. 2): interpolate each modality's descriptor towards every other's, per instance.

    fused_m = 1/|S| sum_{n in S, n != m} (alpha[m, n] f_n + (1 - alpha[m, n]) f_m), with S the modalities present. The
    slot of an absent modality is 0 and its descriptor may hold NaN; a lone present modality passes unchanged. Dropping
    a modality equals never having had it. The paper's multimodal descriptor A(u) is `fused.flatten(-2)`.

    Give `alpha`, or the amortised gate `pair_weight` and `pair_bias`, computed in the same pass:
    alpha[m, n] = sigmoid(<pair_weight[k, 0], f_m> + <pair_weight[k, 1], f_n> + pair_bias[k]), k the index of the
    ordered pair (m, n), n != m, in lexicographic order.

    Args:
        descriptors: `(..., M, d)`, M from 1 to 8, fp16, bf16, fp32 or fp64.
        alpha: `(..., M, M)` or, element-wise, `(..., M, M, d)`, dtype of the descriptors, meant to lie in [0, 1] (not
            checked). alpha[m, n] is the paper's alpha^m_n; the diagonal and pairs with an absent member are ignored.
        pair_weight: `(M (M - 1), 2, d)`, any floating dtype.
        pair_bias: `(M (M - 1),)`, any floating dtype.
        present: bool `(..., M)`, True = this sample has the modality; default all.
        backend: None = the best available | "triton" | "cuda" | "cpu" | "reference".

    Returns:
        fused `(..., M, d)` and the alpha used, `(..., M, M)` or `(..., M, M, d)`, 0 on the diagonal and on pairs with
        an absent member; both in the descriptors' dtype and differentiable.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what was expected.
        BackendUnavailableError: the named backend cannot run here.
    """
    without_autocast, (descriptors, alpha) = _autocast(descriptors, alpha)
    check_fusion(descriptors, alpha, pair_weight, pair_bias, present)
    name = choose_backend("adaptive_fusion", descriptors, backend, (descriptors, alpha, pair_weight, pair_bias))
    arguments = (descriptors, alpha, pair_weight, pair_bias, present)
    with without_autocast:
        if name == "reference":
            return reference_fusion(*arguments)
        return fused_fusion(*arguments, cuda_cpp=name == "cuda")


def interpolation_coefficients(
    a: Tensor, b: Tensor, grad_b: Tensor, epsilon: float, *, backend: str | None = None
) -> Tensor:
    """Interpolation coefficients in closed form (AMuSE, Eq. 6, from ALFA-Mix), element-wise in [0, 1].

    epsilon * ||a - b||_2 * grad_b / ||grad_b||_2 divided by (a - b), clipped to [0, 1]; 0 where that is undefined.

    Args:
        a, b: `(..., d)` descriptors of two modalities, fp16, bf16, fp32 or fp64.
        grad_b: `(..., d)`, the gradient of modality b's own loss at b.
        epsilon: the size of the step.
        backend: None = the best available | "triton" | "cuda" | "cpu" | "reference".

    Returns:
        `(..., d)` in the dtype of `a`; differentiable in a, b and grad_b where the clip is not active.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what was expected.
        BackendUnavailableError: the named backend cannot run here.
    """
    check_interpolation(a, b, grad_b, epsilon)
    name = choose_backend("interpolation_coefficients", a, backend, (a, b, grad_b))
    arguments = (a, b, grad_b, float(epsilon))
    without_autocast, _ = _autocast(a)
    with without_autocast:
        if name == "reference":
            return reference_interpolation(*arguments)
        return fused_interpolation(*arguments, cuda_cpp=name == "cuda")


def _attend(inputs: AttentionInputs, backend: str) -> tuple[Tensor, Tensor]:
    if backend == "reference":
        return reference_attention(inputs)
    return fused_attention(inputs, cuda_cpp=backend == "cuda")


# asked once, since torch.compile cannot trace the question in torch 2.11
_AUTOCAST_DEVICES = [d for d in ("cpu", "cuda", "mps", "xpu", "hpu") if torch.amp.is_autocast_available(d)]


def _autocast(*arguments: Any) -> tuple[AbstractContextManager, Any]:
    """Under autocast, fp32 tensors (also inside sequences) in the low precision that autocast asks for.

    Also a context without autocast: the ops choose their accumulation type themselves.
    """
    device = arguments[0].device.type if isinstance(arguments[0], Tensor) else "cpu"
    if device not in _AUTOCAST_DEVICES or not torch.is_autocast_enabled(device):
        return nullcontext(), arguments
    dtype = torch.get_autocast_dtype(device)

    def cast(argument: Any) -> Any:
        if isinstance(argument, Tensor):
            low = argument.is_floating_point() and argument.dtype != torch.float64
            return argument.to(dtype) if low else argument
        return [cast(entry) for entry in argument] if isinstance(argument, list | tuple) else argument

    return torch.autocast(device, enabled=False), tuple(cast(argument) for argument in arguments)
