// Backward of p2c_attention, second kernel: dK, dV and dg.
#pragma once

#include "attention_backward.cuh"

namespace amuse {

template <class T, int kWidth, bool kOptions>
struct BackwardKeys : BackwardTiles<T, kWidth, true> {
  using Base = BackwardTiles<T, kWidth, true>;
  using Base::rows, Base::columns, Base::threads, Base::row, Base::streamed, Base::resident, Base::shared;

  const AttentionArguments& args;
  AttentionRow (&states)[2][columns];  // of the queries in the buffers
  const int64_t b, h;
  const Tokens queries, keys;  // of the sample
  const int p, first;
  const Bits seen;  // keys that the mask lets through
  const float gate;

  typename Base::Sums grad_key = {}, grad_value = {};

  __device__ void run() {
    const auto& source = args.source[p];
    copy_side(source.key, resident(0));
    copy_side(source.value, resident(1));
    const int end = seen ? queries.length : 0;
    int query = kOptions && source.causal ? first / columns * columns : 0;
    if (query < end) copy(query, 0);
    commit_copies();
    for (int stage = 0; query < end; stage ^= 1, query += columns) {
      arrive(stage);
      if (query + columns < end) copy(query + columns, stage ^ 1);
      commit_copies();
      step(query, stage);
    }
    store();
  }

 private:
  __device__ void copy_side(const AttentionTensor& tensor, uint32_t to) const {
    copy_rows<T, kWidth, rows, threads>(
        to, slice<T>(tensor, b, h, keys.offset), tensor.stride_l, first, args.head_dim, seen, args.vectors);
  }

  __device__ void copy(int query, int stage) const {
    const Bits present = first_bits(queries.length - query);
    const auto rows_of = [&](const AttentionTensor& tensor, uint32_t to) {
      copy_rows<T, kWidth, columns, threads>(
          to, slice<T>(tensor, b, h, queries.offset), tensor.stride_l, query, args.head_dim, present, args.vectors);
    };
    rows_of(args.query, streamed(stage, 0));
    rows_of(args.grad_out, streamed(stage, 1));
    // rows beyond the last query weigh 0, by the 0 in place of 1 / sum
    const int streams = args.joint ? 1 : args.sources, stream = args.joint ? 0 : p;
    const AttentionRow* from = args.rows + first_row(args, b, h, streams, stream, queries.offset) + query;
    for (int i = threadIdx.x; i < columns; i += threads) {
      copy_async(shared_address(&states[stage][i]), from + i, query + i < queries.length);
    }
  }

  // The tile is there afterwards, and nobody reads the one before it any more. What is left of queries that see no key
  // of the stream is 0: they may hold NaN, and a weight of 0 times NaN would be NaN.
  __device__ void arrive(int stage) const {
    wait_copies<0>();
    static_assert(threads >= columns, "a thread looks at the state that it copied itself");
    const bool blind = threadIdx.x < columns && states[stage][threadIdx.x].shift == INFINITY;
    if (!__syncthreads_or(blind)) return;
    constexpr int row_bytes = TileLayout<T, kWidth>::row_bytes;
    for (int which = 0; which < 2; ++which) {
      for (int i = threadIdx.x; i < columns * row_bytes / 16; i += threads) {
        if (states[stage][i / (row_bytes / 16)].shift != INFINITY) continue;
        reinterpret_cast<uint4*>(this->buffer(stage, which))[i] = uint4{};
      }
    }
    __syncthreads();
  }

  __device__ void step(int query, int stage) {
    typename Base::Scores s, dw;
    this->multiply(args, stage, s, dw);
    refine(query, stage, s[0]);
    const auto& source = args.source[p];
    const bool causal = kOptions && source.causal && query < first + rows - 1;
    const bool whole = seen == first_bits(rows) && !causal && !(kOptions && source.related);
    const bool dropping = kOptions && args.seed != nullptr;
    const float offset_scale = args.joint ? gate : 1.f;
    const int t = threadIdx.x % 4;
    uint32_t visible = ~0u, kept = ~0u;  // bit 4 n + i for c[i] of piece n
    if (!whole) visible = visible_pairs(query, causal);
    if (dropping) kept = kept_pairs(query);
#pragma unroll
    for (int n = 0; n < columns / 8; ++n) {
      const AttentionRow state[2] = {states[stage][8 * n + 2 * t], states[stage][8 * n + 2 * t + 1]};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool stays = !dropping || (kept >> (4 * n + i) & 1);
        float &x = s[0][n][i], &y = dw[0][n][i];
        float weight = weight_of(x, args.scale_log2, state[i % 2].shift, args.joint) * state[i % 2].inverse;
        float dropped = dropping ? (stays ? y * args.keep_scale : 0.f) : y;
        if (!whole && !(visible >> (4 * n + i) & 1)) weight = dropped = 0.f;
        // the gate comes after the product; joint before, as a closed stream's W is huge
        y = !stays ? 0.f : args.joint ? weight * gate : weight;
        x = weight * __fsub_rn(__fmul_rn(gate, dropped), __fmul_rn(offset_scale, state[i % 2].offset));
      }
    }
    this->add(args, grad_key, s, stage, 0);
    this->add(args, grad_value, dw, stage, 1);
  }

  // Sums the scores of queries again whose shift is large.
  __device__ void refine(int query, int stage, Accumulator (&s)[columns / 8]) const {
    if constexpr (sizeof(T) == 4) {
      uint32_t chosen = 0;
#pragma unroll
      for (int n = 0; n < columns / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (is_large<T>(args, states[stage][8 * n + 2 * (threadIdx.x % 4) + i].shift)) chosen |= 5u << (4 * n + i);
        }
      }
      if (!__any_sync(~0u, chosen)) return;
      const auto& source = args.source[p];
      const GlobalRows<T> key_rows{
          slice<T>(source.key, b, h, keys.offset), source.key.stride_l, first + this->warp_row(), keys.length - 1};
      const GlobalRows<T> query_rows{
          slice<T>(args.query, b, h, queries.offset), args.query.stride_l, query, queries.length - 1};
      refine_scores<columns>(s, key_rows, query_rows, args.head_dim, chosen);
    }
  }

  __device__ uint32_t visible_pairs(int query, bool causal) const {
    const int thread = made_anew(threadIdx.x), row = Base::row(thread), t = thread % 4;
    const auto& source = args.source[p];
    int64_t group[2] = {};
    if (kOptions && source.related) {
      for (int half = 0; half < 2; ++half) {
        const int key = first + row + 8 * half;
        if (key < keys.length) group[half] = source.groups[first_key(source, b, keys.offset) + key];
      }
    }
    const int64_t first_query = args.cu_seq_q == nullptr ? b * args.queries : queries.offset;
    uint32_t bits = 0;
#pragma unroll 1
    for (int n = 0; n < columns / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = query + 8 * n + 2 * t + i % 2;
        bool visible = seen >> (row + 8 * (i / 2)) & 1;
        if (causal) visible = visible && first + row + 8 * (i / 2) <= at;
        if (kOptions && source.related && visible && at < queries.length) {
          visible = (args.query_groups[first_query + at] == group[i / 2]) != source.different;
        }
        bits |= (visible ? 1u : 0u) << (4 * n + i);
      }
    }
    return bits;
  }

  // Four lanes hold the same four keys: each draws for one of the queries and one of the rows g and g + 8.
  __device__ uint32_t kept_pairs(int query) const {
    const int thread = made_anew(threadIdx.x), row = Base::row(thread), t = thread % 4, mine = row % 4;
    const int quad = (first + row - mine + 8 * (mine / 2)) / 4;
    const Dropout dropout(args, b * args.heads + h);  // here, for want of registers
    uint32_t bits = 0;
#pragma unroll 1
    for (int n = 0; n < columns / 8; ++n) {
      const uint32_t draw = dropout.kept(quad, query + 8 * n + 2 * t + mine % 2, p);
      uint32_t four = (draw >> mine & 1) << mine;
#pragma unroll
      for (int other = 1; other < 4; ++other) {
        four |= (__shfl_xor_sync(~0u, draw, 4 * other) >> mine & 1) << (mine ^ other);
      }
      bits |= four << (4 * n);
    }
    return bits;
  }

  __device__ void store() {
    wait_copies<0>();  // of the keys, where no query sees them
    __syncthreads();
    this->put(0, grad_key, args.softmax_scale);
    this->put(1, grad_value, args.keep_scale * (args.joint ? 1.f : gate));
    __syncthreads();
    const auto& source = args.source[p];
    const int count = min(rows, keys.length - first);
    store_rows<T, kWidth, rows, threads>(shared, slice<T>(source.grad_key, b, h, keys.offset), source.grad_key.stride_l,
                                         first, args.head_dim, count, args.vectors);
    store_rows<T, kWidth, rows, threads>(shared + Base::row_bytes, slice<T>(source.grad_value, b, h, keys.offset),
                                         source.grad_value.stride_l, first, args.head_dim, count, args.vectors);
  }
};

// One warp adds up what the tiles of queries left, always in the same order.
__device__ inline void sum_gate(const AttentionArguments& args, int64_t stream) {
  if (args.grad_gates == nullptr || threadIdx.x >= 32) return;
  const float* partials = args.gate_partials + stream * args.query_tiles;
  float sum = 0.f;
  for (int tile = threadIdx.x; tile < args.query_tiles; tile += 32) sum += partials[tile];
  for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(~0u, sum, lane);
  if (threadIdx.x == 0) args.grad_gates[stream] = sum;
}

template <class T, int kWidth, bool kOptions>
__device__ void attention_backward_keys(const AttentionArguments& args) {
  using Kernel = BackwardKeys<T, kWidth, kOptions>;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ AttentionRow states[2][Kernel::columns];
  const int64_t bh = blockIdx.x / args.key_tiles, b = bh / args.heads, h = bh % args.heads;
  int tile = blockIdx.x % args.key_tiles, p = 0;
  for (; p < args.sources - 1; ++p) {
    const int tiles = max(1, (args.source[p].length + Kernel::rows - 1) / Kernel::rows);
    if (tile < tiles) break;
    tile -= tiles;
  }
  const auto& source = args.source[p];
  const int first = tile * Kernel::rows;
  const Tokens queries = Tokens::of(args.cu_seq_q, b, args.queries);
  const Tokens keys = Tokens::of(source.cu_seq, b, source.length);
  if (tile == 0) sum_gate(args, bh * args.sources + p);
  if (first >= keys.length) return;

  const uint8_t* mask = source.mask == nullptr ? nullptr : source.mask + b * keys.length;
  const int lane = threadIdx.x % 32;
  Bits seen = 0;
#pragma unroll
  for (int word = 0; word < (Kernel::rows + 31) / 32; ++word) {
    const int key = first + 32 * word + lane;
    const bool visible = 32 * word + lane < Kernel::rows && key < keys.length && (mask == nullptr || mask[key] != 0);
    seen |= Bits{__ballot_sync(~0u, visible)} << (32 * word);
  }
  Kernel{{shared}, args, states, b, h, queries, keys, p, first, seen, gate_of(args, b, h, p)}.run();
}

}  // namespace amuse
