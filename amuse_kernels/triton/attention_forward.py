# mypy: ignore-errors
"""Forward kernel of p2c_attention (paper Eq. 1): all streams of one tile of queries in one program."""

import triton
import triton.language as tl

from amuse_kernels.triton.attention_tile import (
    LN_2,
    flag,
    key_mask,
    key_range,
    kept_pairs,
    load_rows,
    pick,
    pick_size,
    pick_strides,
    store_rows,
    tile,
    unpack_strides,
    visible_pairs,
)

FAR_BELOW = tl.constexpr(-1e30)  # finite, so that a row without a visible key has weights of 0 and not NaN


@triton.jit(do_not_specialize=("heads", "queries", "related_bits", "different", "causal", "masked", "drop_threshold"))
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
    out_strides,
    query_strides,
    key_strides,
    value_strides,
    gate_strides,
    mask_strides,
    lengths,
    heads,
    queries,
    masked,  # bit p: stream p has a key mask
    related_bits,  # bit p: same or different group only, or None
    different,  # bit p
    causal,  # bit p
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
    P: tl.constexpr = len(keys)
    tiles = tl.cdiv(queries, BLOCK_Q)
    bh = tl.program_id(0) // tiles
    first = tl.program_id(0) % tiles * BLOCK_Q
    last = tl.minimum(first + BLOCK_Q, queries)
    b, h = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    o_q = first + tl.arange(0, BLOCK_Q)
    m_q = o_q < queries
    o_p = tl.arange(0, BLOCK_P)
    b_q = load_rows(tile(query, unpack_strides(query_strides, UNIT), b, h, o_q, BLOCK_D), m_q, D, BLOCK_D, True)
    if SIGN != 1:
        b_q = (b_q * SIGN).to(b_q.dtype)
    g_q = None
    if query_groups is not None:
        g_q = tl.load(query_groups + b * queries + o_q, mask=m_q, other=0)[:, None]

    b_max = tl.full((BLOCK_Q,), FAR_BELOW, tl.float32)  # log2 of the largest weight
    b_sum = tl.zeros((BLOCK_Q,), tl.float32)
    b_acc = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    b_out = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    b_lse = tl.zeros((BLOCK_Q, BLOCK_P), tl.float32)  # of all streams, stored at once
    for p in range(P):
        gate = 1.0
        if gates is not None:
            s_b, s_h, s_p = unpack_strides(gate_strides, 1)
            gate = tl.load(gates + b * s_b + h * s_h + p * s_p)
        bias = tl.log2(gate) if JOINT else 0.0
        length = pick_size(lengths, p)
        related, differs, is_causal, has_mask = flag(related_bits, p), flag(different, p), flag(causal, p), flag(masked, p)
        mask, g_keys = None, None
        if key_masks is not None:
            mask = pick(key_masks, p) + b * pick_size(mask_strides, p)
        if query_groups is not None:
            g_keys = pick(key_groups, p) + b * length
        whole, end = key_range(mask, has_mask, related, is_causal, length, first, last)
        if JOINT:
            end = tl.where(gate > 0, end, 0)  # a closed stream must not set the pivot
        whole = tl.minimum(whole, end) // BLOCK_K * BLOCK_K
        key, s_k = pick(keys, p), pick_strides(key_strides, p, UNIT)
        value, s_v = pick(values, p), pick_strides(value_strides, p, UNIT)

        for start in range(0, whole, BLOCK_K):
            o_k = start + tl.arange(0, BLOCK_K)
            b_k = load_rows(tile(key, s_k, b, h, o_k, BLOCK_D), None, D, BLOCK_D, False)
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # [BLOCK_Q, BLOCK_K]
            b_new = tl.maximum(b_max, tl.max(b_s, 1) * scale_log2 + bias)
            b_w = tl.exp2(b_s * scale_log2 - (b_new - bias)[:, None])
            decay = tl.exp2(b_max - b_new)
            b_sum = b_sum * decay + tl.sum(b_w, 1)
            if seed is not None:
                b_w = tl.where(kept_pairs(seed, drop_threshold, bh, p, o_q, start, BLOCK_K), b_w, 0.0)
            b_v = load_rows(tile(value, s_v, b, h, o_k, BLOCK_D), None, D, BLOCK_D, False)
            b_acc = tl.dot(b_w.to(b_v.dtype), b_v, b_acc * decay[:, None], input_precision=PRECISION)
            b_max = b_new

        for start in range(whole, end, BLOCK_K):
            o_k = start + tl.arange(0, BLOCK_K)
            m_k = key_mask(mask, has_mask, o_k, end)
            visible = visible_pairs(o_q[:, None], m_q[:, None], o_k[None, :], m_k[None, :], g_q, g_keys, end, related, differs, is_causal)
            if query_groups is not None:
                m_k = tl.max(visible.to(tl.int32), 0) != 0
            seen = 1
            if (query_groups is not None) or (key_masks is not None):
                seen = tl.max(m_k.to(tl.int32), 0)
            if seen != 0:
                b_k = load_rows(tile(key, s_k, b, h, o_k, BLOCK_D), m_k, D, BLOCK_D, True)
                b_v = load_rows(tile(value, s_v, b, h, o_k, BLOCK_D), m_k, D, BLOCK_D, True)
                b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
                b_s = tl.where(visible, b_s, float("-inf"))
                b_new = tl.maximum(b_max, tl.max(b_s, 1) * scale_log2 + bias)
                b_w = tl.exp2(b_s * scale_log2 - (b_new - bias)[:, None])
                decay = tl.exp2(b_max - b_new)
                b_sum = b_sum * decay + tl.sum(b_w, 1)
                if seed is not None:
                    b_w = tl.where(kept_pairs(seed, drop_threshold, bh, p, o_q, start, BLOCK_K), b_w, 0.0)
                b_acc = tl.dot(b_w.to(b_v.dtype), b_v, b_acc * decay[:, None], input_precision=PRECISION)
                b_max = b_new

        if not JOINT:
            factor = tl.where(b_sum == 0.0, 0.0, gate * keep_scale / b_sum)
            b_out += b_acc * factor[:, None]
            row_lse = tl.where(b_sum == 0.0, float("-inf"), (b_max + tl.log2(b_sum)) * LN_2)
            b_lse = tl.where(o_p[None, :] == p, row_lse[:, None], b_lse)
            b_max = tl.full((BLOCK_Q,), FAR_BELOW, tl.float32)
            b_sum = tl.zeros((BLOCK_Q,), tl.float32)
            b_acc = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)

    if JOINT:
        b_out = b_acc * tl.where(b_sum == 0.0, 0.0, keep_scale / b_sum)[:, None]
        row_lse = tl.where(b_sum == 0.0, float("-inf"), (b_max + tl.log2(b_sum)) * LN_2)
        tl.store(lse + bh.to(tl.int64) * queries + o_q, row_lse, mask=m_q)
    else:
        p_lse = lse + (bh.to(tl.int64) * queries + o_q[:, None]) * P + o_p[None, :]
        tl.store(p_lse, b_lse, mask=m_q[:, None] & (o_p[None, :] < P))
    store_rows(tile(out, unpack_strides(out_strides, UNIT), b, h, o_q, BLOCK_D), b_out, m_q, D, BLOCK_D)
