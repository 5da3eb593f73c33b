"""The specification of p2c_attention (paper Eq. 1) in plain PyTorch: every kernel is tested against these functions.

They take inputs that `inputs` has validated, run on any device, in fp64 for fp64 inputs and in fp32 otherwise, can be
differentiated twice and traced, and materialise what the fused kernels never do: the (Lq x Lp) weights.
"""

import torch
from torch import Tensor

from amuse_kernels.attention.inputs import ANY, SAME, AttentionInputs
from amuse_kernels.attention.padding import PaddedInputs
from amuse_kernels.buffers import accumulation_dtype
from amuse_kernels.dropout import keep_mask


def p2c_attention(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """O = sum_p weights_p V_p.

    Returns:
        `(B, H, Lq, D)` in the query's dtype, stored as (B, Lq, H, D), and the lse, see `weights_and_lse`. Of packed
        samples these in a batch of 1.
    """
    if inputs.packed:
        padded = PaddedInputs.of(inputs)
        out, lse = (padded.queries.unpad(t, inputs.query.shape[2]) for t in p2c_attention(padded.inputs))
        return out, lse
    dtype = accumulation_dtype(inputs.query.dtype)
    weights, lse = weights_and_lse(inputs)
    out = torch.zeros_like(inputs.query, dtype=dtype)
    for p, (weight, value) in enumerate(zip(weights, inputs.values, strict=True)):
        visible = visible_pairs(inputs, p)
        part = weight @ _without_hidden(value, visible).to(dtype)
        out = out + torch.where(visible.any(-1, keepdim=True), part, 0.0)  # nor does its upstream gradient matter
    return out.to(inputs.query.dtype).transpose(1, 2).contiguous().transpose(1, 2), lse


def weights_and_lse(inputs: AttentionInputs) -> tuple[list[Tensor], Tensor]:
    """The attention weights with gates and dropout applied, and the log-sum-exp of the scores.

    With W_p = exp(S_p) on visible pairs and 0 elsewhere:
        per_source: g_p W_p / rowsum(W_p),               lse_p = log rowsum(W_p)
        joint:      g_p W_p / sum_q g_q rowsum(W_q),     lse = log sum_q g_q rowsum(W_q)

    Returns:
        P tensors `(B, H, Lq, Lp)` in the accumulation dtype; lse `(B, H, Lq, P)` or, joint, `(B, H, Lq)`, fp32 (fp64
        for fp64), -inf in rows that see no key, joint of no source whose gate is above 0.
    """
    query, gates = inputs.query, inputs.gates
    batch, heads, queries, _ = query.shape
    dtype = accumulation_dtype(query.dtype)
    # once, so that the gradients from all sources are added up before they are rounded
    inputs = inputs._replace(query=query.to(dtype))
    if gates is None:
        gates = query.new_ones((batch, heads, len(inputs.keys)), dtype=dtype)
    gate = [g[..., None] for g in gates.to(dtype).unbind(-1)]  # P x (B, H, 1), one factor per row

    scores = [_scores(inputs, p) for p in range(len(inputs.keys))]
    pivots = [_row_max(score) for score in scores]
    if inputs.joint:
        # a source whose gate is 0 must not set the pivot, or the others could underflow
        open_pivots = [torch.where(g > 0, pivot, -torch.inf) for g, pivot in zip(gate, pivots, strict=True)]
        pivots = [torch.stack(open_pivots).amax(0)] * len(scores)
    # rows without a key to see weigh 0 everywhere, joint also with keys of closed sources in sight
    pivots = [torch.where(pivot == -torch.inf, torch.inf, pivot) for pivot in pivots]
    # only scores of a source with gate 0 can exceed the pivot; the clamp keeps that gate's gradient finite
    exps = [torch.exp((s - pivot[..., None]).clamp(max=80.0)) for s, pivot in zip(scores, pivots, strict=True)]
    sums = [e.sum(-1) for e in exps]  # (B, H, Lq)

    if inputs.joint:
        total = torch.stack([g * s for g, s in zip(gate, sums, strict=True)]).sum(0)
        weights = [(g / _nonzero(total))[..., None] * e for g, e in zip(gate, exps, strict=True)]
        lse = _log(total, pivots[0])
    else:
        weights = [(g / _nonzero(s))[..., None] * e for g, s, e in zip(gate, sums, exps, strict=True)]
        lse = torch.stack([_log(s, pivot) for s, pivot in zip(sums, pivots, strict=True)], dim=-1)

    if inputs.dropout_p > 0:
        assert inputs.seed is not None
        for p, weight in enumerate(weights):
            kept = keep_mask(inputs.seed, inputs.dropout_p, (batch, heads, queries, weight.shape[-1]), p)
            weights[p] = weight * kept / (1 - inputs.dropout_p)
    return weights, lse


def visible_pairs(inputs: AttentionInputs, p: int) -> Tensor:
    """Which keys of source p each query may attend to, bool `(B, 1, Lq, Lp)`."""
    query, key = inputs.query, inputs.keys[p]
    queries, keys = query.shape[2], key.shape[2]
    visible = query.new_ones((query.shape[0], 1, queries, keys), dtype=torch.bool)
    key_mask, relation = inputs.key_masks[p], inputs.relations[p]
    if key_mask is not None:
        visible = visible & key_mask[:, None, None, :]
    if relation != ANY:
        query_group, key_group = inputs.query_groups, inputs.key_groups[p]
        assert query_group is not None
        assert key_group is not None
        same = query_group[:, None, :, None] == key_group[:, None, None, :]
        visible = visible & (same if relation == SAME else ~same)
    if inputs.causal[p]:
        position = torch.arange(queries, device=query.device)
        visible = visible & (position[None, :] <= position[:, None])
    return visible


def _scores(inputs: AttentionInputs, p: int) -> Tensor:
    """S_p = scale Q K_p^T on visible pairs, -inf elsewhere, `(B, H, Lq, Lp)`."""
    dtype = accumulation_dtype(inputs.query.dtype)
    visible = visible_pairs(inputs, p)
    key = _without_hidden(inputs.keys[p], visible).to(dtype)
    query = inputs.query.to(dtype).masked_fill(~visible.any(-1, keepdim=True), 0.0)
    scores = inputs.softmax_scale * (query @ key.transpose(-1, -2))
    return torch.where(visible, scores, -torch.inf)


def _without_hidden(tokens: Tensor, visible: Tensor) -> Tensor:
    """Keys or values `(B, H, Lp, D)` with those that no query sees set to 0, since 0 times NaN is NaN."""
    return tokens.masked_fill(~visible.any(-2)[..., None], 0.0)


def _row_max(scores: Tensor) -> Tensor:
    """Row maximum as a constant: the softmax does not depend on its pivot, so no gradient needs to pass."""
    if scores.shape[-1] == 0:
        return scores.new_full(scores.shape[:-1], -torch.inf)
    return scores.detach().amax(-1)


def _nonzero(total: Tensor) -> Tensor:
    return torch.where(total == 0, 1.0, total)


def _log(total: Tensor, pivot: Tensor) -> Tensor:
    return torch.where(total == 0, -torch.inf, pivot + torch.log(_nonzero(total)))
