// Backward of p2c_attention, first kernel: dQ, each row's shift, 1 / sum and offset, and partial sums of dg.
#pragma once

#include "attention_backward.cuh"

namespace amuse {

template <int kRows>
struct BackwardRows {
  Streams<kRows> streams;
  float lse[kRows * max_sources], grad_lse[kRows * max_sources];  // as in global memory
  // of the AttentionRow that is left of each
  float shift[max_sources][kRows], inverse[max_sources][kRows], offset[max_sources][kRows];
  float gates[max_sources][backward_warps];
};

// Of the gradient of stream p's gate, where this block leaves its part.
__device__ inline float* partial_of_gate(const AttentionArguments& args, const QueryTile& queries, int p) {
  return args.gate_partials + (queries.bh * args.sources + p) * args.query_tiles + blockIdx.x % args.query_tiles;
}

template <class T, int kWidth, bool kOptions>
struct BackwardQueries : BackwardTiles<T, kWidth, false> {
  using Base = BackwardTiles<T, kWidth, false>;
  using Base::rows, Base::columns, Base::threads, Base::row, Base::streamed, Base::resident, Base::shared, Base::split;
  using Tiles = KeyTiles<columns, kOptions, true, rows>;
  static_assert(threads <= 32 * backward_warps);

  const AttentionArguments& args;
  BackwardRows<rows>& table;
  const QueryTile queries;
  const Dropout dropout;

  typename Base::Sums grad_query = {};
  float shift[2], grad_lse[2], delta[2] = {}, gate_sum[2];
  float total[2] = {}, inverse[2] = {};  // of the weights; joint a sum over the streams
  float sum[2], product[2], only[2];     // rowsum(W), rowsum(W dW), rowsum(dW): this lane's part
  int count[2];                          // of visible keys; two stand for more

  __device__ BackwardQueries(const AttentionArguments& args, BackwardRows<rows>& table, const QueryTile& queries,
                             unsigned char* shared)
      : Base{shared}, args(args), table(table), queries(queries), dropout(args, queries.bh) {}

  __device__ void run() {
    Tiles tiles(args, table.streams, queries);
    copy_side(args.query, resident(0));
    copy_side(args.grad_out, resident(1));
    bool more = tiles.next();
    if (more) copy(tiles, 0);
    commit_copies();
    KeyTile before;
    before.p = -1;
    for (int stage = 0; more; stage ^= 1) {
      const KeyTile at = tiles;
      if (!at.same_range(before)) begin(at, before);
      before = at;
      wait_copies<0>();
      __syncthreads();  // the tile is there, and nobody reads the one before it any more
      more = tiles.next();
      if (more) copy(tiles, stage ^ 1);
      commit_copies();
      step(at, stage);
      if (!more || !tiles.same_range(at)) end(at);
    }
    store();
  }

 private:
  __device__ void copy_side(const AttentionTensor& tensor, uint32_t to) const {
    copy_rows<T, kWidth, rows, threads>(to, queries.slice<T>(tensor), tensor.stride_l, queries.first, args.head_dim,
                                        first_bits(queries.count), args.vectors);
  }

  __device__ void copy(const KeyTile& at, int stage) const {
    const auto& source = args.source[at.p];
    const int offset = table.streams.keys[at.p].offset;
    const auto rows_of = [&](const AttentionTensor& tensor, uint32_t to) {
      copy_rows<T, kWidth, columns, threads>(to, slice<T>(tensor, queries.b, queries.h, offset), tensor.stride_l,
                                             at.start, args.head_dim, at.seen, args.vectors);
    };
    rows_of(source.key, streamed(stage, 0));
    rows_of(source.value, streamed(stage, 1));
  }

  __device__ void begin(const KeyTile& at, const KeyTile& before) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (args.joint && at.last_pass && !before.last_pass) {
        inverse[half] = inverse_of(total[half]);
        delta[half] *= inverse[half];
      }
      if (at.p != before.p || args.joint) {
        const int place = args.joint ? row() + 8 * half : (row() + 8 * half) * args.sources + at.p;
        shift[half] = shift_of(table.lse[place]);
        grad_lse[half] = shift[half] == INFINITY ? 0.f : table.grad_lse[place];
      }
      sum[half] = product[half] = only[half] = gate_sum[half] = 0.f;
      count[half] = 0;
    }
  }

  __device__ void step(const KeyTile& at, int stage) {
    typename Base::Scores s, dw;
    this->multiply(args, stage, s, dw);
    refine(at, s[0]);
    const bool single = !args.joint && at.limit <= columns;
    uint32_t kept[2] = {};
    if (kOptions && dropout.on) kept_keys<columns>(dropout, at.p, at.start, queries.first + row(), kept);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t visible = ~0u;
      if (!at.whole) visible = visible_keys<columns, kOptions>(args, table.streams, queries, at, row() + 8 * half);
      if (!args.joint && (single || !at.last_pass)) {
        count[half] += at.whole ? 2 : __popc(visible);
        if (single) settle_shift(half, row_sum(count[half]));
      }
#pragma unroll
      for (int i = 0; i < columns / 4; ++i) {
        float &x = s[0][i / 2][2 * half + i % 2], &y = dw[0][i / 2][2 * half + i % 2];
        x = weight_of(x, args.scale_log2, shift[half], args.joint);
        if (kOptions && dropout.on) y = kept[half] >> i & 1 ? y * args.keep_scale : 0.f;
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

    const float gate = table.streams.gate[at.p];
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
    this->add(args, grad_query, s, stage, 0);
  }

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
      const int first = queries.first + this->warp_row(), last = queries.first + queries.count - 1;
      const Tokens tokens = table.streams.keys[at.p];
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

  __device__ void end(const KeyTile& at) {
    const float gate = table.streams.gate[at.p];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!at.last_pass) {
        if (args.joint) {
          total[half] = fmaf(gate, row_sum(sum[half]), total[half]);
          delta[half] = fmaf(gate, row_sum(product[half]), delta[half]);
        } else {
          settle_shift(half, row_sum(count[half]));
          settle_delta(half);
        }
      } else if (threadIdx.x % 4 == 0 && this->column() == 0) {
        const float offset = args.joint ? delta[half] - grad_lse[half] : offset_of(half, gate);
        const int p = args.joint ? 0 : at.p, at_row = row() + 8 * half;
        table.shift[p][at_row] = shift[half], table.inverse[p][at_row] = inverse[half],
        table.offset[p][at_row] = offset;
      }
    }
    if (!at.last_pass || args.grad_gates == nullptr) return;
    float sum = args.joint ? row_sum(gate_sum[0] + gate_sum[1]) : delta[0] + delta[1];
    for (int lane = 4; lane < 32; lane *= 2) sum += __shfl_xor_sync(~0u, sum, lane);
    if (threadIdx.x % 32 == 0) table.gates[at.p][threadIdx.x / 32] = sum;
  }

  __device__ void store() {
    wait_copies<0>();  // of the queries, where no tile was visible
    __syncthreads();
    this->put(0, grad_query, args.softmax_scale);
    __syncthreads();
    store_rows<T, kWidth, rows, threads>(shared, queries.slice<T>(args.grad_query), args.grad_query.stride_l,
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
    for (int warp = 0; warp < threads / 32; warp += split) sum += table.gates[p][warp];
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
  const int per_row = args.joint ? 1 : args.sources;
  const int64_t start = (first_row(args, queries.b, queries.h, 1, 0, queries.offset) + queries.first) * per_row;
  for (int i = threadIdx.x; i < Kernel::rows * per_row; i += Kernel::threads) {
    const bool inside = i < queries.count * per_row;
    table.lse[i] = inside ? args.lse[start + i] : -INFINITY;
    table.grad_lse[i] = inside && args.grad_lse != nullptr ? args.grad_lse[start + i] : 0.f;
    // of streams that no row sees
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
