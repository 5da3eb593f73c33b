// Backward of p2c_attention where queries take several tiles, first kernel: dQ, each row's shift, 1 / sum and offset,
// and partial sums of dg.
#pragma once

#include "attention_query_gradients.cuh"

namespace amuse {

template <int kRows>
struct BackwardRows {
  Streams<kRows> streams;
  // the fields of each row's AttentionRow
  float shift[max_sources][kRows], inverse[max_sources][kRows], offset[max_sources][kRows];
  float gates[max_sources][backward_warps];
};

// Where this block writes its partial sum of the gradient of stream p's gate.
__device__ inline float* partial_of_gate(const AttentionArguments& args, const QueryTile& queries, int p) {
  return args.gate_partials + (queries.bh * args.sources + p) * args.query_tiles + blockIdx.x % args.query_tiles;
}

template <class T, int kWidth, bool kOptions>
struct BackwardQueries {
  static constexpr AttentionTile tile = backward_tile(sizeof(T), kWidth, false);
  using Share = BackwardShare<T, kWidth, tile.warps, tile.column_split, tile.columns>;
  static constexpr int threads = tile.threads(), rows = tile.rows(), columns = tile.columns;
  using Walk = KeyTiles<columns, kOptions, true, rows>;
  static_assert(tile.warps <= backward_warps);

  const AttentionArguments& args;
  BackwardRows<rows>& table;
  const QueryTile& queries;
  const BackwardTiles<T, kWidth, Share> tiles;
  QueryGradients<T, kOptions, Share> gradients;

  __device__ BackwardQueries(const AttentionArguments& args, BackwardRows<rows>& table, const QueryTile& queries,
                             unsigned char* shared)
      : args(args), table(table), queries(queries), tiles{shared}, gradients(args, table.streams, queries) {}

  __device__ void run() {
    Walk walk(args, table.streams, queries);
    copy_side(args.query, tiles.residents().first);
    copy_side(args.grad_out, tiles.residents().second);
    bool more = walk.next();
    if (more) copy(walk, 0);
    commit_copies();
    KeyTile before;
    for (int stage = 0; more; stage ^= 1) {
      const KeyTile at = walk;
      if (!at.same_range(before)) gradients.begin(at, before);
      before = at;
      wait_copies<0>();
      __syncthreads();  // the tile is there, and no warp reads the one before it
      more = walk.next();
      if (more) copy(walk, stage ^ 1);
      commit_copies();
      gradients.step(at, tiles.residents(), tiles.buffers(stage));
      if (!more || !walk.same_range(at)) end(at);
    }
    store();
  }

 private:
  __device__ void copy_side(const AttentionTensor& tensor, uint32_t to) const {
    copy_rows<T, kWidth, rows, threads>(to, queries.slice<T>(tensor), tensor.stride_l, queries.first, args.head_dim,
                                        first_bits(queries.count), args.vectors);
  }

  __device__ void copy(const KeyTile& at, int stage) const {
    const TilePair to = tiles.buffers(stage);
    copy_keys<T, kWidth, columns, threads>(args, table.streams, queries, at, to.first, to.second, args.vectors);
  }

  __device__ void end(const KeyTile& at) {
    if (!at.last_pass) {
      gradients.settle(at.p);
      return;
    }
    const int p = args.joint ? 0 : at.p;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (threadIdx.x % 4 != 0 || Share::column() != 0) continue;
      const int row = Share::row() + 8 * half;
      const AttentionRow state = gradients.state(half, at.p);
      table.shift[p][row] = state.shift, table.inverse[p][row] = state.inverse, table.offset[p][row] = state.offset;
    }
    if (args.grad_gates == nullptr) return;
    const float sum = gradients.grad_gate();
    if (threadIdx.x % 32 == 0) table.gates[at.p][threadIdx.x / 32] = sum;
  }

  __device__ void store() {
    wait_copies<0>();  // copies of the queries, where no tile was visible
    __syncthreads();
    Share::put(tiles.resident(0), gradients.grad_query, args.softmax_scale);
    __syncthreads();
    store_rows<T, kWidth, rows, threads>(tiles.resident(0), queries.slice<T>(args.grad_query), args.grad_query.stride_l,
                                         queries.first, args.head_dim, queries.count, args.vectors);
    const int sources = args.joint ? 1 : args.sources;
    for (int p = 0; p < sources; ++p) {
      AttentionRow* to = args.rows + first_row(args, queries.b, queries.h, sources, p, queries.offset) + queries.first;
      for (int i = threadIdx.x; i < queries.count; i += threads) {
        to[i] = {table.shift[p][i], table.inverse[p][i], table.offset[p][i], 0.f};
      }
    }
    const int p = threadIdx.x;
    if (args.grad_gates == nullptr || p >= args.sources) return;
    float sum = 0.f;
    for (int warp = 0; warp < tile.warps; warp += Share::split) sum += table.gates[p][warp];
    *partial_of_gate(args, queries, p) = sum;
  }
};

template <class T, int kWidth, bool kOptions>
__device__ void attention_backward_queries(const AttentionArguments& args) {
  using Kernel = BackwardQueries<T, kWidth, kOptions>;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ BackwardRows<Kernel::rows> table;
  const QueryTile queries = QueryTile::of_block(args, Kernel::rows);
  if (queries.count <= 0) {
    if (args.grad_gates != nullptr && threadIdx.x < args.sources) *partial_of_gate(args, queries, threadIdx.x) = 0.f;
    return;
  }
  open_streams<kOptions, Kernel::threads>(args, queries, table.streams);
  for (int i = threadIdx.x; i < Kernel::rows * max_sources; i += Kernel::threads) {
    // for streams that no row sees
    const int p = i / Kernel::rows, row = i % Kernel::rows;
    table.shift[p][row] = INFINITY;
    table.inverse[p][row] = table.offset[p][row] = 0.f;
  }
  for (int i = threadIdx.x; i < backward_warps * args.sources; i += Kernel::threads) {
    table.gates[i / backward_warps][i % backward_warps] = 0.f;
  }
  __syncthreads();
  Kernel(args, table, queries, shared).run();
}

}  // namespace amuse
