// Gradients of the rows of a tile of keys: dK and dV, from tiles of queries whose AttentionRows are known.
#pragma once

#include "attention_backward.cuh"

namespace amuse {

// 16 keys per warp; `states` belong to the queries of a tile.
template <class T, bool kOptions, class Share>
struct KeyGradients {
  static constexpr int rows = Share::rows, columns = Share::columns, threads = Share::threads;
  using Scores = typename Share::Scores;

  const AttentionArguments& args;
  const int64_t b, h;
  const Tokens queries, keys;  // tokens of the sample
  const int p, first;
  const Bits seen;  // keys that may be visible
  const float gate;

  typename Share::Sums grad_key = {}, grad_value = {};

  // The first query of a tile that may see a key.
  __device__ int first_query() const { return kOptions && args.source[p].causal ? first / columns * columns : 0; }

  __device__ void step(int query, TilePair of_keys, TilePair of_queries, const AttentionRow* states) {
    if (!(seen >> Share::warp_row() & 0xffff)) return;
    Scores s, dw;
    Share::template multiply<true>(args, of_keys, of_queries, s, dw);
    refine(query, states, s[0]);
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
      const AttentionRow state[2] = {states[8 * n + 2 * t], states[8 * n + 2 * t + 1]};
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
    Share::add(args, grad_key, s, of_queries.first);
    Share::add(args, grad_value, dw, of_queries.second);
  }

  // By way of the tiles of the keys and values, which no warp may still read.
  template <int kWidth>
  __device__ void store(unsigned char* of_keys, unsigned char* of_values) const {
    Share::put(of_keys, grad_key, args.softmax_scale);
    Share::put(of_values, grad_value, args.keep_scale * (args.joint ? 1.f : gate));
    __syncthreads();
    const auto& source = args.source[p];
    const int count = min(rows, keys.length - first);
    store_rows<T, kWidth, rows, threads>(of_keys, slice<T>(source.grad_key, b, h, keys.offset),
                                         source.grad_key.stride_l, first, args.head_dim, count, args.vectors);
    store_rows<T, kWidth, rows, threads>(of_values, slice<T>(source.grad_value, b, h, keys.offset),
                                         source.grad_value.stride_l, first, args.head_dim, count, args.vectors);
  }

 private:
  // Sums the scores of queries again whose shift is large.
  __device__ void refine(int query, const AttentionRow* states, Accumulator (&s)[columns / 8]) const {
    if constexpr (sizeof(T) == 4) {
      uint32_t chosen = 0;
#pragma unroll
      for (int n = 0; n < columns / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (is_large<T>(args, states[8 * n + 2 * (threadIdx.x % 4) + i].shift)) chosen |= 5u << (4 * n + i);
        }
      }
      if (!__any_sync(~0u, chosen)) return;
      const auto& source = args.source[p];
      const GlobalRows<T> key_rows{
          slice<T>(source.key, b, h, keys.offset), source.key.stride_l, first + Share::warp_row(), keys.length - 1};
      const GlobalRows<T> query_rows{
          slice<T>(args.query, b, h, queries.offset), args.query.stride_l, query, queries.length - 1};
      refine_scores<columns>(s, key_rows, query_rows, args.head_dim, chosen);
    }
  }

  __device__ uint32_t visible_pairs(int query, bool causal) const {
    const int thread = recomputed(threadIdx.x), row = Share::row(thread), t = thread % 4;
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
    const int thread = recomputed(threadIdx.x), row = Share::row(thread), t = thread % 4, mine = row % 4;
    const int quad = (first + row - mine + 8 * (mine / 2)) / 4;
    const Dropout dropout(args, b * args.heads + h);  // here, since registers are scarce
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
};

}  // namespace amuse
