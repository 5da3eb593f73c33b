// Gradients of the rows of a tile of queries: dQ, the AttentionRow that the keys need, and the rows' part of dg.
#pragma once

#include "attention_backward.cuh"

namespace amuse {

// lse in base 2; +inf where nothing is visible, so that weights come out as 0.
__device__ inline float shift_of(float lse) { return lse == -INFINITY ? INFINITY : lse * log2_e; }

// Where lse of row 0 of a tile of queries is.
__device__ inline int64_t first_lse(const AttentionArguments& args, const QueryTile& queries) {
  const int per_row = args.joint ? 1 : args.sources;
  return (first_row(args, queries.b, queries.h, 1, 0, queries.offset) + queries.first) * per_row;
}

// 16 rows per warp, over the tiles of keys in the order of `KeyTiles` with kTwice.
template <class T, bool kOptions, class Share>
struct QueryGradients {
  static constexpr int rows = Share::rows, columns = Share::columns;
  using Scores = typename Share::Scores;

  const AttentionArguments& args;
  const Streams<rows>& streams;
  const QueryTile& queries;

  typename Share::Sums grad_query = {};
  float shift[2], grad_lse[2], delta[2] = {}, gate_sum[2];
  float total[2] = {}, inverse[2] = {};  // sum of the weights and 1 / it; joint over all streams
  float sum[2], product[2], only[2];     // rowsum(W), rowsum(W dW), rowsum(dW): this lane's part
  int count[2];                          // visible keys; two means two or more

  __device__ QueryGradients(const AttentionArguments& args, const Streams<rows>& streams, const QueryTile& queries)
      : args(args), streams(streams), queries(queries) {}

  // Before the first tile of a pass over a stream; `before` is the tile before it.
  __device__ void begin(const KeyTile& at, const KeyTile& before) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (args.joint && at.last_pass && !before.last_pass) {
        inverse[half] = inverse_of(total[half]);
        delta[half] *= inverse[half];
      }
      if (args.joint ? before.p < 0 : at.p != before.p) {
        const int row = Share::row() + 8 * half;
        const int64_t place = first_lse(args, queries) + (args.joint ? row : row * args.sources + at.p);
        shift[half] = row < queries.count ? shift_of(args.lse[place]) : INFINITY;
        grad_lse[half] = shift[half] == INFINITY || args.grad_lse == nullptr ? 0.f : args.grad_lse[place];
      }
      sum[half] = product[half] = only[half] = gate_sum[half] = 0.f;
      count[half] = 0;
    }
  }

  __device__ void step(const KeyTile& at, TilePair of_queries, TilePair of_keys) {
    if (Share::warp_row() >= queries.count) return;  // a warp without queries only copies
    Scores s, dw;
    Share::template multiply<false>(args, of_queries, of_keys, s, dw);
    refine(at, s[0]);
    const bool single = !args.joint && at.limit <= columns;
    const bool dropping = kOptions && args.seed != nullptr;
    uint32_t kept[2] = {};
    if (dropping) {
      const Dropout dropout(args, queries.bh);  // here, since registers are scarce
      kept_keys<columns>(dropout, at.p, at.start, queries.first + Share::row(), kept);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t visible = ~0u;
      if (!at.whole) visible = visible_keys<columns, kOptions>(args, streams, queries, at, Share::row() + 8 * half);
      if (!args.joint && (single || !at.last_pass)) {
        count[half] += at.whole ? 2 : __popc(visible);
        if (single) settle_shift(half, row_sum(count[half]));
      }
#pragma unroll
      for (int i = 0; i < columns / 4; ++i) {
        float &x = s[0][i / 2][2 * half + i % 2], &y = dw[0][i / 2][2 * half + i % 2];
        x = weight_of(x, args.scale_log2, shift[half], args.joint);
        if (dropping) y = kept[half] >> i & 1 ? y * args.keep_scale : 0.f;
        if (!at.whole && !(visible >> i & 1)) x = y = 0.f;
        if (single || !at.last_pass) {
          sum[half] += x;
          product[half] = fmaf(x, y, product[half]);
          only[half] += y;
        }
      }
      if (single) settle_delta(half);
    }
    if (!at.last_pass) return;

    const float gate = streams.gate[at.p];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float offset = offset_of(half, gate);
#pragma unroll
      for (int i = 0; i < columns / 4; ++i) {
        float& x = s[0][i / 2][2 * half + i % 2];
        const float y = dw[0][i / 2][2 * half + i % 2];
        x *= inverse[half];
        if (args.joint) gate_sum[half] = fmaf(x, y - (delta[half] - grad_lse[half]), gate_sum[half]);
        x *= __fsub_rn(__fmul_rn(gate, y), offset);
      }
    }
    Share::add(args, grad_query, s, of_keys.first);
  }

  // After a pass that only found the rows' sums.
  __device__ void settle(int p) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (args.joint) {
        total[half] = fmaf(streams.gate[p], row_sum(sum[half]), total[half]);
        delta[half] = fmaf(streams.gate[p], row_sum(product[half]), delta[half]);
      } else {
        settle_shift(half, row_sum(count[half]));
        settle_delta(half);
      }
    }
  }

  // In the last pass over stream p: the AttentionRow that its keys need, joint still without the gate.
  __device__ AttentionRow state(int half, int p) const {
    const float offset = args.joint ? delta[half] - grad_lse[half] : offset_of(half, streams.gate[p]);
    return {shift[half], inverse[half], offset, 0.f};
  }

  // After the last pass over a stream: the warp's part of the gradient of its gate.
  __device__ float grad_gate() const {
    float sum = args.joint ? row_sum(gate_sum[0] + gate_sum[1]) : delta[0] + delta[1];
    for (int lane = 4; lane < 32; lane *= 2) sum += __shfl_xor_sync(~0u, sum, lane);
    return sum;
  }

 private:
  // dS = W (g dW - offset), without fused roundings: exactly 0 where dW is delta.
  __device__ float offset_of(int half, float gate) const {
    if (args.joint) return __fmul_rn(gate, delta[half] - grad_lse[half]);
    return __fsub_rn(__fmul_rn(gate, delta[half]), grad_lse[half]);
  }

  // Sums the scores of rows again whose shift is large.
  __device__ void refine(const KeyTile& at, Accumulator (&s)[columns / 8]) const {
    if constexpr (sizeof(T) == 4) {
      uint32_t chosen = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (is_large<T>(args, shift[half])) chosen |= row_of_fragment(half);
      }
      if (!__any_sync(~0u, chosen)) return;
      const auto& source = args.source[at.p];
      const int first = queries.first + Share::warp_row(), last = queries.first + queries.count - 1;
      const Tokens tokens = streams.keys[at.p];
      const GlobalRows<T> query{queries.slice<T>(args.query), args.query.stride_l, first, last};
      const GlobalRows<T> keys{
          slice<T>(source.key, queries.b, queries.h, tokens.offset), source.key.stride_l, at.start, tokens.length - 1};
      refine_scores<columns>(s, query, keys, args.head_dim, chosen);
    }
  }

  static __device__ float inverse_of(float total) { return total == 0.f ? 0.f : 1.f / total; }

  // The only key of a row has weight 1 and no gradient, exactly, whatever lse was rounded to.
  __device__ void settle_shift(int half, int keys) {
    count[half] = keys;
    if (keys == 1) shift[half] = -INFINITY;
  }
  __device__ void settle_delta(int half) {
    // all lanes take part in the sums
    const float weights = row_sum(sum[half]), products = row_sum(product[half]), alone = row_sum(only[half]);
    inverse[half] = count[half] == 1 ? 1.f : inverse_of(weights);
    delta[half] = count[half] == 1 ? alone : products * inverse[half];
  }
};

}  // namespace amuse
