# mypy: ignore-errors
# ruff: noqa: RUF059, SIM102  (a compile-time condition encloses a run-time one)
"""Backward kernels of p2c_attention, without atomics.

With W = exp(S - lse) the weights of a stream without its gate, and dW = dO V^T, after dropout:
    per_source   delta_i = rowsum(W dW)                 dS = W (g (dW - delta_i) + dlse_i)      dg = sum_i delta_i
    joint        delta_i = sum_p g_p rowsum(W_p dW_p)   dS = g W (dW - delta_i + dlse_i)        dg = sum_ij dS / g
    dQ = scale dS K,   dK = scale dS^T Q,   dV = g W^T dO
delta is not taken from <dO, O>, which would carry the rounding of a 16-bit O. exp(S - lse) would not add up to 1 where
lse is large and rounded: W is divided by its sum, which comes with delta.

One tile of queries: one launch gives everything. More: `attention_backward_queries` gives dQ and leaves shift, 1 / sum,
delta and the rows of dg in buffers, from which `attention_backward_keys` takes dK, dV and dg.
"""

import triton
import triton.language as tl

from amuse_kernels.attention.triton.blocks import (
    LOG2_E,
    SIZES,
    any_open,
    column,
    dropout_of,
    kept_pairs,
    key_mask,
    key_range,
    load_gate,
    load_groups,
    load_rows,
    locate,
    open_stream,
    pick,
    pick_strides,
    refined,
    rematerialize,
    row_place,
    row_starts,
    store_rows,
    tile,
    tile_visibility,
    unpack_strides,
    visible_pairs,
)

# Only weights of a stream whose gate is 0 can reach it; it keeps the gradient of that gate finite.
JOINT_LIMIT = tl.constexpr(80 * 1.4426950408889634)


@triton.jit
def weights(b_q, p_q, m_q, b_do, b_k, p_k, m_k, b_v, shift, visible, kept, scale_log2, keep_scale,
            JOINT: tl.constexpr, D: tl.constexpr, TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """W before it is divided by its sum, and dW of a tile, [BLOCK_Q, BLOCK_K] or transposed."""
    if b_q.dtype == tl.float32:
        # products of fp32 take whole rows in registers: none before the barrier that the tiles just loaded wait for
        tl.debug_barrier()
    if TRANSPOSED:
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)
        b_dw = tl.dot(b_v, tl.trans(b_do), input_precision=PRECISION)
    else:
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        b_dw = tl.dot(b_do, tl.trans(b_v), input_precision=PRECISION)
    b_s = refined(b_s, shift, p_q, m_q, p_k, m_k, 1, D, TRANSPOSED, PRECISION)
    shift = shift[None, :] if TRANSPOSED else shift[:, None]
    b_x = tl.fma(b_s, scale_log2, -shift)  # one rounding, of the small difference
    if JOINT:
        b_x = tl.where(b_x > JOINT_LIMIT, JOINT_LIMIT, b_x)  # a NaN stays a NaN
    elif visible is not None:
        b_x = tl.where(b_x > 1.0, 1.0, b_x)  # shift -inf means a weight of exactly 2
    b_w = tl.exp2(b_x)
    if visible is not None:
        b_w = tl.where(visible, b_w, 0.0)
        b_dw = tl.where(visible, b_dw, 0.0)
    if kept is not None:
        b_dw = tl.where(kept, b_dw * keep_scale, 0.0)
    return b_w, b_dw


@triton.jit
def product(b_x, b_y, dtype: tl.constexpr):
    """x y for a sum over lanes.

    The tiles of fp32 may give a thread one element of a row; the compiler would contract a plain product with the first
    addition, and lanes that hold copies of the sum would round it differently. It cannot contract a sum.
    """
    return tl.fma(b_x, b_y, 0.0) if dtype == tl.float32 else b_x * b_y


@triton.jit
def load_shift(lse, grad_lse, offsets, m):
    """lse in base 2, +inf where nothing is visible, so that weights come out as 0; and the gradient of lse."""
    b_lse = tl.load(lse + offsets, mask=m, other=float("-inf"))
    empty = b_lse == float("-inf")
    b_dlse = tl.zeros(b_lse.shape, tl.float32)
    if grad_lse is not None:
        b_dlse = tl.where(empty, 0.0, tl.load(grad_lse + offsets, mask=m, other=0.0))
    return tl.where(empty, float("inf"), b_lse * LOG2_E), b_dlse


@triton.jit
def sum_products(tokens, stream, whole, end, shift, dropout, h, p, scale_log2, keep_scale,
                 JOINT: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
                 BLOCK_K: tl.constexpr):  # fmt: skip
    """rowsum(W dW) and rowsum(W) over a stream, and `shift`, per_source -inf where a row sees one key only.

    The only key of a row has weight 1 and no gradient, exactly, whatever lse was rounded to.
    """
    b_q, p_q, b_do, o_q, m_q, g_q = tokens
    key, s_k, value, s_v, at_k, length, sight = stream
    b_sum, b_total = tl.zeros(shift.shape, tl.float32), tl.zeros(shift.shape, tl.float32)
    b_only = tl.zeros(shift.shape, tl.float32)
    count = tl.zeros(shift.shape, tl.int32) + tl.where(whole > 0, 2, 0)
    for start in range(0, whole, BLOCK_K):
        o_k = start + tl.arange(0, BLOCK_K)
        b_k = load_rows(tile(key, s_k, at_k, h, o_k, BLOCK_D), None, D, BLOCK_D, False)
        b_v = load_rows(tile(value, s_v, at_k, h, o_k, BLOCK_D), None, D, BLOCK_D, False)
        kept = kept_pairs(dropout, p, o_q, start, BLOCK_K) if len(dropout) > 0 else None
        p_k = row_starts(key, s_k, at_k, h, o_k)
        b_w, b_dw = weights(
            b_q, p_q, m_q, b_do, b_k, p_k, None, b_v, shift, None, kept, scale_log2, keep_scale,
            JOINT, D, False, PRECISION
        )  # fmt: skip
        b_sum += tl.sum(product(b_w, b_dw, b_q.dtype), 1)
        b_total += tl.sum(b_w, 1)
    for start in range(whole, end, BLOCK_K):
        o_k = start + tl.arange(0, BLOCK_K)
        m_k, visible, seen = tile_visibility(sight, o_q, m_q, g_q, o_k, end)
        if seen != 0:
            b_k = load_rows(tile(key, s_k, at_k, h, o_k, BLOCK_D), m_k, D, BLOCK_D, True)
            b_v = load_rows(tile(value, s_v, at_k, h, o_k, BLOCK_D), m_k, D, BLOCK_D, True)
            kept = kept_pairs(dropout, p, o_q, start, BLOCK_K) if len(dropout) > 0 else None
            p_k = row_starts(key, s_k, at_k, h, o_k)
            b_w, b_dw = weights(
                b_q, p_q, m_q, b_do, b_k, p_k, m_k, b_v, shift, visible, kept, scale_log2, keep_scale,
                JOINT, D, False, PRECISION
            )  # fmt: skip
            b_sum += tl.sum(product(b_w, b_dw, b_q.dtype), 1)
            b_total += tl.sum(b_w, 1)
            b_only += tl.sum(b_dw, 1)
            count += tl.sum(visible.to(tl.int32), 1)
    if not JOINT:
        b_sum, b_total = tl.where(count == 1, 2.0 * b_only, b_sum), tl.where(count == 1, 2.0, b_total)
        shift = tl.where(count == 1, float("-inf"), shift)
    return b_sum, b_total, shift


@triton.jit
def inverse(b_sum):
    """1 / sum, 0 in rows that see nothing."""
    return tl.where(b_sum == 0.0, 0.0, 1.0 / tl.where(b_sum == 0.0, 1.0, b_sum))


@triton.jit
def seeing_rows(block, shift, sight):
    """Rows of queries or dO with 0 in those that see no key, as 0 times NaN is NaN.

    Without relations and causality either all rows see keys or none does, and nothing is multiplied.
    """
    mask, relation, causal = sight
    if len(relation) > 0 or len(causal) > 0:
        block = tl.where((shift == float("inf"))[:, None], 0.0, block)
    return block


@triton.jit
def grad_scores(b_w, b_dw, gate, delta, dlse, JOINT: tl.constexpr, dtype: tl.constexpr):
    """dS, and the rows that add up to the gate's gradient."""
    if JOINT:
        b_t = product(b_w, b_dw - (delta - dlse), dtype)
        return b_t * gate, b_t
    else:
        return b_w * (gate * (b_dw - delta) + dlse), b_w * b_dw


@triton.jit
def value_weights(b_w, kept, gate, JOINT: tl.constexpr):
    """The factors of dO in dV. The gate comes after the product; joint before, as a closed stream's W is huge."""
    if JOINT:
        b_w = b_w * gate
    if kept is not None:
        b_w = tl.where(kept, b_w, 0.0)
    return b_w


@triton.jit(do_not_specialize=SIZES)
def attention_backward_queries(
    grad_query,
    grad_keys,  # tuples of P, None unless ALL
    grad_values,
    grad_gates,  # (B, H, P) contiguous; None unless ALL and gates
    shifts,  # (B, H, P, Lq), joint (B, H, Lq); None if ALL, as the next three
    inverses,  # likewise
    deltas,
    gate_rows,  # (B, H, P, Lq), per_source the same as deltas
    grad_out,
    lse,
    grad_lse,  # contiguous, or None
    query,
    keys,
    values,
    gates,
    key_masks,
    query_groups,
    key_groups,
    seed,
    query_starts,
    key_starts,
    grad_query_strides,
    grad_key_strides,
    grad_value_strides,
    grad_out_strides,
    query_strides,
    key_strides,
    value_strides,
    gate_strides,
    mask_strides,
    lengths,
    heads,
    queries,
    rows,
    masked,
    related,
    different,
    causal,
    softmax_scale,
    scale_log2,  # softmax_scale log2(e)
    keep_scale,
    drop_threshold,
    ALL: tl.constexpr,  # one tile holds all queries: gradients of keys, values and gates too
    JOINT: tl.constexpr,
    PRECISION: tl.constexpr,
    UNIT: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """dQ of one tile of queries; with ALL every gradient of one (b, h), else what `attention_backward_keys` needs."""
    P: tl.constexpr = len(keys)
    bh, first = tl.program_id(0), 0
    if not ALL:
        tiles = tl.cdiv(queries, BLOCK_Q)
        first = bh % tiles * BLOCK_Q
        bh = bh // tiles
    b, h, bh64 = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64), bh.to(tl.int64)
    at, queries = locate(query_starts, b, queries)
    if query_starts is not None and not ALL:
        if first >= queries:
            return
    last = tl.minimum(first + BLOCK_Q, queries)
    number, per_slice, before = row_place(query_starts, at, h, bh64, queries, rows)
    o_group = b * queries if query_starts is None else at
    o_q = first + tl.arange(0, BLOCK_Q)
    m_q = o_q < queries
    o_p = tl.arange(0, BLOCK_P)
    s_q = unpack_strides(query_strides, UNIT)
    b_q, p_q = (
        load_rows(tile(query, s_q, at, h, o_q, BLOCK_D), m_q, D, BLOCK_D, True),
        row_starts(query, s_q, at, h, o_q),
    )
    b_do = load_rows(tile(grad_out, unpack_strides(grad_out_strides, UNIT), at, h, o_q, BLOCK_D), m_q, D, BLOCK_D, True)
    g_q = load_groups(query_groups, o_group, o_q, m_q)
    tokens = (b_q, p_q, b_do, o_q, m_q, g_q)
    dropout = dropout_of(seed, drop_threshold, bh)
    if JOINT:
        shift, dlse = load_shift(lse, grad_lse, number * per_slice + before + o_q, m_q)
    else:
        o_lse = (number * per_slice + before + o_q[:, None]) * P + o_p[None, :]
        b_shift, b_dlse = load_shift(lse, grad_lse, o_lse, m_q[:, None] & (o_p[None, :] < P))
    b_dq = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    delta, inv = tl.zeros((BLOCK_Q,), tl.float32), tl.zeros((BLOCK_Q,), tl.float32)
    first_out = first

    if JOINT:
        some_open = any_open(gates, gate_strides, b, h, P)
        for p in range(P):
            gate = load_gate(gates, gate_strides, b, h, p)
            stream = open_stream(
                p, b, keys, values, key_strides, value_strides, key_masks, mask_strides, key_groups, key_starts,
                lengths, masked, related, different, causal, UNIT
            )  # fmt: skip
            whole, end = key_range(stream[6], stream[5], first, last)
            end = tl.where(gate > 0, end, 0)
            whole = tl.minimum(whole, end) // BLOCK_K * BLOCK_K
            b_products, b_total, _ = sum_products(
                tokens, stream, whole, end, shift, dropout, h, p,
                scale_log2, keep_scale, JOINT, PRECISION, D, BLOCK_D, BLOCK_K
            )  # fmt: skip
            delta += gate * b_products
            inv += gate * b_total
        inv = inverse(inv)
        delta *= inv
        if not ALL:
            o_row = number * per_slice + before + o_q
            tl.store(deltas + o_row, delta - dlse, mask=m_q)
            tl.store(shifts + o_row, shift, mask=m_q)
            tl.store(inverses + o_row, inv, mask=m_q)

    for p in range(P):
        gate = load_gate(gates, gate_strides, b, h, p)
        stream = open_stream(
            p, b, keys, values, key_strides, value_strides, key_masks, mask_strides, key_groups, key_starts,
            lengths, masked, related, different, causal, UNIT
        )  # fmt: skip
        key, s_k, value, s_v, at_k, length, sight = stream
        first_out = rematerialize(first_out, length)
        whole, end = key_range(sight, length, first, last)
        if JOINT:
            end = tl.where(some_open, end, 0)
        whole = tl.minimum(whole, end) // BLOCK_K * BLOCK_K
        single_tile = end <= BLOCK_K
        if not JOINT:
            shift, dlse = column(b_shift, p, BLOCK_P), column(b_dlse, p, BLOCK_P)
            # a stream of one tile gets its delta on the way
            delta, inv, shift = sum_products(
                tokens, stream, tl.where(single_tile, 0, whole), tl.where(single_tile, 0, end), shift, dropout, h, p,
                scale_log2, keep_scale, JOINT, PRECISION, D, BLOCK_D, BLOCK_K
            )  # fmt: skip
            inv = inverse(inv)
            delta *= inv
        b_gate = tl.zeros((BLOCK_Q,), tl.float32)
        value_scale = keep_scale if JOINT else keep_scale * gate
        if ALL:
            b_q_seeing, b_do_seeing = seeing_rows(b_q, shift, sight), seeing_rows(b_do, shift, sight)
            s_dk, s_dv = pick_strides(grad_key_strides, p, UNIT), pick_strides(grad_value_strides, p, UNIT)
            grad_key, grad_value = pick(grad_keys, p), pick(grad_values, p)

        for MASKED in tl.static_range(2):
            for start in range(whole if MASKED else 0, (length if ALL else end) if MASKED else whole, BLOCK_K):
                o_k = start + tl.arange(0, BLOCK_K)
                if MASKED:
                    m_k, visible, seen = tile_visibility(sight, o_q, m_q, g_q, o_k, end)
                else:
                    m_k, visible, seen = None, None, 1
                if ALL:
                    b_dk = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
                    b_dv = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
                if seen != 0:
                    b_k = load_rows(tile(key, s_k, at_k, h, o_k, BLOCK_D), m_k, D, BLOCK_D, MASKED)
                    b_v = load_rows(tile(value, s_v, at_k, h, o_k, BLOCK_D), m_k, D, BLOCK_D, MASKED)
                    kept = kept_pairs(dropout, p, o_q, start, BLOCK_K) if len(dropout) > 0 else None
                    if MASKED and not JOINT:
                        count = tl.sum(visible.to(tl.int32), 1)
                        shift = tl.where(single_tile & (count == 1), float("-inf"), shift)
                    p_k = row_starts(key, s_k, at_k, h, o_k)
                    b_w, b_dw = weights(
                        b_q, p_q, m_q, b_do, b_k, p_k, m_k, b_v, shift, visible, kept, scale_log2, keep_scale,
                        JOINT, D, False, PRECISION
                    )  # fmt: skip
                    if not JOINT:
                        if single_tile:
                            inv = inverse(tl.sum(b_w, 1))
                            delta = tl.sum(product(b_w, b_dw, b_q.dtype), 1) * inv
                    b_w *= inv[:, None]
                    b_ds, b_t = grad_scores(b_w, b_dw, gate, delta[:, None], dlse[:, None], JOINT, b_q.dtype)
                    if JOINT:
                        b_gate += tl.sum(b_t, 1)
                    b_ds = b_ds.to(b_k.dtype)
                    b_dq = tl.dot(b_ds, b_k, b_dq, input_precision=PRECISION)
                    if ALL:
                        b_dk = tl.dot(tl.trans(b_ds), b_q_seeing, input_precision=PRECISION)
                        b_w = value_weights(b_w, kept, gate, JOINT).to(b_v.dtype)
                        b_dv = tl.dot(tl.trans(b_w), b_do_seeing, input_precision=PRECISION)
                if ALL:
                    p_dk, p_dv = (
                        tile(grad_key, s_dk, at_k, h, o_k, BLOCK_D),
                        tile(grad_value, s_dv, at_k, h, o_k, BLOCK_D),
                    )
                    store_rows(p_dk, b_dk * softmax_scale, o_k < length, D, BLOCK_D)
                    store_rows(p_dv, b_dv * value_scale, o_k < length, D, BLOCK_D)

        if not JOINT:
            b_gate = delta
        if ALL:
            if grad_gates is not None:
                tl.store(grad_gates + bh64 * P + p, tl.sum(b_gate, 0))
        else:
            o_row = (number * P + p) * per_slice + before + o_q
            if not JOINT:
                tl.store(shifts + o_row, shift, mask=m_q)
                tl.store(inverses + o_row, inv, mask=m_q)
            tl.store(gate_rows + o_row, b_gate, mask=m_q)

    o_q = first_out + tl.arange(0, BLOCK_Q)
    p_dq = tile(grad_query, unpack_strides(grad_query_strides, UNIT), at, h, o_q, BLOCK_D)
    store_rows(p_dq, b_dq * softmax_scale, o_q < queries, D, BLOCK_D)


@triton.jit(do_not_specialize=(*SIZES, "tiles"))
def attention_backward_keys(
    grad_keys,
    grad_values,
    grad_gates,
    shifts,
    inverses,
    deltas,
    gate_rows,
    grad_out,
    grad_lse,
    query,
    keys,
    values,
    gates,
    key_masks,
    query_groups,
    key_groups,
    seed,
    query_starts,
    key_starts,
    grad_key_strides,
    grad_value_strides,
    grad_out_strides,
    query_strides,
    key_strides,
    value_strides,
    gate_strides,
    mask_strides,
    lengths,
    heads,
    queries,
    rows,
    masked,
    related,
    different,
    causal,
    softmax_scale,
    scale_log2,
    keep_scale,
    drop_threshold,
    tiles,  # of keys of all streams of one (b, h); a stream without keys counts as one tile
    JOINT: tl.constexpr,
    PRECISION: tl.constexpr,
    UNIT: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """dK and dV of one tile of keys; the first tile of a stream adds up dg."""
    P: tl.constexpr = len(keys)
    bh = tl.program_id(0) // tiles
    which = tl.program_id(0) % tiles
    p, before, after = 0, 0, 0
    for i in tl.static_range(P - 1):
        after += tl.maximum(tl.cdiv(lengths[i] >> 2, BLOCK_K), 1)
        p = tl.where(which >= after, i + 1, p)
        before = tl.where(which >= after, after, before)
    start = (which - before) * BLOCK_K
    b, h, bh64 = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64), bh.to(tl.int64)
    at, queries = locate(query_starts, b, queries)
    number, per_slice, skipped = row_place(query_starts, at, h, bh64, queries, rows)
    row = (number if JOINT else number * P + p) * per_slice + skipped
    gate_row = (number * P + p) * per_slice + skipped
    o_group = b * queries if query_starts is None else at

    if grad_gates is not None:
        if start == 0:
            b_gate = tl.zeros((BLOCK_Q,), tl.float32)
            for first in range(0, queries, BLOCK_Q):
                o_q = first + tl.arange(0, BLOCK_Q)
                b_gate += tl.load(gate_rows + gate_row + o_q, mask=o_q < queries, other=0.0)
            tl.store(grad_gates + bh64 * P + p, tl.sum(b_gate, 0))

    gate = load_gate(gates, gate_strides, b, h, p)
    key, s_k, value, s_v, at_k, length, sight = open_stream(
        p, b, keys, values, key_strides, value_strides, key_masks, mask_strides, key_groups, key_starts,
        lengths, masked, related, different, causal, UNIT
    )  # fmt: skip
    if key_starts is not None:
        if start >= length:
            return
    mask, relation, is_causal = sight
    o_k = start + tl.arange(0, BLOCK_K)
    m_k = key_mask(sight, o_k, length)
    b_k = load_rows(tile(key, s_k, at_k, h, o_k, BLOCK_D), m_k, D, BLOCK_D, True)
    b_v = load_rows(tile(value, s_v, at_k, h, o_k, BLOCK_D), m_k, D, BLOCK_D, True)
    b_dk = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    b_dv = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    dropout = dropout_of(seed, drop_threshold, bh)
    s_q, s_do = unpack_strides(query_strides, UNIT), unpack_strides(grad_out_strides, UNIT)

    # queries of [low, whole) see some of the keys, those of [whole, high) all
    low, whole, high = 0, 0, queries
    if len(is_causal) > 0:
        low = tl.where(is_causal[0], start // BLOCK_Q * BLOCK_Q, low)
        whole = tl.where(is_causal[0], tl.cdiv(start + BLOCK_K - 1, BLOCK_Q) * BLOCK_Q, whole)
    whole = tl.where(tl.min(m_k.to(tl.int32), 0) != 0, tl.minimum(whole, queries), queries)
    if len(relation) > 0:
        whole = tl.where(relation[1], queries, whole)
    if JOINT:
        high = tl.where(any_open(gates, gate_strides, b, h, P), high, 0)
    if len(mask) > 0:
        high = tl.where(tl.max(m_k.to(tl.int32), 0) != 0, high, 0)
    for MASKED in tl.static_range(2):
        for first in range(low if MASKED else whole, tl.minimum(whole, high) if MASKED else high, BLOCK_Q):
            o_q = first + tl.arange(0, BLOCK_Q)
            m_q = o_q < queries
            b_q = load_rows(tile(query, s_q, at, h, o_q, BLOCK_D), m_q, D, BLOCK_D, True)
            b_do = load_rows(tile(grad_out, s_do, at, h, o_q, BLOCK_D), m_q, D, BLOCK_D, True)
            shift = tl.load(shifts + row + o_q, mask=m_q, other=float("inf"))
            inv = tl.load(inverses + row + o_q, mask=m_q, other=0.0)
            delta = tl.load(deltas + row + o_q, mask=m_q, other=0.0)
            dlse = tl.zeros((BLOCK_Q,), tl.float32)
            if (grad_lse is not None) and (not JOINT):
                o_lse = (number * per_slice + skipped + o_q) * P + p
                dlse = tl.where(shift == float("inf"), 0.0, tl.load(grad_lse + o_lse, mask=m_q, other=0.0))
            visible = None
            if MASKED:
                g_q = load_groups(query_groups, o_group, o_q, m_q)[None, :]
                visible = visible_pairs(sight, o_q[None, :], m_q[None, :], g_q, o_k[:, None], m_k[:, None], length)
            kept = tl.trans(kept_pairs(dropout, p, o_q, start, BLOCK_K)) if len(dropout) > 0 else None
            p_q, p_k = row_starts(query, s_q, at, h, o_q), row_starts(key, s_k, at_k, h, o_k)
            b_w, b_dw = weights(
                b_q, p_q, m_q, b_do, b_k, p_k, m_k, b_v, shift, visible, kept, scale_log2, keep_scale,
                JOINT, D, True, PRECISION
            )  # fmt: skip
            b_w *= inv[None, :]
            b_ds, _ = grad_scores(b_w, b_dw, gate, delta[None, :], dlse[None, :], JOINT, b_q.dtype)
            b_dk = tl.dot(b_ds.to(b_q.dtype), seeing_rows(b_q, shift, sight), b_dk, input_precision=PRECISION)
            b_w = value_weights(b_w, kept, gate, JOINT).to(b_do.dtype)
            b_dv = tl.dot(b_w, seeing_rows(b_do, shift, sight), b_dv, input_precision=PRECISION)

    value_scale = keep_scale if JOINT else keep_scale * gate
    p_dk = tile(pick(grad_keys, p), pick_strides(grad_key_strides, p, UNIT), at_k, h, o_k, BLOCK_D)
    p_dv = tile(pick(grad_values, p), pick_strides(grad_value_strides, p, UNIT), at_k, h, o_k, BLOCK_D)
    store_rows(p_dk, b_dk * softmax_scale, o_k < length, D, BLOCK_D)
    store_rows(p_dv, b_dv * value_scale, o_k < length, D, BLOCK_D)
