# mypy: ignore-errors
"""What the forward and backward kernels of p2c_attention share: streams, tiles, visibility, dropout.

Triton's own functions only; every one works on one (batch, head) slice. Prefixes: b_ block values, o_ positions, m_
masks, p_ pointers.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def pick(items, p):
    """items[p] of a tuple of pointers, for a stream index that is known at run time only."""
    item = items[0]
    for i in tl.static_range(1, len(items)):
        item = tl.where(p == i, items[i], item)
    return item


@triton.jit
def pick_size(sizes, p):
    """The number that `launch.sizes` packed as sizes[p]."""
    return pick(sizes, p) >> 2


@triton.jit
def pick_strides(strides, p, UNIT: tl.constexpr):
    """Strides (b, h, l) in elements of stream p, which `launch.strides` packed in units of UNIT elements."""
    s_b, s_h, s_l = strides[0]
    for i in tl.static_range(1, len(strides)):
        s_b = tl.where(p == i, strides[i][0], s_b)
        s_h = tl.where(p == i, strides[i][1], s_h)
        s_l = tl.where(p == i, strides[i][2], s_l)
    return unpack_strides((s_b, s_h, s_l), UNIT)


@triton.jit
def unpack_strides(strides, UNIT: tl.constexpr):
    s_b, s_h, s_l = strides
    return (s_b >> 2).to(tl.int64) * UNIT, (s_h >> 2).to(tl.int64) * UNIT, (s_l >> 2).to(tl.int64) * UNIT


@triton.jit
def flag(bits, p):
    """Bit p of a set of streams; None for no set."""
    if bits is None:
        return None
    else:
        return ((bits >> p) & 1) != 0


@triton.jit
def tile(base, strides, b, h, o_row, BLOCK_D: tl.constexpr):
    """Pointers to rows `o_row` of one (b, h) slice, [rows, BLOCK_D]."""
    s_b, s_h, s_l = strides
    return base + b * s_b + h * s_h + (o_row[:, None] * s_l.to(tl.int32) + tl.arange(0, BLOCK_D)[None, :])


@triton.jit
def load_rows(pointers, m_row, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """Rows where `m_row` holds, 0 elsewhere and in the padding of D; without MASKED all rows."""
    if D < BLOCK_D:
        m_d = tl.arange(0, BLOCK_D)[None, :] < D
        return tl.load(pointers, mask=m_row[:, None] & m_d, other=0.0) if MASKED else tl.load(pointers, m_d, other=0.0)
    return tl.load(pointers, mask=m_row[:, None], other=0.0) if MASKED else tl.load(pointers)


@triton.jit
def store_rows(pointers, block, m_row, D: tl.constexpr, BLOCK_D: tl.constexpr):
    m = m_row[:, None]
    if D < BLOCK_D:
        m = m & (tl.arange(0, BLOCK_D)[None, :] < D)
    tl.store(pointers, block.to(pointers.dtype.element_ty), mask=m)


@triton.jit
def column(block, p, BLOCK_P: tl.constexpr):
    """block[:, p] of [rows, BLOCK_P]."""
    return tl.sum(tl.where(tl.arange(0, BLOCK_P)[None, :] == p, block, 0.0), 1)


@triton.jit
def visible_range(mask, length, BLOCK: tl.constexpr):
    """How many visible keys a stream starts with, and the end of its last visible key."""
    whole, end = length, 0
    for start in range(0, length, BLOCK):
        o_k = start + tl.arange(0, BLOCK)
        m_k = tl.load(mask + o_k, mask=o_k < length, other=0) != 0
        whole = tl.minimum(whole, tl.min(tl.where(m_k, length, o_k), 0))
        end = tl.maximum(end, tl.max(tl.where(m_k, o_k + 1, 0), 0))
    return whole, end


@triton.jit
def key_range(mask, masked, related, causal, length, first, last):
    """Keys that queries first .. last - 1 see: [0, whole) are seen by all of them, none from `end` on by any."""
    whole, end = length, length
    if mask is not None:
        if masked:
            whole, end = visible_range(mask, length, 256)
    if related is not None:
        whole = tl.where(related, 0, whole)
    if causal is not None:
        whole = tl.where(causal, tl.minimum(whole, first + 1), whole)
        end = tl.where(causal, tl.minimum(end, last), end)
    return whole, end


@triton.jit
def key_mask(mask, masked, o_k, end):
    """Keys before `end` that the key mask lets through."""
    m_k = o_k < end
    if mask is not None:
        m_k = m_k & (tl.load(mask + o_k, mask=o_k < tl.where(masked, end, 0), other=1) != 0)
    return m_k


@triton.jit
def visible_pairs(o_q, m_q, o_k, m_k, g_q, g_keys, end, related, different, causal):
    """Which query of a tile sees which key.

    The positions o_q, o_k, their masks and the queries' groups g_q are shaped to broadcast: (n, 1) and (1, n), or
    transposed. In a stream without a relation all groups count as equal.
    """
    visible = m_k
    if causal is not None:
        visible = visible & (o_k <= tl.where(causal, o_q, end))
    if g_q is not None:
        g_k = tl.load(g_keys + o_k, mask=o_k < tl.where(related, end, 0), other=0)
        visible = visible & m_q & ((tl.where(related, g_q, 0) == g_k) != different)
    return visible


@triton.jit
def kept_pairs(seed, drop_threshold, bh, p, o_q, start, BLOCK_K: tl.constexpr):
    """Which pairs of queries `o_q` and keys start .. start + BLOCK_K - 1 dropout keeps, [queries, BLOCK_K].

    The layout of `amuse_kernels.dropout.keep_mask`: one draw serves four neighbouring keys; start is a multiple of 4.
    """
    j = (start // 4 + tl.arange(0, BLOCK_K // 4))[None, :].to(tl.uint32)
    i = o_q[:, None].to(tl.uint32)
    zero = i * 0 + j * 0
    w_0, w_1, w_2, w_3 = tl.philox(tl.load(seed), zero + j, zero + i, zero + bh, zero + p)
    words = tl.join(tl.join(w_0, w_2), tl.join(w_1, w_3))  # [queries, BLOCK_K / 4, 2, 2], word 2 a + b at [a, b]
    return tl.reshape(words, (o_q.shape[0], BLOCK_K)) >= drop_threshold
