// Shared by the backward kernels of p2c_attention; none needs atomics.
//
// With W = exp(S - lse) the weights of a stream without its gate, and dW = dO V^T, after dropout:
//   per_source   delta_i = rowsum(W dW)                 dS = W (g (dW - delta_i) + dlse_i)      dg = sum_i delta_i
//   joint        delta_i = sum_p g_p rowsum(W_p dW_p)   dS = g W (dW - delta_i + dlse_i)        dg = sum_ij dS / g
//   dQ = scale dS K,   dK = scale dS^T Q,   dV = g W^T dO
// delta is not taken from <dO, O>, which would carry the rounding of a 16-bit O. exp(S - lse) would not add up to 1
// where lse is large and rounded: W is divided by its sum, which is found on the way to delta.
//
// `QueryGradients` gives dQ and each row's shift, 1 / sum and offset, for dS = W (g dW - offset), from which
// `KeyGradients` takes dK and dV. Where one tile holds the queries, `attention_backward_fused` runs both on every tile
// of keys; otherwise `attention_backward_queries` writes these and partial sums of dg to memory, for
// `attention_backward_keys`.
#pragma once

#include "attention_streams.cuh"

namespace amuse {

constexpr float log2_e = 1.4426950408889634f;

// Only weights of a stream whose gate is 0 can reach it; it keeps the gradient of that gate finite.
constexpr float joint_limit = 80 * log2_e;

// Addresses in shared memory of the tiles of Q and dO, or of K and V: products of the first with the first of the other
// side are scores, of the second with the second dW.
struct TilePair {
  uint32_t first, second;
};

// How the warps of a block divide a product of `rows` rows that stay in the block and `columns` of the other side.
template <class T, int kWidth, int kWarps, int kSplit, int kColumns>
struct BackwardShare {
  static constexpr int threads = 32 * kWarps, rows = 16 * kWarps / kSplit, columns = kColumns, split = kSplit;
  static constexpr int pieces = kWidth / 8 / kSplit;  // pieces of an accumulator
  using Scores = Accumulator[1][columns / 8];
  using Sums = Accumulator[1][pieces];

  static __device__ int warp_row() { return threadIdx.x / 32 / split * 16; }
  static __device__ int row(int thread = threadIdx.x) { return thread / 32 / split * 16 + thread % 32 / 4; }
  // Warps that share their rows sum for half of the head dim each.
  static __device__ int column() { return threadIdx.x / 32 % split * (kWidth / split); }

  // Scores and dW; with kSwapped, where the rows are keys, the same numbers as without where they are queries.
  template <bool kSwapped>
  static __device__ void multiply(const AttentionArguments& args, TilePair of_rows, TilePair of_columns, Scores& s,
                                  Scores& dw) {
    by_precision<T>(args.allow_tf32, [&](auto exact) {
      using Rows = SharedRows<T, kWidth>;
      multiply_rows<T, kWidth, columns, exact, kSwapped>(s, Rows(of_rows.first, warp_row()), of_columns.first);
      multiply_rows<T, kWidth, columns, exact, kSwapped>(dw, Rows(of_rows.second, warp_row()), of_columns.second);
    });
  }
  static __device__ void add(const AttentionArguments& args, Sums& sums, const Scores& p, uint32_t tile) {
    by_precision<T>(
        args.allow_tf32, [&](auto exact) { multiply_columns<T, kWidth, columns, exact>(sums, p, tile, column()); });
  }
  static __device__ void put(unsigned char* tile, const Sums& sums, float factor) {
    put_rows<T, kWidth>(tile, warp_row(), column(), sums[0], factor);
  }
};

// Two tiles that stay, then two buffers of two tiles for the other side.
template <class T, int kWidth, class Share>
struct BackwardTiles {
  static constexpr int row_bytes = tile_bytes(Share::rows, sizeof(T), kWidth);
  static constexpr int column_bytes = tile_bytes(Share::columns, sizeof(T), kWidth);

  unsigned char* const shared;

  __device__ unsigned char* resident(int which) const { return shared + which * row_bytes; }
  __device__ unsigned char* buffer(int stage, int which) const {
    return shared + 2 * row_bytes + (2 * stage + which) * column_bytes;
  }
  // From row `row` on.
  __device__ TilePair residents(int row = 0) const {
    const uint32_t address = shared_address(shared) + row * TileLayout<T, kWidth>::row_bytes;
    return {address, address + row_bytes};
  }
  __device__ TilePair buffers(int stage) const {
    const uint32_t address = shared_address(buffer(stage, 0));
    return {address, address + column_bytes};
  }
};

__device__ inline float weight_of(float s, float scale_log2, float shift, bool joint) {
  const float x = fmaf(s, scale_log2, -shift);
  return exp2_fast(minimum(x, joint ? joint_limit : 0.f));  // per_source, a shift of -inf means a weight of exactly 1
}

// x, in a way that the compiler cannot hoist out of a loop that lacks registers: what depends on it is recomputed
// there.
__device__ inline int recomputed(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

}  // namespace amuse
