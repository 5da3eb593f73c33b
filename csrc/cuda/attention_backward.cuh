// What the two backward kernels of p2c_attention share; neither needs atomics.
//
// With W = exp(S - lse) the weights of a stream without its gate, and dW = dO V^T, after dropout:
//   per_source   delta_i = rowsum(W dW)                 dS = W (g (dW - delta_i) + dlse_i)      dg = sum_i delta_i
//   joint        delta_i = sum_p g_p rowsum(W_p dW_p)   dS = g W (dW - delta_i + dlse_i)        dg = sum_ij dS / g
//   dQ = scale dS K,   dK = scale dS^T Q,   dV = g W^T dO
// delta is not taken from <dO, O>, which would carry the rounding of a 16-bit O. exp(S - lse) would not add up to 1
// where lse is large and rounded: W is divided by its sum, which is found on the way to delta.
//
// `attention_backward_queries` gives dQ and leaves each row's shift, 1 / sum and offset, for dS = W (g dW - offset),
// and partial sums of dg, from which `attention_backward_keys` takes dK, dV and dg.
#pragma once

#include "attention_streams.cuh"

namespace amuse {

constexpr float log2_e = 1.4426950408889634f;

// Only weights of a stream whose gate is 0 can reach it; it keeps the gradient of that gate finite.
constexpr float joint_limit = 80 * log2_e;

// What both kernels share: two tiles that stay, two buffers of two tiles for the other side.
template <class T, int kWidth, bool kKeys>
struct BackwardTiles {
  static constexpr AttentionTile tile = backward_tile(sizeof(T), kWidth, kKeys);
  static constexpr int threads = tile.threads(), rows = tile.rows(), columns = tile.columns, split = tile.column_split;
  static constexpr int row_bytes = tile_bytes(rows, sizeof(T), kWidth);
  static constexpr int column_bytes = tile_bytes(columns, sizeof(T), kWidth);
  static constexpr int pieces = kWidth / 8 / split;  // of an accumulator
  using Scores = Accumulator[1][columns / 8];
  using Sums = Accumulator[1][pieces];

  unsigned char* const shared;

  __device__ int warp_row() const { return threadIdx.x / 32 / split * 16; }
  static __device__ int row(int thread = threadIdx.x) { return thread / 32 / split * 16 + thread % 32 / 4; }
  // Warps that share their rows sum for half of the head dim each.
  __device__ int column() const { return threadIdx.x / 32 % split * (kWidth / split); }
  __device__ uint32_t resident(int which) const { return shared_address(shared) + which * row_bytes; }
  __device__ unsigned char* buffer(int stage, int which) const {
    return shared + 2 * row_bytes + (2 * stage + which) * column_bytes;
  }
  __device__ uint32_t streamed(int stage, int which) const { return shared_address(buffer(stage, which)); }

  // Scores of the first and products of the second tile of both sides: the same numbers in both kernels.
  __device__ void multiply(const AttentionArguments& args, int stage, Scores& s, Scores& dw) const {
    by_precision<T>(args.allow_tf32, [&](auto exact) {
      using Rows = SharedRows<T, kWidth>;
      multiply_rows<T, kWidth, columns, exact, kKeys>(s, Rows(resident(0), warp_row()), streamed(stage, 0));
      multiply_rows<T, kWidth, columns, exact, kKeys>(dw, Rows(resident(1), warp_row()), streamed(stage, 1));
    });
  }
  __device__ void add(const AttentionArguments& args, Sums& sums, const Scores& p, int stage, int which) const {
    by_precision<T>(args.allow_tf32, [&](auto exact) {
      multiply_columns<T, kWidth, columns, exact>(sums, p, streamed(stage, which), column());
    });
  }
  // Through resident tile `which`, which nobody may still read.
  __device__ void put(int which, const Sums& sums, float factor) const {
    put_rows<T, kWidth>(shared + which * row_bytes, warp_row(), column(), sums[0], factor);
  }
};

__device__ inline float weight_of(float s, float scale_log2, float shift, bool joint) {
  const float x = fmaf(s, scale_log2, -shift);
  return exp2_fast(minimum(x, joint ? joint_limit : 0.f));  // per_source, shift -inf stands for a weight of exactly 1
}

// Of a loop that lacks registers: what is computed from the result is computed there again, not kept from before it.
__device__ inline int made_anew(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// lse in base 2; +inf where nothing is visible, so that weights come out as 0.
__device__ inline float shift_of(float lse) { return lse == -INFINITY ? INFINITY : lse * log2_e; }

}  // namespace amuse
