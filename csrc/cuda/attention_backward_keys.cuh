// Backward of p2c_attention where queries take several tiles, second kernel: dK, dV and dg.
#pragma once

#include "attention_key_gradients.cuh"

namespace amuse {

template <class T, int kWidth, bool kOptions>
struct BackwardKeys {
  static constexpr AttentionTile tile = backward_tile(sizeof(T), kWidth, true);
  using Share = BackwardShare<T, kWidth, tile.warps, tile.column_split, tile.columns>;
  using Gradients = KeyGradients<T, kOptions, Share>;
  static constexpr int threads = tile.threads(), rows = tile.rows(), columns = tile.columns;

  const AttentionArguments& args;
  AttentionRow (&states)[2][columns];  // states of the queries in the buffers
  const BackwardTiles<T, kWidth, Share> tiles;
  Gradients gradients;

  __device__ void run() {
    const auto& source = args.source[gradients.p];
    copy_side(source.key, tiles.residents().first);
    copy_side(source.value, tiles.residents().second);
    const int end = gradients.seen ? gradients.queries.length : 0;
    int query = gradients.first_query();
    if (query < end) copy(query, 0);
    commit_copies();
    for (int stage = 0; query < end; stage ^= 1, query += columns) {
      arrive(stage);
      if (query + columns < end) copy(query + columns, stage ^ 1);
      commit_copies();
      gradients.step(query, tiles.residents(), tiles.buffers(stage), states[stage]);
    }
    wait_copies<0>();  // copies of the keys, where no query sees them
    __syncthreads();
    gradients.template store<kWidth>(tiles.resident(0), tiles.resident(1));
  }

 private:
  __device__ void copy_side(const AttentionTensor& tensor, uint32_t to) const {
    const Gradients& g = gradients;
    copy_rows<T, kWidth, rows, threads>(
        to, slice<T>(tensor, g.b, g.h, g.keys.offset), tensor.stride_l, g.first, args.head_dim, g.seen, args.vectors);
  }

  __device__ void copy(int query, int stage) const {
    const Gradients& g = gradients;
    const Bits present = first_bits(g.queries.length - query);
    const auto rows_of = [&](const AttentionTensor& tensor, uint32_t to) {
      copy_rows<T, kWidth, columns, threads>(to, slice<T>(tensor, g.b, g.h, g.queries.offset), tensor.stride_l, query,
                                             args.head_dim, present, args.vectors);
    };
    rows_of(args.query, tiles.buffers(stage).first);
    rows_of(args.grad_out, tiles.buffers(stage).second);
    // rows beyond the last query have weights of 0, since 1 / sum is 0
    const int streams = args.joint ? 1 : args.sources, stream = args.joint ? 0 : g.p;
    const AttentionRow* from = args.rows + first_row(args, g.b, g.h, streams, stream, g.queries.offset) + query;
    for (int i = threadIdx.x; i < columns; i += threads) {
      copy_async(shared_address(&states[stage][i]), from + i, query + i < g.queries.length);
    }
  }

  // The tile is there afterwards, and no warp reads the one before it. The rows of queries that see no key
  // of the stream are 0: they may hold NaN, and a weight of 0 times NaN would be NaN.
  __device__ void arrive(int stage) const {
    wait_copies<0>();
    static_assert(threads >= columns, "a thread looks at the state that it copied itself");
    const bool blind = threadIdx.x < columns && states[stage][threadIdx.x].shift == INFINITY;
    if (!__syncthreads_or(blind)) return;
    constexpr int row_bytes = TileLayout<T, kWidth>::row_bytes;
    for (int which = 0; which < 2; ++which) {
      for (int i = threadIdx.x; i < columns * row_bytes / 16; i += threads) {
        if (states[stage][i / (row_bytes / 16)].shift != INFINITY) continue;
        reinterpret_cast<uint4*>(tiles.buffer(stage, which))[i] = uint4{};
      }
    }
    __syncthreads();
  }
};

// One warp adds up the partial sums of the tiles of queries, always in the same order.
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
  Kernel{args, states, {shared}, {args, b, h, queries, keys, p, first, seen, gate_of(args, b, h, p)}}.run();
}

}  // namespace amuse
