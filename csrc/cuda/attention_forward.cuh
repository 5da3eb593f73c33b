// Forward kernel of p2c_attention (paper Eq. 1): all streams of one tile of queries in one block.
#pragma once

#include "attention_streams.cuh"

namespace amuse {

constexpr float far_below = -1e30f;  // finite, so that a row without a visible key has weights of 0 and not NaN
constexpr float ln_2 = 0.6931471805599453f;

template <int kRows>
struct ForwardRows {
  Streams<kRows> streams;
  float lse[kRows * max_sources];  // [rows, sources], joint [rows]
};

// kShort: with the tile for at most `short_queries` queries.
template <class T, int kWidth, bool kOptions, bool kShort>
struct AttentionForward {
  static constexpr AttentionTile tile = forward_tile(sizeof(T), kWidth, kShort);
  static constexpr int threads = tile.threads(), rows = tile.rows(), columns = tile.columns, groups = tile.row_tiles;
  static constexpr int column_bytes = tile_bytes(columns, sizeof(T), kWidth), pieces = kWidth / 8;
  static constexpr bool query_held = query_in_registers(sizeof(T), kWidth);
  static constexpr int query_bytes = forward_query_bytes(tile, sizeof(T), kWidth);
  static constexpr int buffers = query_bytes + tile_bytes(rows, 4, kWidth);  // where they start
  using Tiles = KeyTiles<columns, kOptions, false, rows>;

  const AttentionArguments& args;
  ForwardRows<rows>& table;
  const Streams<rows>& streams;
  const QueryTile queries;
  const Dropout dropout;
  unsigned char* const shared;

  Accumulator acc[groups][pieces] = {};      // weighted values of the stream so far
  float maximum[groups][2], sum[groups][2];  // online softmax, base 2; the sum is this lane's part
  bool stashed = false;                      // whether there are outputs of finished streams

  __device__ AttentionForward(const AttentionArguments& args, ForwardRows<rows>& table, const QueryTile& queries,
                              unsigned char* shared)
      : args(args), table(table), streams(table.streams), queries(queries), dropout(args, queries.bh), shared(shared) {
    reset();
  }

  __device__ void run() {
    Tiles tiles(args, streams, queries);
    copy_rows<T, kWidth, rows, threads>(shared_address(shared), queries.slice<T>(args.query), args.query.stride_l,
                                        queries.first, args.head_dim, first_bits(queries.count), args.vectors);
    commit_copies();
    bool more = tiles.next();
    if (more) copy(tiles, 0, args.vectors);
    commit_copies();

    const int warp_row = first_row_of_warp();
    if constexpr (query_held) {
      RegisterRows<T, kWidth, groups> query;
      wait_copies<1>();
      __syncthreads();
      query.load(shared_address(shared), warp_row);
      __syncthreads();  // the outputs of finished streams overwrite it
      walk(tiles, more, query);
    } else {
      walk(tiles, more, SharedRows<T, kWidth>(shared_address(shared), warp_row));
    }
    store();
  }

 private:
  __device__ uint32_t buffer(int stage) const { return shared_address(shared) + buffers + 2 * stage * column_bytes; }

  __device__ void copy(const KeyTile& at, int stage, bool vectors) const {
    copy_keys<T, kWidth, columns, threads>(
        args, streams, queries, at, buffer(stage), buffer(stage) + column_bytes, vectors);
  }

  template <class Query>
  __device__ void walk(Tiles& tiles, bool more, const Query& query) {
    for (int stage = 0; more;) {
      KeyTile at = tiles;
      const float bias = args.joint ? log2f(streams.gate[at.p]) : 0.f;
      int whole = args.vectors ? tiles.skip_whole() : 0;
      more = tiles.next();
      if (whole == 0) {
        arrive();
        if (more) copy(tiles, stage ^ 1, args.vectors);
        commit_copies();
        attend<true>(at, query, stage, bias);
        stage ^= 1;
      }
      // A separate loop, without the work for masks and for tiles that are not whole.
      for (KeyTile ahead = at; whole > 0; --whole, stage ^= 1, at.start += columns) {
        arrive();
        ahead.start += columns;
        if (whole == 1) ahead = tiles;
        if (whole > 1 || more) copy(ahead, stage ^ 1, true);
        commit_copies();
        attend<false>(at, query, stage, bias);
      }
      if (!more || !(args.joint || tiles.same_range(at))) finish(at.p, !more);
    }
  }

  // Waits for the tile that was copied last; no warp still reads the one before it.
  __device__ void arrive() const {
    wait_copies<0>();
    __syncthreads();
  }

  // One step of the online softmax: maximum, sum and weighted values with one more tile of keys.
  template <bool kMasked, class Query>
  __device__ void attend(const KeyTile& at, const Query& query, int stage, float bias) {
    if (first_row_of_warp() >= queries.count) return;  // a warp without queries only copies
    Accumulator s[groups][columns / 8];
    by_precision<T>(
        args.allow_tf32, [&](auto exact) { multiply_rows<T, kWidth, columns, exact>(s, query, buffer(stage)); });
#pragma unroll
    for (int group = 0; group < groups; ++group) {
      const int row = row_of(group);
      uint32_t visible[2] = {~0u, ~0u};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (kMasked) visible[half] = visible_keys<columns, kOptions>(args, streams, queries, at, row + 8 * half);
      }
      refine(at, group, visible, s[group]);
      uint32_t kept[2] = {};
      if (kOptions && dropout.on) kept_keys<columns>(dropout, at.p, at.start, queries.first + row, kept);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = far_below;
#pragma unroll
        for (int i = 0; i < columns / 4; ++i) {
          float& x = s[group][i / 2][2 * half + i % 2];
          x = fmaf(x, args.scale_log2, bias);
          if (kMasked && !(visible[half] >> i & 1)) x = -INFINITY;
          top = fmaxf(top, x);
        }
        const float before = maximum[group][half], now = fmaxf(before, row_max(top)), decay = exp2_fast(before - now);
        float part = 0.f;
#pragma unroll
        for (int i = 0; i < columns / 4; ++i) {
          float& x = s[group][i / 2][2 * half + i % 2];
          x = exp2_fast(x - now);
          part += x;
          if (kOptions && dropout.on && !(kept[half] >> i & 1)) x = 0.f;
        }
        maximum[group][half] = now;
        sum[group][half] = fmaf(sum[group][half], decay, part);
#pragma unroll
        for (int n = 0; n < pieces; ++n) {
          acc[group][n][2 * half] *= decay;
          acc[group][n][2 * half + 1] *= decay;
        }
      }
    }
    by_precision<T>(args.allow_tf32, [&](auto exact) {
      multiply_columns<T, kWidth, columns, exact>(acc, s, buffer(stage) + column_bytes, 0);
    });
  }

  // Sums the scores of rows again whose largest visible one is large.
  __device__ void refine(const KeyTile& at, int group, const uint32_t (&visible)[2],
                         Accumulator (&s)[columns / 8]) const {
    if constexpr (sizeof(T) == 4) {
      uint32_t chosen = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = -INFINITY;
#pragma unroll
        for (int i = 0; i < columns / 4; ++i) {
          if (visible[half] >> i & 1) top = fmaxf(top, s[i / 2][2 * half + i % 2] * args.scale_log2);
        }
        if (is_large<T>(args, row_max(top))) chosen |= row_of_fragment(half);
      }
      if (!__any_sync(~0u, chosen)) return;
      const auto& source = args.source[at.p];
      const int first = queries.first + row_of(group) - threadIdx.x % 32 / 4, last = queries.first + queries.count - 1;
      const Tokens tokens = streams.keys[at.p];
      const GlobalRows<T> query{queries.slice<T>(args.query), args.query.stride_l, first, last};
      const GlobalRows<T> keys{
          slice<T>(source.key, queries.b, queries.h, tokens.offset), source.key.stride_l, at.start, tokens.length - 1};
      refine_scores<columns>(s, query, keys, args.head_dim, chosen);
    }
  }

  static __device__ int first_row_of_warp() { return threadIdx.x / 32 * 16 * groups; }
  // Row g of a group of 16; the lane holds row g + 8 too.
  static __device__ int row_of(int group) { return first_row_of_warp() + 16 * group + threadIdx.x % 32 / 4; }

  __device__ void reset() {
#pragma unroll
    for (int group = 0; group < groups; ++group) {
      maximum[group][0] = maximum[group][1] = far_below;
      sum[group][0] = sum[group][1] = 0.f;
    }
  }

  // Ends stream p, joint all streams: divides by the sum, adds the output of the streams before it, stores lse.
  __device__ void finish(int p, bool last) {
    float4* stash = reinterpret_cast<float4*>(shared + query_bytes) + threadIdx.x;
    const float gate = args.joint ? 1.f : streams.gate[p];
#pragma unroll
    for (int group = 0; group < groups; ++group) {
      float factor[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float total = row_sum(sum[group][half]);
        factor[half] = total == 0.f ? 0.f : gate * args.keep_scale / total;
        if (threadIdx.x % 4 == 0 && total != 0.f) {
          const int row = row_of(group) + 8 * half;
          table.lse[args.joint ? row : row * args.sources + p] = (maximum[group][half] + log2f(total)) * ln_2;
        }
      }
#pragma unroll
      for (int n = 0; n < pieces; ++n) {
        Accumulator& a = acc[group][n];
        float4& slot = stash[(group * pieces + n) * threads];
        float4 out = {a[0] * factor[0], a[1] * factor[0], a[2] * factor[1], a[3] * factor[1]};
        if (stashed) out = {out.x + slot.x, out.y + slot.y, out.z + slot.z, out.w + slot.w};
        if (!last) {
          slot = out;
          out = {};
        }
        a[0] = out.x, a[1] = out.y, a[2] = out.z, a[3] = out.w;
      }
    }
    stashed = true;
    reset();
  }

  __device__ void store() {
    __syncthreads();  // the stash and the queries are read
#pragma unroll
    for (int group = 0; group < groups; ++group) {
      put_rows<T, kWidth>(shared, row_of(group) - threadIdx.x % 32 / 4, 0, acc[group], 1.f);
    }
    __syncthreads();
    store_rows<T, kWidth, rows, threads>(shared, queries.slice<T>(args.out), args.out.stride_l, queries.first,
                                         args.head_dim, queries.count, args.vectors);
    const int per_row = args.joint ? 1 : args.sources;
    const int64_t row = first_row(args, queries.b, queries.h, 1, 0, queries.offset) + queries.first;
    float* to = args.lse + row * per_row;
    for (int i = threadIdx.x; i < queries.count * per_row; i += threads) to[i] = table.lse[i];
  }
};

template <class T, int kWidth, bool kOptions, bool kShort = false>
__device__ void attention_forward(const AttentionArguments& args) {
  using Kernel = AttentionForward<T, kWidth, kOptions, kShort>;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ ForwardRows<Kernel::rows> table;
  const QueryTile queries = QueryTile::of_block(args, Kernel::rows);
  if (queries.count <= 0) return;
  open_streams<kOptions, Kernel::threads>(args, queries, table.streams);
  for (int i = threadIdx.x; i < Kernel::rows * max_sources; i += Kernel::threads) table.lse[i] = -INFINITY;
  __syncthreads();
  Kernel(args, table, queries, shared).run();
}

template <class T, int kWidth, bool kOptions>
__device__ void attention_forward_short(const AttentionArguments& args) {
  attention_forward<T, kWidth, kOptions, true>(args);
}

}  // namespace amuse
