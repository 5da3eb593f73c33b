// Backward kernels of p2c_attention, without atomics.
//
// With W = exp(S - lse) the weights of a stream without its gate, and dW = dO V^T, after dropout:
//   per_source   delta_i = rowsum(W dW)                 dS = W (g (dW - delta_i) + dlse_i)      dg = sum_i delta_i
//   joint        delta_i = sum_p g_p rowsum(W_p dW_p)   dS = g W (dW - delta_i + dlse_i)        dg = sum_ij dS / g
//   dQ = scale dS K,   dK = scale dS^T Q,   dV = g W^T dO
// delta is not taken from <dO, O>, which would carry the rounding of a 16-bit O.
//
// `attention_backward_queries` gives dQ and leaves each row's shift and offset, for dS = W (g dW - offset), and partial
// sums of dg, from which `attention_backward_keys` takes dK, dV and dg.
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
  __device__ int row() const { return warp_row() + threadIdx.x % 32 / 4; }
  // Warps that share their rows sum for half of the head dim each.
  __device__ int column() const { return threadIdx.x / 32 % split * (kWidth / split); }
  __device__ uint32_t resident(int which) const { return shared_address(shared) + which * row_bytes; }
  __device__ uint32_t streamed(int stage, int which) const {
    return shared_address(shared) + 2 * row_bytes + (2 * stage + which) * column_bytes;
  }

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

// lse in base 2; +inf where nothing is visible, so that weights come out as 0.
__device__ inline float shift_of(float lse) { return lse == -INFINITY ? INFINITY : lse * log2_e; }

// --- dQ ---

template <int kRows>
struct BackwardRows {
  Streams<kRows> streams;
  float lse[kRows * max_sources], grad_lse[kRows * max_sources];  // as in global memory
  float2 pairs[max_sources][kRows];                             // shift and offset
  float gates[max_sources][8];                                   // by warp
};

template <class T, int kWidth, bool kOptions>
struct BackwardQueries : BackwardTiles<T, kWidth, false> {
  using Base = BackwardTiles<T, kWidth, false>;
  using Base::rows, Base::columns, Base::threads, Base::row, Base::streamed, Base::resident, Base::shared, Base::split;
  using Tiles = KeyTiles<columns, kOptions, true, rows>;

  const AttentionArguments& args;
  BackwardRows<rows>& table;
  const QueryTile queries;
  const Dropout dropout;

  typename Base::Sums grad_query = {};
  float shift[2], grad_lse[2], delta[2] = {}, gate_sum[2];
  float product[2], only[2];  // rowsum(W dW), rowsum(dW): this lane's part
  int count[2];               // of visible keys; two stand for more

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
    copy_rows<T, kWidth, rows, threads>(to, slice<T>(tensor, queries.b, queries.h), tensor.stride_l, queries.first,
                                        args.head_dim, first_bits(queries.count), args.vectors);
  }

  __device__ void copy(const KeyTile& at, int stage) const {
    const auto& source = args.source[at.p];
    const auto rows_of = [&](const AttentionTensor& tensor, uint32_t to) {
      copy_rows<T, kWidth, columns, threads>(to, slice<T>(tensor, queries.b, queries.h), tensor.stride_l, at.start,
                                             args.head_dim, at.seen, args.vectors);
    };
    rows_of(source.key, streamed(stage, 0));
    rows_of(source.value, streamed(stage, 1));
  }

  __device__ void begin(const KeyTile& at, const KeyTile& before) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (at.p != before.p || args.joint) {
        const int place = args.joint ? row() + 8 * half : (row() + 8 * half) * args.sources + at.p;
        shift[half] = shift_of(table.lse[place]);
        grad_lse[half] = shift[half] == INFINITY ? 0.f : table.grad_lse[place];
      }
      product[half] = only[half] = gate_sum[half] = 0.f;
      count[half] = 0;
    }
  }

  __device__ void step(const KeyTile& at, int stage) {
    typename Base::Scores s, dw;
    this->multiply(args, stage, s, dw);
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

  // The only key of a row has weight 1 and no gradient, exactly, whatever lse was rounded to.
  __device__ void settle_shift(int half, int keys) {
    count[half] = keys;
    if (keys == 1) shift[half] = -INFINITY;
  }
  __device__ void settle_delta(int half) {
    const float sum = row_sum(product[half]), alone = row_sum(only[half]);
    delta[half] = count[half] == 1 ? alone : sum;
  }

  __device__ void end(const KeyTile& at) {
    const float gate = table.streams.gate[at.p];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!at.last_pass) {
        if (args.joint) {
          delta[half] = fmaf(gate, row_sum(product[half]), delta[half]);
        } else {
          settle_shift(half, row_sum(count[half]));
          settle_delta(half);
        }
      } else if (threadIdx.x % 4 == 0 && this->column() == 0) {
        const float offset = args.joint ? delta[half] - grad_lse[half] : offset_of(half, gate);
        table.pairs[args.joint ? 0 : at.p][row() + 8 * half] = {shift[half], offset};
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
    store_rows<T, kWidth, rows, threads>(shared, slice<T>(args.grad_query, queries.b, queries.h),
                                         args.grad_query.stride_l, queries.first, args.head_dim, queries.count,
                                         args.vectors);
    const int sources = args.joint ? 1 : args.sources;
    float2* to = reinterpret_cast<float2*>(args.rows) + queries.bh * sources * args.queries + queries.first;
    for (int p = 0; p < sources; ++p) {
      for (int i = threadIdx.x; i < queries.count; i += threads) to[int64_t{p} * args.queries + i] = table.pairs[p][i];
    }
    const int p = threadIdx.x;
    if (args.grad_gates == nullptr || p >= args.sources) return;
    float sum = 0.f;
    for (int warp = 0; warp < threads / 32; warp += split) sum += table.gates[p][warp];
    args.gate_partials[(queries.bh * args.sources + p) * args.query_tiles + queries.first / rows] = sum;
  }
};

template <class T, int kWidth, bool kOptions>
__device__ void attention_backward_queries(const AttentionArguments& args) {
  using Kernel = BackwardQueries<T, kWidth, kOptions>;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ BackwardRows<Kernel::rows> table;
  const int64_t bh = blockIdx.x / args.query_tiles;
  const int first = blockIdx.x % args.query_tiles * Kernel::rows;
  const QueryTile queries{bh / args.heads, bh % args.heads, bh, first, min(Kernel::rows, args.queries - first)};
  open_streams<kOptions, Kernel::threads>(args, queries, table.streams);
  const int per_row = args.joint ? 1 : args.sources;
  const int64_t start = (bh * args.queries + first) * per_row;
  for (int i = threadIdx.x; i < Kernel::rows * per_row; i += Kernel::threads) {
    const bool inside = i < queries.count * per_row;
    table.lse[i] = inside ? args.lse[start + i] : -INFINITY;
    table.grad_lse[i] = inside && args.grad_lse != nullptr ? args.grad_lse[start + i] : 0.f;
    table.pairs[i / Kernel::rows][i % Kernel::rows] = {INFINITY, 0.f};  // of streams that no row sees
  }
  for (int i = threadIdx.x; i < 8 * args.sources; i += Kernel::threads) table.gates[i / 8][i % 8] = 0.f;
  __syncthreads();
  Kernel(args, table, queries, shared).run();
}

// --- dK, dV and the gates ---

template <class T, int kWidth, bool kOptions>
struct BackwardKeys : BackwardTiles<T, kWidth, true> {
  using Base = BackwardTiles<T, kWidth, true>;
  using Base::rows, Base::columns, Base::threads, Base::row, Base::streamed, Base::resident, Base::shared;

  const AttentionArguments& args;
  float2 (&pairs)[2][columns];  // shift and offset of the queries in the buffers
  const int64_t b, h, bh;
  const int p, first;
  const Bits seen;  // keys that the mask lets through
  const float gate;
  const Dropout dropout;

  typename Base::Sums grad_key = {}, grad_value = {};

  __device__ void run() {
    const auto& source = args.source[p];
    copy_side(source.key, resident(0));
    copy_side(source.value, resident(1));
    const int end = seen ? args.queries : 0;
    int query = kOptions && source.causal ? first / columns * columns : 0;
    if (query < end) copy(query, 0);
    commit_copies();
    for (int stage = 0; query < end; stage ^= 1, query += columns) {
      wait_copies<0>();
      __syncthreads();  // the tile is there, and nobody reads the one before it any more
      if (query + columns < end) copy(query + columns, stage ^ 1);
      commit_copies();
      step(query, stage);
    }
    store();
  }

 private:
  __device__ void copy_side(const AttentionTensor& tensor, uint32_t to) const {
    copy_rows<T, kWidth, rows, threads>(to, slice<T>(tensor, b, h), tensor.stride_l, first, args.head_dim, seen,
                                        args.vectors);
  }

  __device__ void copy(int query, int stage) const {
    const Bits present = first_bits(args.queries - query);
    const auto rows_of = [&](const AttentionTensor& tensor, uint32_t to) {
      copy_rows<T, kWidth, columns, threads>(to, slice<T>(tensor, b, h), tensor.stride_l, query, args.head_dim, present,
                                             args.vectors);
    };
    rows_of(args.query, streamed(stage, 0));
    rows_of(args.grad_out, streamed(stage, 1));
    // rows of 0 beyond the last query weigh 1 and add nothing
    const int64_t stream = args.joint ? bh : bh * args.sources + p;
    const float2* from = reinterpret_cast<const float2*>(args.rows) + stream * args.queries + query;
    for (int i = threadIdx.x; i < columns; i += threads) {
      copy_async_8(shared_address(&pairs[stage][i]), from + i, query + i < args.queries);
    }
  }

  __device__ void step(int query, int stage) {
    typename Base::Scores s, dw;
    this->multiply(args, stage, s, dw);
    const auto& source = args.source[p];
    const bool causal = kOptions && source.causal && query < first + rows - 1;
    const bool whole = seen == first_bits(rows) && !causal && !(kOptions && source.related);
    const float offset_scale = args.joint ? gate : 1.f;
    const int t = threadIdx.x % 4;
    uint32_t visible = ~0u, kept = ~0u;  // bit 4 n + i for c[i] of piece n
    if (!whole) visible = visible_pairs(query, causal);
    if (kOptions && dropout.on) kept = kept_pairs(query);
#pragma unroll
    for (int n = 0; n < columns / 8; ++n) {
      const float4 pair = *reinterpret_cast<const float4*>(&pairs[stage][8 * n + 2 * t]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool second = i % 2, stays = !(kOptions && dropout.on) || (kept >> (4 * n + i) & 1);
        float &x = s[0][n][i], &y = dw[0][n][i];
        float weight = weight_of(x, args.scale_log2, second ? pair.z : pair.x, args.joint);
        float dropped = kOptions && dropout.on ? (stays ? y * args.keep_scale : 0.f) : y;
        if (!whole && !(visible >> (4 * n + i) & 1)) weight = dropped = 0.f;
        // the gate comes after the product; joint before, as a closed stream's W is huge
        y = !stays ? 0.f : args.joint ? weight * gate : weight;
        x = weight * __fsub_rn(__fmul_rn(gate, dropped), __fmul_rn(offset_scale, second ? pair.w : pair.y));
      }
    }
    this->add(args, grad_key, s, stage, 0);
    this->add(args, grad_value, dw, stage, 1);
  }

  __device__ uint32_t visible_pairs(int query, bool causal) const {
    const auto& source = args.source[p];
    const int t = threadIdx.x % 4;
    int64_t group[2] = {};
    if (kOptions && source.related) {
      for (int half = 0; half < 2; ++half) {
        const int key = first + row() + 8 * half;
        if (key < source.length) group[half] = source.groups[b * source.length + key];
      }
    }
    uint32_t bits = 0;
#pragma unroll 1
    for (int n = 0; n < columns / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = query + 8 * n + 2 * t + i % 2;
        bool visible = seen >> (row() + 8 * (i / 2)) & 1;
        if (causal) visible = visible && first + row() + 8 * (i / 2) <= at;
        if (kOptions && source.related && visible && at < args.queries) {
          visible = (args.query_groups[b * args.queries + at] == group[i / 2]) != source.different;
        }
        bits |= (visible ? 1u : 0u) << (4 * n + i);
      }
    }
    return bits;
  }

  // Four lanes hold the same four keys: each draws for one of the queries and one of the rows g and g + 8.
  __device__ uint32_t kept_pairs(int query) const {
    const int t = threadIdx.x % 4, mine = threadIdx.x % 32 / 4 % 4;
    const int quad = (first + row() - mine + 8 * (mine / 2)) / 4;
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
    const int count = min(rows, source.length - first);
    store_rows<T, kWidth, rows, threads>(shared, slice<T>(source.grad_key, b, h), source.grad_key.stride_l, first,
                                         args.head_dim, count, args.vectors);
    store_rows<T, kWidth, rows, threads>(shared + Base::row_bytes, slice<T>(source.grad_value, b, h),
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
  __shared__ __align__(16) float2 pairs[2][Kernel::columns];
  const int64_t bh = blockIdx.x / args.key_tiles, b = bh / args.heads, h = bh % args.heads;
  int tile = blockIdx.x % args.key_tiles, p = 0;
  for (; p < args.sources - 1; ++p) {
    const int tiles = max(1, (args.source[p].length + Kernel::rows - 1) / Kernel::rows);
    if (tile < tiles) break;
    tile -= tiles;
  }
  const auto& source = args.source[p];
  const int first = tile * Kernel::rows;
  if (tile == 0) sum_gate(args, bh * args.sources + p);

  const uint8_t* mask = source.mask == nullptr ? nullptr : source.mask + b * source.length;
  const int lane = threadIdx.x % 32;
  Bits seen = 0;
#pragma unroll
  for (int word = 0; word < (Kernel::rows + 31) / 32; ++word) {
    const int key = first + 32 * word + lane;
    const bool visible = 32 * word + lane < Kernel::rows && key < source.length && (mask == nullptr || mask[key] != 0);
    seen |= Bits{__ballot_sync(~0u, visible)} << (32 * word);
  }
  Kernel{{shared}, args, pairs, b, h, bh, p, first, seen, gate_of(args, b, h, p), Dropout(args, bh)}.run();
}

}  // namespace amuse
