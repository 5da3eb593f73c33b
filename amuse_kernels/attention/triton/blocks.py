# mypy: ignore-errors
# ruff: noqa: RUF059, SIM102  (a compile-time condition encloses a run-time one)
"""Shared by the forward and backward kernels of p2c_attention: streams, tiles, visibility, dropout.

Triton's own functions only; every one works on one (batch, head) slice. Prefixes: b_ block values, o_ positions, m_
masks, p_ pointers.

Samples are a batch, or packed: the tokens of sample b are then those from starts[b] to starts[b + 1] of a batch of 1,
the launch gives the stride of the tokens as that of the batch, and `at` is starts[b] where it is b otherwise. All
positions count from the start of a sample.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# integers for whose values kernels are not compiled again
SIZES = ("heads", "queries", "rows", "masked", "related", "different", "causal", "drop_threshold")
LARGE_SCORE = tl.constexpr(64.0)  # in base 2


@triton.jit
def pick(items, p):
    """items[p] of a tuple of pointers, for a stream index that is known at run time only."""
    item = items[0]
    for i in tl.static_range(1, len(items)):
        item = tl.where(p == i, items[i], item)
    return item


@triton.jit
def pick_size(sizes, p):
    """The number that `launch.pack` packed as sizes[p]."""
    return pick(sizes, p) >> 2


@triton.jit
def pick_strides(strides, p, UNIT: tl.constexpr):
    """Strides (b, h, l) in elements of stream p, which `launch.pack` packed in units of UNIT elements."""
    s_b, s_h, s_l = strides[0]
    for i in tl.static_range(1, len(strides)):
        s_b = tl.where(p == i, strides[i][0], s_b)
        s_h = tl.where(p == i, strides[i][1], s_h)
        s_l = tl.where(p == i, strides[i][2], s_l)
    return unpack_strides((s_b, s_h, s_l), UNIT)


@triton.jit
def unpack_strides(strides, UNIT: tl.constexpr):
    """Strides (b, h, l) in elements, from those that `launch.pack` packed in units of UNIT elements."""
    s_b, s_h, s_l = strides
    return (s_b >> 2).to(tl.int64) * UNIT, (s_h >> 2).to(tl.int64) * UNIT, (s_l >> 2).to(tl.int64) * UNIT


@triton.jit
def flag(bits, p):
    """Bit p of a set of streams."""
    return ((bits >> p) & 1) != 0


@triton.jit
def tile(base, strides, at, h, o_row, BLOCK_D: tl.constexpr):
    """Pointers to rows `o_row` of one (b, h) slice, [rows, BLOCK_D]."""
    s_b, s_h, s_l = strides
    return base + at * s_b + h * s_h + (o_row[:, None] * s_l.to(tl.int32) + tl.arange(0, BLOCK_D)[None, :])


@triton.jit
def row_starts(base, strides, at, h, o_row):
    """Pointers to the first elements of rows `o_row` of one (b, h) slice, [rows]."""
    s_b, s_h, s_l = strides
    return base + at * s_b + h * s_h + o_row * s_l.to(tl.int32)


@triton.jit
def load_rows(pointers, m_row, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """Rows where `m_row` holds, 0 elsewhere and in the padding of D; without MASKED all rows."""
    if D < BLOCK_D:
        m_d = tl.arange(0, BLOCK_D)[None, :] < D
        return tl.load(pointers, mask=m_row[:, None] & m_d, other=0.0) if MASKED else tl.load(pointers, m_d, other=0.0)
    return tl.load(pointers, mask=m_row[:, None], other=0.0) if MASKED else tl.load(pointers)


@triton.jit
def store_rows(pointers, block, m_row, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Stores rows where `m_row` holds, without the padding of D, in the dtype behind the pointers."""
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
def locate(starts, b, length):
    """`at` of sample b, and how many tokens it has: `length` unless samples are packed."""
    at = b
    if starts is not None:
        at = tl.load(starts + b).to(tl.int64)
        length = tl.load(starts + b + 1) - at.to(tl.int32)
    return at, length


@triton.jit
def open_stream(p, b, keys, values, key_strides, value_strides, key_masks, mask_strides, key_groups, key_starts,
                lengths, masked, related, different, causal, UNIT: tl.constexpr):  # fmt: skip
    """Stream p of sample b: its keys, its values, where they are, their number, and what decides who sees what.

    Of the last, each part is a tuple, empty where no stream has such a thing: Triton's tuples hold no None.
    """
    at, length = locate(None if key_starts is None else pick(key_starts, p), b, pick_size(lengths, p))
    mask, relation, is_causal = (), (), ()
    if key_masks is not None:
        mask = (pick(key_masks, p) + b * pick_size(mask_strides, p), flag(masked, p))
    if key_groups is not None:
        o_group = b * length if key_starts is None else at
        relation = (pick(key_groups, p) + o_group, flag(related, p), flag(different, p))
    if causal is not None:
        is_causal = (flag(causal, p),)
    sight = (mask, relation, is_causal)
    key, value = pick(keys, p), pick(values, p)
    return key, pick_strides(key_strides, p, UNIT), value, pick_strides(value_strides, p, UNIT), at, length, sight


@triton.jit
def key_range(sight, length, first, last):
    """Keys that queries first .. last - 1 see: [0, whole) are seen by all of them, none from `end` on by any."""
    mask, relation, causal = sight
    length = tl.where(first < last, length, 0)
    whole, end = length, length
    if len(mask) > 0:
        if mask[1]:
            whole, end = visible_range(mask[0], length, 256)
    if len(relation) > 0:
        whole = tl.where(relation[1], 0, whole)
    if len(causal) > 0:
        whole = tl.where(causal[0], tl.minimum(whole, first + 1), whole)
        end = tl.where(causal[0], tl.minimum(end, last), end)
    return tl.minimum(whole, end), end


@triton.jit
def key_mask(sight, o_k, end):
    """Keys before `end` that the key mask lets through."""
    mask = sight[0]
    m_k = o_k < end
    if len(mask) > 0:
        m_k = m_k & (tl.load(mask[0] + o_k, mask=o_k < tl.where(mask[1], end, 0), other=1) != 0)
    return m_k


@triton.jit
def visible_pairs(sight, o_q, m_q, g_q, o_k, m_k, end):
    """Which query of a tile sees which key.

    The positions o_q, o_k, their masks and the queries' groups g_q are shaped to broadcast: (n, 1) and (1, n), or
    transposed. In a stream without a relation all groups count as equal.
    """
    mask, relation, causal = sight
    visible = m_k & (o_q >= 0)
    if len(causal) > 0:
        visible = visible & (o_k <= tl.where(causal[0], o_q, end))
    if len(relation) > 0:
        groups, related, different = relation
        g_k = tl.load(groups + o_k, mask=o_k < tl.where(related, end, 0), other=0)
        visible = visible & m_q & ((tl.where(related, g_q, 0) == g_k) != different)
    return visible


@triton.jit
def tile_visibility(sight, o_q, m_q, g_q, o_k, end):
    """Keys visible to some query of the tile, visible pairs [queries, keys], and whether there is any."""
    mask, relation, causal = sight
    m_k = key_mask(sight, o_k, end)
    visible = visible_pairs(sight, o_q[:, None], m_q[:, None], g_q[:, None], o_k[None, :], m_k[None, :], end)
    if len(relation) > 0:
        m_k = tl.max(visible.to(tl.int32), 0) != 0
    seen = 1
    if len(relation) > 0 or len(mask) > 0:
        seen = tl.max(m_k.to(tl.int32), 0)
    return m_k, visible, seen


@triton.jit
def refined(b_s, b_top, p_q, m_q, p_k, m_k, SIGN: tl.constexpr, D: tl.constexpr, TRANSPOSED: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """Scores [queries, keys] or transposed; of queries whose `b_top`, in base 2, is large, SIGN times a sum in fp64.

    A sum of products in fp32 is off by a few 2^-24 of itself, and the weight 2^score by as much relative to 1. It also
    depends on the order, and so on which operand is transposed: weights that are recomputed from such sums would not
    add up to 1. 16-bit inputs are coarser than these sums, and so is TF32. p_q, p_k: `row_starts`.
    """
    if p_q.dtype.element_ty == tl.float32 and PRECISION != "tf32":
        large = (tl.abs(b_top) > LARGE_SCORE) & (tl.abs(b_top) < float("inf"))
        if tl.max(large.to(tl.int32), 0) != 0:
            b_exact = tl.zeros(b_s.shape, tl.float64)
            for d in range(D):
                x_q = tl.load(p_q + d, mask=m_q & large, other=0.0).to(tl.float64) * SIGN
                x_k = (tl.load(p_k + d) if m_k is None else tl.load(p_k + d, mask=m_k, other=0.0)).to(tl.float64)
                b_exact += x_k[:, None] * x_q[None, :] if TRANSPOSED else x_q[:, None] * x_k[None, :]
            b_s = tl.where(large[None, :] if TRANSPOSED else large[:, None], b_exact.to(tl.float32), b_s)
    return b_s


@triton.jit
def rematerialize(first, length):
    """`first`, in a form that the compiler does not simplify, since it cannot know that lengths are not negative.

    Values derived from the result, such as the addresses of a last store, are computed where they are used instead of
    occupying registers through the loops before.
    """
    return tl.minimum(first, first + length)


@triton.jit
def load_groups(query_groups, o_group, o_q, m_q):
    """Groups of the queries, which start at `o_group`; without groups a placeholder."""
    g_q = o_q
    if query_groups is not None:
        g_q = tl.load(query_groups + o_group + o_q, mask=m_q, other=0)
    return g_q


@triton.jit
def row_place(query_starts, at, h, bh, queries, rows):
    """Place of the rows of lse and of the backward's sums: slice, rows in a slice, and rows before the sample.

    Packed, a slice is a head with the `rows` queries of all samples.
    """
    place = (bh, queries.to(tl.int64), bh * 0)
    if query_starts is not None:
        place = (h, rows.to(tl.int64), at)
    return place


@triton.jit
def load_gate(gates, gate_strides, b, h, p):
    """The gate of stream p, 1 without gates."""
    gate = 1.0
    if gates is not None:
        s_b, s_h, s_p = unpack_strides(gate_strides, 1)
        gate = tl.load(gates + b * s_b + h * s_h + p * s_p)
    return gate


@triton.jit
def any_open(gates, gate_strides, b, h, P: tl.constexpr):
    """Whether some stream has a gate above 0."""
    found = gates is None
    for p in tl.static_range(P):
        found = found | (load_gate(gates, gate_strides, b, h, p) > 0)
    return found


@triton.jit
def dropout_of(seed, drop_threshold, bh):
    """Seed, threshold and (batch, head) of dropout, or an empty tuple without it."""
    dropout = ()
    if seed is not None:
        dropout = (tl.load(seed), drop_threshold, bh)
    return dropout


@triton.jit
def kept_pairs(dropout, p, o_q, start, BLOCK_K: tl.constexpr):
    """Which pairs of queries `o_q` and keys start .. start + BLOCK_K - 1 survive, [queries, BLOCK_K].

    The layout of `amuse_kernels.dropout.keep_mask`: one draw serves four neighbouring keys; start is a multiple of 4.
    """
    seed, drop_threshold, bh = dropout
    j = (start // 4 + tl.arange(0, BLOCK_K // 4))[None, :].to(tl.uint32)
    i = o_q[:, None].to(tl.uint32)
    zero = i * 0 + j * 0
    w_0, w_1, w_2, w_3 = tl.philox(seed, zero + j, zero + i, zero + bh, zero + p)
    words = tl.join(tl.join(w_0, w_2), tl.join(w_1, w_3))  # [queries, BLOCK_K / 4, 2, 2], word 2 a + b at [a, b]
    return tl.reshape(words, (o_q.shape[0], BLOCK_K)) >= drop_threshold
