# mypy: ignore-errors
# ruff: noqa: SIM102  (a compile-time condition encloses a run-time one)
"""Forward kernel of p2c_attention (paper Eq. 1): all streams of one tile of queries in one program."""

import triton
import triton.language as tl

from amuse_kernels.attention.triton.blocks import (
    LN_2,
    SIZES,
    dropout_of,
    kept_pairs,
    key_range,
    load_gate,
    load_groups,
    load_rows,
    locate,
    open_stream,
    refined,
    rematerialize,
    row_place,
    row_starts,
    store_rows,
    tile,
    tile_visibility,
    unpack_strides,
)

FAR_BELOW = tl.constexpr(-1e30)  # finite, so that a row without a visible key has weights of 0 and not NaN


@triton.jit(do_not_specialize=SIZES)
def attention_forward(
    out,  # (B, H, Lq, D)
    lse,  # (B, H, Lq, P), joint (B, H, Lq), contiguous
    query,
    keys,  # tuples of P
    values,
    gates,  # (B, H, P) fp32, or None
    key_masks,  # P pointers to uint8 (B, Lp), or None
    query_groups,  # int64 (B, Lq), or None
    key_groups,  # P pointers to int64 (B, Lp), or None
    seed,  # int64, or None without dropout
    query_starts,  # int32 (B + 1,), of packed samples; else None
    key_starts,  # P such pointers, or None
    out_strides,
    query_strides,
    key_strides,
    value_strides,
    gate_strides,
    mask_strides,
    lengths,
    heads,
    queries,  # the most that a sample has, as are `lengths`
    rows,  # queries of all packed samples
    masked,  # bit p: stream p has a key mask
    related,  # bit p: its relation is not "any"; None where all are
    different,  # bit p: its relation is "different"
    causal,  # bit p; None for no causal stream
    scale_log2,  # |softmax_scale| log2(e)
    keep_scale,  # 1 / (1 - dropout_p)
    drop_threshold,
    SIGN: tl.constexpr,  # of softmax_scale
    JOINT: tl.constexpr,
    PRECISION: tl.constexpr,
    UNIT: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Output and lse of one tile of queries of one (b, h)."""
    P: tl.constexpr = len(keys)
    tiles = tl.cdiv(queries, BLOCK_Q)
    bh = tl.program_id(0) // tiles
    first = tl.program_id(0) % tiles * BLOCK_Q
    b, h = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    at, queries = locate(query_starts, b, queries)
    if query_starts is not None:
        if first >= queries:
            return
    last = tl.minimum(first + BLOCK_Q, queries)
    o_q = first + tl.arange(0, BLOCK_Q)
    m_q = o_q < queries
    o_p = tl.arange(0, BLOCK_P)
    s_q = unpack_strides(query_strides, UNIT)
    b_q = load_rows(tile(query, s_q, at, h, o_q, BLOCK_D), m_q, D, BLOCK_D, True)
    tokens = (b_q, row_starts(query, s_q, at, h, o_q), m_q)
    g_q = load_groups(query_groups, b * queries if query_starts is None else at, o_q, m_q)

    dropout = dropout_of(seed, drop_threshold, bh)

    top = tl.full((BLOCK_Q,), FAR_BELOW, tl.float32)  # joint: largest score and sum of the streams so far
    total = tl.zeros((BLOCK_Q,), tl.float32)
    b_out = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    b_lse = tl.zeros((BLOCK_Q, BLOCK_P), tl.float32)  # of all streams, stored at once
    first_out = first
    for p in range(P):
        gate = load_gate(gates, gate_strides, b, h, p)
        key, s_k, value, s_v, at_k, length, sight = open_stream(
            p, b, keys, values, key_strides, value_strides, key_masks, mask_strides, key_groups, key_starts,
            lengths, masked, related, different, causal, UNIT
        )  # fmt: skip
        first_out = rematerialize(first_out, length)
        whole, end = key_range(sight, length, first, last)
        if JOINT:
            end = tl.where(gate > 0, end, 0)  # a closed stream must not set the pivot
        whole = tl.minimum(whole, end) // BLOCK_K * BLOCK_K
        b_max = tl.full((BLOCK_Q,), FAR_BELOW, tl.float32)
        b_sum = tl.zeros((BLOCK_Q,), tl.float32)
        b_acc = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)

        for start in range(0, whole, BLOCK_K):
            o_k = start + tl.arange(0, BLOCK_K)
            b_k = load_rows(tile(key, s_k, at_k, h, o_k, BLOCK_D), None, D, BLOCK_D, False)
            p_k = row_starts(key, s_k, at_k, h, o_k)
            b_w, decay, b_max, b_sum = weigh(tokens, b_k, p_k, None, None, scale_log2, b_max, b_sum, SIGN, D, PRECISION)
            if len(dropout) > 0:
                b_w = tl.where(kept_pairs(dropout, p, o_q, start, BLOCK_K), b_w, 0.0)
            b_v = load_rows(tile(value, s_v, at_k, h, o_k, BLOCK_D), None, D, BLOCK_D, False)
            b_acc = tl.dot(b_w.to(b_v.dtype), b_v, b_acc * decay[:, None], input_precision=PRECISION)

        for start in range(whole, end, BLOCK_K):
            o_k = start + tl.arange(0, BLOCK_K)
            m_k, visible, seen = tile_visibility(sight, o_q, m_q, g_q, o_k, end)
            if seen != 0:
                b_k = load_rows(tile(key, s_k, at_k, h, o_k, BLOCK_D), m_k, D, BLOCK_D, True)
                p_k = row_starts(key, s_k, at_k, h, o_k)
                b_w, decay, b_max, b_sum = weigh(
                    tokens, b_k, p_k, m_k, visible, scale_log2, b_max, b_sum, SIGN, D, PRECISION
                )
                if len(dropout) > 0:
                    b_w = tl.where(kept_pairs(dropout, p, o_q, start, BLOCK_K), b_w, 0.0)
                b_v = load_rows(tile(value, s_v, at_k, h, o_k, BLOCK_D), m_k, D, BLOCK_D, True)
                b_acc = tl.dot(b_w.to(b_v.dtype), b_v, b_acc * decay[:, None], input_precision=PRECISION)

        if JOINT:
            new = tl.maximum(top, b_max)
            decay, share = tl.exp2((top - new) * scale_log2), gate * tl.exp2((b_max - new) * scale_log2)
            b_out = b_out * decay[:, None] + b_acc * share[:, None]
            top, total = new, total * decay + b_sum * share
        else:
            factor, row_lse = finish(b_max * scale_log2, b_sum)
            b_out += b_acc * (gate * keep_scale * factor)[:, None]
            b_lse = tl.where(o_p[None, :] == p, row_lse[:, None], b_lse)

    o_q = first_out + tl.arange(0, BLOCK_Q)
    m_q = o_q < queries
    number, per_slice, before = row_place(query_starts, at, h, bh.to(tl.int64), queries, rows)
    if JOINT:
        factor, row_lse = finish(top * scale_log2, total)
        b_out *= (keep_scale * factor)[:, None]
        tl.store(lse + number * per_slice + before + o_q, row_lse, mask=m_q)
    else:
        p_lse = lse + (number * per_slice + before + o_q[:, None]) * P + o_p[None, :]
        tl.store(p_lse, b_lse, mask=m_q[:, None] & (o_p[None, :] < P))
    store_rows(tile(out, unpack_strides(out_strides, UNIT), at, h, o_q, BLOCK_D), b_out, m_q, D, BLOCK_D)


@triton.jit
def weigh(tokens, b_k, p_k, m_k, visible, scale_log2, b_max, b_sum, SIGN: tl.constexpr, D: tl.constexpr,
          PRECISION: tl.constexpr):  # fmt: skip
    """One step of the online softmax: weights, how much the previous ones decay, the new maximum and sum.

    The largest score is taken off before anything is rounded, so that its weight is exactly 1.
    """
    b_q, p_q, m_q = tokens
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # [BLOCK_Q, BLOCK_K]
    if SIGN != 1:
        b_s *= SIGN
    b_top = tl.max(b_s if visible is None else tl.where(visible, b_s, float("-inf")), 1)
    b_s = refined(b_s, b_top * scale_log2, p_q, m_q, p_k, m_k, SIGN, D, False, PRECISION)
    if visible is not None:
        b_s = tl.where(visible, b_s, float("-inf"))
    b_new = tl.maximum(b_max, tl.max(b_s, 1))
    b_w = tl.exp2((b_s - b_new[:, None]) * scale_log2)
    decay = tl.exp2((b_max - b_new) * scale_log2)
    return b_w, decay, b_new, b_sum * decay + tl.sum(b_w, 1)


@triton.jit
def finish(b_max, b_sum):
    """1 / sum and, with b_max in base 2, the lse; 0 and -inf in rows without a visible key."""
    empty = b_sum == 0.0
    safe = tl.where(empty, 1.0, b_sum)
    return tl.where(empty, 0.0, 1.0 / safe), tl.where(empty, float("-inf"), (b_max + tl.log2(safe)) * LN_2)
