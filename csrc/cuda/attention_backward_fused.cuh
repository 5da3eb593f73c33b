// Backward of p2c_attention where one tile holds the queries: all gradients of one (b, h) in one block. It walks over
// the keys once, or twice where the rows' sums take more than one tile.
#pragma once

#include "attention_key_gradients.cuh"
#include "attention_query_gradients.cuh"

namespace amuse {

template <int kRows>
struct FusedRows {
  Streams<kRows> streams;
  AttentionRow states[kRows];  // the queries' states in the current stream
  float gates[max_sources][backward_warps];
};

// kShort: with the tile for at most `short_queries` queries.
template <class T, int kWidth, bool kOptions, bool kShort>
struct BackwardFused {
  static constexpr AttentionTile tile = backward_fused_tile(kShort);
  static constexpr int threads = tile.threads(), rows = tile.rows(), columns = tile.columns;
  static_assert(rows == columns, "a buffer is a tile of keys: as many rows as the queries have");
  using QueryShare = BackwardShare<T, kWidth, tile.warps, 1, columns>;
  using KeyShare = BackwardShare<T, kWidth, tile.warps, 1, 32>;  // for few registers
  using Walk = KeyTiles<columns, kOptions, true, rows>;

  const AttentionArguments& args;
  FusedRows<rows>& table;
  const QueryTile& queries;
  const BackwardTiles<T, kWidth, QueryShare> tiles;
  QueryGradients<T, kOptions, QueryShare> gradients;

  bool copied = false;                // whether the queries are in their tile
  Bits present = 0;                   // which of them are; the others are 0
  int next_source = 0, next_key = 0;  // the first key whose gradients are not written yet

  __device__ BackwardFused(const AttentionArguments& args, FusedRows<rows>& table, const QueryTile& queries,
                           unsigned char* shared)
      : args(args), table(table), queries(queries), tiles{shared}, gradients(args, table.streams, queries) {}

  __device__ void run() {
    Walk walk(args, table.streams, queries);
    bool more = queries.count > 0 && walk.next();
    if (more) copy(walk, 0);
    KeyTile before;
    for (int stage = 0; more; stage ^= 1) {
      const KeyTile at = walk;
      if (!at.same_range(before)) {
        gradients.begin(at, before);
        copy_queries(at.p);
      }
      before = at;
      commit_copies();
      wait_copies<0>();
      __syncthreads();  // the tile is there, and no warp reads the one before it
      more = walk.next();
      if (more) copy(walk, stage ^ 1);
      commit_copies();
      gradients.step(at, tiles.residents(), tiles.buffers(stage));
      if (at.last_pass) give_to_keys(at, stage);
      if (!more || !walk.same_range(at)) end(at);
    }
    zero_keys_until(args.sources, 0);
    store();
  }

 private:
  __device__ void copy(const KeyTile& at, int stage) const {
    const TilePair to = tiles.buffers(stage);
    copy_keys<T, kWidth, columns, threads>(args, table.streams, queries, at, to.first, to.second, args.vectors);
  }

  // Queries that see no key of the stream are 0 in the tile: they may hold NaN, and a weight of 0 times NaN would be
  // NaN in the gradients of the keys.
  __device__ void copy_queries(int p) {
    const Bits seeing = kOptions ? seeing_queries(p) : first_bits(queries.count);
    if (copied && seeing == present) return;
    copied = true, present = seeing;
    const auto rows_of = [&](const AttentionTensor& tensor, uint32_t to) {
      copy_rows<T, kWidth, rows, threads>(
          to, queries.slice<T>(tensor), tensor.stride_l, queries.first, args.head_dim, seeing, args.vectors);
    };
    rows_of(args.query, tiles.residents().first);
    rows_of(args.grad_out, tiles.residents().second);
  }

  __device__ Bits seeing_queries(int p) const {
    const float* lse = args.lse + first_lse(args, queries) + (args.joint ? 0 : p);
    const int stride = args.joint ? 1 : args.sources, lane = threadIdx.x % 32;
    Bits bits = 0;
#pragma unroll
    for (int word = 0; word < rows / 32; ++word) {
      const int row = 32 * word + lane;
      const bool sees = row < queries.count && lse[row * stride] != -INFINITY;
      bits |= Bits{__ballot_sync(~0u, sees)} << (32 * word);
    }
    return bits;
  }

  __device__ void give_to_keys(const KeyTile& at, int stage) {
    if (threadIdx.x % 4 == 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) table.states[QueryShare::row() + 8 * half] = gradients.state(half, at.p);
    }
    zero_keys_until(at.p, at.start);
    next_key = at.start + columns;
    __syncthreads();
    const Tokens all{queries.offset, queries.count}, keys = table.streams.keys[at.p];
    const Bits seen = at.seen & first_bits(columns);
    KeyGradients<T, kOptions, KeyShare> of_keys{
        args, queries.b, queries.h, all, keys, at.p, at.start, seen, table.streams.gate[at.p]};
#pragma unroll 1
    for (int query = of_keys.first_query(); query < queries.count; query += KeyShare::columns) {
      of_keys.step(query, tiles.buffers(stage), tiles.residents(query), table.states + query);
    }
    __syncwarp();  // only the warp itself reads its rows of the buffer
    of_keys.template store<kWidth>(tiles.buffer(stage, 0), tiles.buffer(stage, 1));
  }

  // Keys that no query sees have gradients of 0.
  __device__ void zero_keys_until(int p, int key) {
    for (; next_source < p; ++next_source, next_key = 0) zero_keys(table.streams.keys[next_source].length);
    if (p < args.sources) zero_keys(key);
  }

  __device__ void zero_keys(int end) const {
    const auto& source = args.source[next_source];
    const auto rows_of = [&](const AttentionTensor& tensor) {
      zero_rows<T, threads>(slice<T>(tensor, queries.b, queries.h, table.streams.keys[next_source].offset),
                            tensor.stride_l, next_key, end, args.head_dim, args.vectors);
    };
    rows_of(source.grad_key);
    rows_of(source.grad_value);
  }

  __device__ void end(const KeyTile& at) {
    if (!at.last_pass) {
      gradients.settle(at.p);
      return;
    }
    if (args.grad_gates == nullptr) return;
    const float sum = gradients.grad_gate();
    if (threadIdx.x % 32 == 0) table.gates[at.p][threadIdx.x / 32] = sum;
  }

  __device__ void store() {
    __syncthreads();
    QueryShare::put(tiles.resident(0), gradients.grad_query, args.softmax_scale);
    __syncthreads();
    store_rows<T, kWidth, rows, threads>(tiles.resident(0), queries.slice<T>(args.grad_query), args.grad_query.stride_l,
                                         queries.first, args.head_dim, queries.count, args.vectors);
    const int p = threadIdx.x;
    if (args.grad_gates == nullptr || p >= args.sources) return;
    float sum = 0.f;
    for (int warp = 0; warp < tile.warps; ++warp) sum += table.gates[p][warp];
    args.grad_gates[queries.bh * args.sources + p] = sum;
  }
};

template <class T, int kWidth, bool kOptions, bool kShort = false>
__device__ void attention_backward_fused(const AttentionArguments& args) {
  using Kernel = BackwardFused<T, kWidth, kOptions, kShort>;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ FusedRows<Kernel::rows> table;
  const QueryTile queries = QueryTile::of_block(args, Kernel::rows);
  open_streams<kOptions, Kernel::threads>(args, queries, table.streams);
  for (int i = threadIdx.x; i < backward_warps * args.sources; i += Kernel::threads) {
    table.gates[i / backward_warps][i % backward_warps] = 0.f;
  }
  __syncthreads();
  Kernel(args, table, queries, shared).run();
}

template <class T, int kWidth, bool kOptions>
__device__ void attention_backward_fused_short(const AttentionArguments& args) {
  attention_backward_fused<T, kWidth, kOptions, true>(args);
}

}  // namespace amuse
