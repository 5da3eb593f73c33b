// The one argument of every attention kernel, and the tile sizes that kernels and launcher have to agree on.
// Plain C++; strides are in elements.
#pragma once

#include <cstdint>

#include "../attention.h"

namespace amuse {

// What the gradients of the keys need of a row of queries and a stream: W = exp2(scores in base 2 - shift) * inverse,
// where the sum of the powers is 1 / inverse, and dS = W (g dW - offset), joint W g (dW - offset). A row that sees no
// key has an infinite shift.
struct alignas(16) AttentionRow {
  float shift, inverse, offset, unused;
};

struct AttentionArguments {
  struct Source {
    AttentionTensor key, value, grad_key, grad_value;
    const uint8_t* mask;    // (B, length)
    const int64_t* groups;  // (B, length)
    const int32_t* cu_seq;  // (B + 1); null unless samples are packed
    int32_t length;         // packed: of the longest sample, or more
    bool related, different, causal;
  };
  Source source[max_sources];
  AttentionTensor query, out, grad_out, grad_query;
  const int64_t* query_groups;  // (B, Lq)
  const int32_t* cu_seq_q;      // (B + 1); null unless samples are packed
  const float* gates;
  int64_t gate_stride_b, gate_stride_h, gate_stride_p;
  const int64_t* seed;  // null without dropout
  float* lse;           // written by the forward, read by the backward
  const float* grad_lse;
  float* grad_gates;
  // Between the two launches of the backward: (B, H, P, Lq), joint (B, H, Lq), where packed samples are a batch of 1,
  // and the gates' gradient, summed over the rows of a query tile, (B, H, P, query_tiles).
  AttentionRow* rows;
  float* gate_partials;
  float softmax_scale, scale_log2, keep_scale;
  uint32_t drop_threshold;
  int32_t heads, sources, head_dim;
  int32_t queries;                 // per sample; packed, of the longest or more
  int32_t tokens;                  // queries of a batch entry: packed, those of all samples
  int32_t query_tiles, key_tiles;  // per (b, h); a stream without keys counts as one key tile
  bool joint;
  bool vectors;  // every row of every tensor starts at a multiple of 16 bytes
  bool allow_tf32;
};

// Tile of a kernel: `rows` stay with the block, 16 * row_tiles of them with each group of `column_split` warps, while
// tiles of `columns` rows of the other side stream through two buffers.
struct AttentionTile {
  int warps, row_tiles, column_split, columns;

  constexpr int threads() const { return 32 * warps; }
  constexpr int rows() const { return 16 * row_tiles * warps / column_split; }
};

// Head dims that kernels are compiled for; others are padded with zeros inside of shared memory.
constexpr int padded_head_dim(int64_t head_dim) {
  return head_dim <= 32 ? 32 : head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 256;
}

// Up to a padded head dim of 64, which AMuSE has, there are kernels for few queries: with smaller tiles ("short"),
// which leave no warp idle, and a backward of one launch ("fused").
constexpr int short_queries = 32;
constexpr bool has_kernels_for_few_queries(int padded) { return padded <= 64; }

// Chosen so that nothing spills up to a head dim of 128 and shared memory fits the smallest chip (99 KiB on sm_86, 89
// and 120). 32 rows per warp halve what a product reads from shared memory, where there are registers for them.
constexpr AttentionTile forward_tile(int element_bytes, int padded, bool is_short) {
  if (is_short) return {short_queries / 16, 1, 1, 32};
  if (element_bytes == 2) {
    return padded <= 64    ? AttentionTile{2, 2, 1, 32}
           : padded == 128 ? AttentionTile{4, 1, 1, 32}
                           : AttentionTile{2, 1, 1, 16};
  }
  return padded <= 64 ? AttentionTile{4, 1, 1, 32} : AttentionTile{padded == 128 ? 2 : 1, 1, 1, 16};
}

// `keys`: for the kernel where keys stay and queries stream.
constexpr AttentionTile backward_tile(int element_bytes, int padded, bool keys) {
  if (element_bytes == 2) {
    return padded <= 64    ? AttentionTile{4, 1, 1, keys ? 32 : 64}
           : padded == 128 ? AttentionTile{4, 1, 1, 32}
                           : AttentionTile{4, 1, 2, 16};
  }
  return padded <= 64 ? AttentionTile{4, 1, 1, 32} : AttentionTile{padded == 128 ? 4 : 2, 1, 2, 16};
}

// For the kernel that computes all gradients of one (b, h): a tile has as many keys as queries.
constexpr AttentionTile backward_fused_tile(bool is_short) {
  return is_short ? AttentionTile{2, 1, 1, 32} : AttentionTile{4, 1, 1, 64};
}

constexpr int backward_warps = 4;  // of any tile

constexpr int tile_bytes(int rows, int element_bytes, int padded) { return rows * element_bytes * padded; }

// Queries stay in registers, except where they are too wide for that.
constexpr bool query_in_registers(int element_bytes, int padded) { return element_bytes * padded <= 256; }

// The outputs of finished streams lie in shared memory, in float32, over the queries if those are in registers.
constexpr int forward_query_bytes(const AttentionTile& tile, int element_bytes, int padded) {
  return query_in_registers(element_bytes, padded) ? 0 : tile_bytes(tile.rows(), element_bytes, padded);
}

constexpr int forward_shared_bytes(const AttentionTile& tile, int element_bytes, int padded) {
  return forward_query_bytes(tile, element_bytes, padded) + tile_bytes(tile.rows(), 4, padded) +
         4 * tile_bytes(tile.columns, element_bytes, padded);
}

constexpr int backward_shared_bytes(const AttentionTile& tile, int element_bytes, int padded) {
  return 2 * tile_bytes(tile.rows(), element_bytes, padded) + 4 * tile_bytes(tile.columns, element_bytes, padded);
}

}  // namespace amuse
