// The streams of one sample as a tile of queries sees them: which keys, in which order of tiles, which pairs.
// kOptions: with groups, causal streams and dropout; kernels without it have no code for them.
#pragma once

#include "attention_tile.cuh"

namespace amuse {

// In shared memory, filled once by the whole block.
template <int kRows>
struct Streams {
  Tokens keys[max_sources];
  int whole[max_sources];   // keys [0, whole) are seen by all queries of the tile
  int end[max_sources];     // no key from here on is seen by any
  bool holes[max_sources];  // whether keys in between are hidden by the mask
  float gate[max_sources];
  int64_t query_groups[kRows];  // only with groups
};

// Where a sample's queries begin in stream `stream` of `streams`, laid out as (B, H, streams, Lq), packed (H, streams,
// T).
__device__ inline int64_t first_row(const AttentionArguments& args, int64_t b, int64_t h, int streams, int stream,
                                    int offset) {
  const int64_t slice = args.cu_seq_q == nullptr ? b * args.heads + h : h;
  return (slice * streams + stream) * args.tokens + offset;
}

// Where a sample's keys begin in the mask and the groups of a stream.
__device__ inline int64_t first_key(const AttentionArguments::Source& source, int64_t b, int offset) {
  return source.cu_seq == nullptr ? b * source.length : offset;
}

// The `count` queries from `first` on of one (b, h); none where the sample is shorter.
struct QueryTile {
  int64_t b, h, bh;
  int offset;  // index of the sample's first query
  int first, count;

  // The tile of this block, with at most `rows` queries.
  static __device__ QueryTile of_block(const AttentionArguments& args, int rows) {
    const int64_t bh = blockIdx.x / args.query_tiles, b = bh / args.heads;
    const int first = blockIdx.x % args.query_tiles * rows;
    const Tokens tokens = Tokens::of(args.cu_seq_q, b, args.queries);
    return {b, bh % args.heads, bh, tokens.offset, first, min(rows, tokens.length - first)};
  }

  template <class T>
  __device__ T* slice(const AttentionTensor& tensor) const {
    return amuse::slice<T>(tensor, b, h, offset);
  }
};

__device__ inline float gate_of(const AttentionArguments& args, int64_t b, int64_t h, int p) {
  if (args.gates == nullptr) return 1.f;
  return args.gates[b * args.gate_stride_b + h * args.gate_stride_h + p * args.gate_stride_p];
}

template <bool kOptions, int kThreads, int kRows>
__device__ void open_streams(const AttentionArguments& args, const QueryTile& queries, Streams<kRows>& streams) {
  const int lane = threadIdx.x % 32;
  for (int p = threadIdx.x / 32; p < args.sources; p += kThreads / 32) {
    const auto& source = args.source[p];
    const Tokens keys = Tokens::of(source.cu_seq, queries.b, source.length);
    const int length = keys.length;
    int whole = length, end = length;
    if (source.mask != nullptr) {
      const uint8_t* mask = source.mask + queries.b * length;
      end = 0;
      for (int start = 0; start < length; start += 32) {
        const uint32_t seen = __ballot_sync(~0u, start + lane < length && mask[start + lane] != 0);
        const uint32_t hidden = ~seen & static_cast<uint32_t>(first_bits(min(length - start, 32)));
        if (hidden && whole == length) whole = start + __ffs(hidden) - 1;
        if (seen) end = start + 32 - __clz(seen);
      }
      whole = min(whole, end);
    }
    if (lane == 0) streams.holes[p] = whole < end;
    if (kOptions && source.related) whole = 0;
    if (kOptions && source.causal) {
      whole = min(whole, queries.first + 1);
      end = min(end, queries.first + queries.count);
    }
    if (lane == 0) {
      streams.keys[p] = keys;
      streams.whole[p] = min(whole, end);
      streams.end[p] = end;
      streams.gate[p] = gate_of(args, queries.b, queries.h, p);
    }
  }
  if (kOptions && args.query_groups != nullptr) {
    for (int i = threadIdx.x; i < kRows; i += kThreads) {
      const int64_t query = (args.cu_seq_q == nullptr ? queries.b * args.queries : queries.offset) + queries.first + i;
      streams.query_groups[i] = i < queries.count ? args.query_groups[query] : 0;
    }
  }
}

struct KeyTile {
  int p = -1, start = 0;
  int limit = 0;          // end of the keys of stream p
  bool last_pass = true;  // see KeyTiles
  bool whole = false;     // every query sees every key of the tile
  Bits seen = 0;          // keys that some query sees

  __device__ bool same_range(const KeyTile& other) const { return p == other.p && last_pass == other.last_pass; }
};

// Walks over the tiles of keys that some query sees. Every warp does so by itself; all of them find the same. With
// kTwice, streams of more than one tile come twice, joint all of them: once for the rows' sums, once for the rest.
template <int kColumns, bool kOptions, bool kTwice, int kRows>
struct KeyTiles : KeyTile {
  const AttentionArguments& args;
  const Streams<kRows>& streams;
  const QueryTile& queries;

  __device__ KeyTiles(const AttentionArguments& args, const Streams<kRows>& streams, const QueryTile& queries)
      : args(args), streams(streams), queries(queries) {}

  // Moves to the last of the whole tiles from this one on, and counts them.
  __device__ int skip_whole() {
    if (!whole) return 0;
    const int count = (streams.whole[p] - start) / kColumns;
    start += (count - 1) * kColumns;
    return count;
  }

  // Moves to the next tile; false after the last one.
  __device__ bool next() {
    start += kColumns;
    while (true) {
      for (; start < limit; start += kColumns) {
        whole = start + kColumns <= streams.whole[p];
        seen = whole ? ~Bits{0} : visible_bits();
        if (seen) return true;
      }
      if (!next_range()) return false;
    }
  }

 private:
  __device__ bool next_range() {
    start = 0;
    if (!args.joint && !last_pass) {
      last_pass = true;
      return true;
    }
    if (kTwice && args.joint && p < 0) last_pass = false;
    if (++p == args.sources) {
      if (last_pass) return false;
      last_pass = true;
      p = 0;
    }
    limit = streams.end[p];
    if (args.joint) {
      // a closed stream takes no part in the softmax; its gate has a gradient all the same
      if (!(kTwice && last_pass) && !(streams.gate[p] > 0.f)) limit = 0;
    } else if (kTwice) {
      last_pass = limit <= kColumns;
    }
    return true;
  }

  __device__ Bits visible_bits() const {
    const auto& source = args.source[p];
    const int lane = threadIdx.x % 32;
    const int64_t tile = first_key(source, queries.b, streams.keys[p].offset) + start;
    Bits bits = 0;
#pragma unroll
    for (int word = 0; word < (kColumns + 31) / 32; ++word) {
      const int at = 32 * word + lane;
      bool visible = at < kColumns && start + at < limit;
      if (visible && streams.holes[p]) visible = source.mask[tile + at] != 0;
      if (kOptions && visible && source.related) {
        const int64_t group = source.groups[tile + at];
        visible = false;
        for (int i = source.causal ? max(start + at - queries.first, 0) : 0; i < queries.count; ++i) {
          visible |= (streams.query_groups[i] == group) != source.different;
        }
      }
      bits |= Bits{__ballot_sync(~0u, visible)} << (32 * word);
    }
    return bits;
  }
};

// Those of the tile's keys and values that some query sees; the others become 0.
template <class T, int kWidth, int kColumns, int kThreads, int kRows>
__device__ void copy_keys(const AttentionArguments& args, const Streams<kRows>& streams, const QueryTile& queries,
                          const KeyTile& at, uint32_t keys, uint32_t values, bool vectors) {
  const auto& source = args.source[at.p];
  const auto rows_of = [&](const AttentionTensor& tensor, uint32_t to) {
    copy_rows<T, kWidth, kColumns, kThreads>(to, slice<T>(tensor, queries.b, queries.h, streams.keys[at.p].offset),
                                             tensor.stride_l, at.start, args.head_dim, at.seen, vectors);
  };
  rows_of(source.key, keys);
  rows_of(source.value, values);
}

// Loops that only compute bits are not unrolled: that would double the code of the kernels.

// Bit 2 n + e: whether query `query`, row `row` of its tile, sees key 8 n + 2 t + e of a tile: as C fragments lie.
template <int kColumns, bool kOptions, int kRows>
__device__ uint32_t visible_keys(const AttentionArguments& args, const Streams<kRows>& streams,
                                 const QueryTile& queries, const KeyTile& tile, int row) {
  const int t = threadIdx.x % 4;
  const Bits seen = tile.seen >> (2 * t);
  uint32_t bits = 0;
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n) bits |= static_cast<uint32_t>(seen >> (8 * n) & 3) << (2 * n);
  if (kOptions) {
    const auto& source = args.source[tile.p];
    if (source.causal) {
      // the last key in sight, counted from this lane's first
      const int reach = queries.first + row - tile.start - 2 * t;
#pragma unroll 1
      for (int i = 0; i < kColumns / 4; ++i) {
        if (8 * (i / 2) + i % 2 > reach) bits &= ~(1u << i);
      }
    }
    if (source.related) {
      const int64_t first = first_key(source, queries.b, streams.keys[tile.p].offset);
      const int64_t* groups = source.groups + first + tile.start + 2 * t;
      const int64_t group = streams.query_groups[row];
#pragma unroll 1
      for (int i = 0; i < kColumns / 4; ++i) {
        if (!(bits >> i & 1)) continue;  // also what lies beyond the last key
        if ((groups[8 * (i / 2) + i % 2] == group) == source.different) bits &= ~(1u << i);
      }
    }
  }
  return bits;
}

// --- Dropout: Philox 4x32-10 (Salmon et al., SC 2011), drawn as amuse_kernels/dropout.py lays it out ---

struct Dropout {
  uint32_t key_low, key_high, bh, threshold;
  bool on;

  __device__ Dropout(const AttentionArguments& args, int64_t bh)
      : key_low(0),
        key_high(0),
        bh(static_cast<uint32_t>(bh)),
        threshold(args.drop_threshold),
        on(args.seed != nullptr) {
    if (!on) return;
    const uint64_t seed = static_cast<uint64_t>(*args.seed);
    key_low = static_cast<uint32_t>(seed);
    key_high = static_cast<uint32_t>(seed >> 32);
  }

  // Bit w: whether the pair of `query` and key 4 quad + w of stream p stays.
  __device__ uint32_t kept(int quad, int query, int p) const {
    uint32_t c0 = quad, c1 = query, c2 = bh, c3 = p, k0 = key_low, k1 = key_high;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
      const uint64_t product0 = uint64_t{c0} * 0xD2511F53u, product1 = uint64_t{c2} * 0xCD9E8D57u;
      c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
      c1 = static_cast<uint32_t>(product1);
      c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
      c3 = static_cast<uint32_t>(product0);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return (c0 >= threshold ? 1u : 0u) | (c1 >= threshold ? 2u : 0u) | (c2 >= threshold ? 4u : 0u) |
           (c3 >= threshold ? 8u : 0u);
  }
};

// For the two rows of C that a lane holds, the pairs that stay, in bits as of visible_keys. `query` is that of row g.
// Lanes t and t ^ 1 hold the same four keys: one draws for row g, the other for g + 8.
template <int kColumns>
__device__ void kept_keys(const Dropout& dropout, int p, int start, int query, uint32_t (&bits)[2]) {
  const int t = threadIdx.x % 4;
  bits[0] = bits[1] = 0;
#pragma unroll 1
  for (int n = 0; n < kColumns / 8; ++n) {
    const uint32_t mine = dropout.kept((start + 8 * n) / 4 + t / 2, query + 8 * (t % 2), p);
    const uint32_t other = __shfl_xor_sync(~0u, mine, 1);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      bits[half] |= ((half == t % 2 ? mine : other) >> (2 * (t % 2)) & 3) << (2 * n);
    }
  }
}

}  // namespace amuse
