// Tiles of rows in shared memory: copies from and to global memory, and products of them.
#pragma once

#include <type_traits>

#include "attention_arguments.h"
#include "mma.cuh"

namespace amuse {

// One bit for each row of a tile, or for each key; tiles have up to 64.
using Bits = uint64_t;

__device__ inline Bits first_bits(int count) {
  return count >= 64 ? ~Bits{0} : count <= 0 ? 0 : (Bits{1} << count) - 1;
}

// Rows of kWidth elements in pieces of 16 bytes, permuted within each row so that the eight rows of a matrix that
// ldmatrix reads lie in different banks.
template <class T, int kWidth>
struct TileLayout {
  static constexpr int piece_elements = 16 / sizeof(T), pieces = kWidth / piece_elements, row_bytes = 16 * pieces;

  static __device__ int swizzle(int row) { return pieces % 8 == 0 ? row & 7 : row >> 1 & 3; }
  static __device__ int offset(int row, int piece) { return row * row_bytes + 16 * (piece ^ swizzle(row)); }
  // For a piece known at compile time, combined with bits below 8: addresses of pieces 8 apart differ by a constant.
  static __device__ int offset_in_row(int piece, int bits) { return 16 * (piece / 8 * 8 + (piece % 8 ^ bits)); }
};

// The tokens of one sample in a (batch, head) slice; packed, those of all samples lie there.
struct Tokens {
  int offset, length;

  static __device__ Tokens of(const int32_t* cu_seq, int64_t b, int longest) {
    if (cu_seq == nullptr) return {0, longest};
    const int start = cu_seq[b];
    return {start, min(cu_seq[b + 1] - start, longest)};
  }
};

// From the sample's first token on.
template <class T>
__device__ T* slice(const AttentionTensor& tensor, int64_t b, int64_t h, int64_t offset) {
  return static_cast<T*>(tensor.data) + b * tensor.stride_b + h * tensor.stride_h + offset * tensor.stride_l;
}

// `copy_rows` for rows at any address; not unrolled, since it is rare and would be most of the kernels' code.
template <class T, int kWidth, int kRows, int kThreads>
__device__ void copy_elements(uint32_t tile, const T* from, int64_t stride, int first, int head_dim, Bits present) {
  using Layout = TileLayout<T, kWidth>;
#pragma unroll 1
  for (int index = threadIdx.x; index < kRows * Layout::pieces; index += kThreads) {
    const int row = index / Layout::pieces, column = index % Layout::pieces * Layout::piece_elements;
    union {
      uint4 words;
      T elements[Layout::piece_elements];
    } held;
    held.words = uint4{};
    if ((present >> row & 1) && column < head_dim) {
#pragma unroll
      for (int e = 0; e < Layout::piece_elements; ++e) held.elements[e] = from[(first + row) * stride + column + e];
    }
    asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(tile + Layout::offset(row, index % Layout::pieces)),
                 "r"(held.words.x), "r"(held.words.y), "r"(held.words.z), "r"(held.words.w)
                 : "memory");
  }
}

// Copies rows `first` and following of a (batch, head) slice into a tile, asynchronously where 16 bytes at a time are
// possible. Rows without their bit in `present`, and what lies beyond the head dim, become 0.
template <class T, int kWidth, int kRows, int kThreads>
__device__ void copy_rows(uint32_t tile, const T* from, int64_t stride, int first, int head_dim, Bits present,
                          bool vectors) {
  using Layout = TileLayout<T, kWidth>;
  if (!vectors) {
    copy_elements<T, kWidth, kRows, kThreads>(tile, from, stride, first, head_dim, present);
    return;
  }
  constexpr int across = kThreads < Layout::pieces ? kThreads : Layout::pieces, down = kThreads / across;
  static_assert(kThreads % across == 0 && Layout::pieces % across == 0 && kRows % down == 0);
  const int first_row = threadIdx.x / across;
#pragma unroll
  for (int pass = 0; pass < Layout::pieces / across; ++pass) {
    const int piece = pass * across + threadIdx.x % across;
    const T* source = from + (first + first_row) * stride + piece * Layout::piece_elements;
    const Bits left = piece * Layout::piece_elements < head_dim ? present >> first_row : 0;
#pragma unroll
    for (int row = 0; row < kRows; row += down) {
      copy_async(tile + Layout::offset(first_row + row, piece), source, left >> row & 1);
      source += down * stride;
    }
  }
}

// Stores the first `count` rows of a tile.
template <class T, int kWidth, int kRows, int kThreads>
__device__ void store_rows(const unsigned char* tile, T* to, int64_t stride, int first, int head_dim, int count,
                           bool vectors) {
  using Layout = TileLayout<T, kWidth>;
#pragma unroll 4
  for (int index = threadIdx.x; index < kRows * Layout::pieces; index += kThreads) {
    const int row = index / Layout::pieces, piece = index % Layout::pieces;
    if (row >= count || piece * Layout::piece_elements >= head_dim) continue;
    const unsigned char* source = tile + Layout::offset(row, piece);
    T* target = to + (first + row) * stride + piece * Layout::piece_elements;
    if (vectors) {
      *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(source);
    } else {
#pragma unroll 1
      for (int e = 0; e < Layout::piece_elements; ++e) target[e] = reinterpret_cast<const T*>(source)[e];
    }
  }
}

// Stores 0 in rows `first` up to `end` of a (batch, head) slice.
template <class T, int kThreads>
__device__ void zero_rows(T* to, int64_t stride, int first, int end, int head_dim, bool vectors) {
  constexpr int piece_elements = 16 / sizeof(T);
  const int pieces = head_dim / piece_elements;
#pragma unroll 1
  for (int row = first + threadIdx.x / 32; row < end; row += kThreads / 32) {
#pragma unroll 1
    for (int piece = threadIdx.x % 32; piece < pieces; piece += 32) {
      T* target = to + row * stride + piece * piece_elements;
      if (vectors) {
        *reinterpret_cast<uint4*>(target) = uint4{};
      } else {
#pragma unroll 1
        for (int e = 0; e < piece_elements; ++e) target[e] = T{};
      }
    }
  }
}

// Puts columns `column` and following of 16 rows into a tile: [16, 8 kCount] held as C fragments.
template <class T, int kWidth, int kCount>
__device__ void put_rows(unsigned char* tile, int row, int column, const Accumulator (&c)[kCount], float factor) {
  using Layout = TileLayout<T, kWidth>;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < kCount; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = column + 8 * n + 2 * (lane % 4);
      unsigned char* to = tile + Layout::offset(row + lane / 4 + 8 * half, at / Layout::piece_elements) +
                          at % Layout::piece_elements * sizeof(T);
      const float low = c[n][2 * half] * factor, high = c[n][2 * half + 1] * factor;
      if constexpr (sizeof(T) == 4) {
        *reinterpret_cast<float2*>(to) = float2{low, high};
      } else {
        *reinterpret_cast<uint32_t*>(to) = pack(low, high, T{});
      }
    }
  }
}

// Fragments of A from rows of a tile in shared memory.
template <class T, int kWidth>
struct SharedRows {
  using Layout = TileLayout<T, kWidth>;

  uint32_t row_address;  // address of the row that this lane reads
  int swizzled;          // piece within pair 0

  __device__ SharedRows(uint32_t tile, int row) {
    const int lane = threadIdx.x % 32;
    row_address = tile + (row + lane % 16) * Layout::row_bytes;
    swizzled = lane / 16 ^ Layout::swizzle(lane % 16);
  }
  __device__ void get(Fragment& a, int group, int step) const {
    load_matrices(a, row_address + group * 16 * Layout::row_bytes + Layout::offset_in_row(2 * step, swizzled));
  }
};

// Fragments of A in registers: 16 * kGroups rows.
template <class T, int kWidth, int kGroups>
struct RegisterRows {
  static constexpr int steps = kWidth * sizeof(T) / 32;
  Fragment held[kGroups][steps];

  __device__ void load(uint32_t tile, int row) {
    const SharedRows<T, kWidth> rows(tile, row);
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int step = 0; step < steps; ++step) rows.get(held[group][step], group, step);
    }
  }
  __device__ void get(Fragment& a, int group, int step) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = held[group][step][i];
  }
};

// Calls a product with a compile-time kExact.
template <class T, class Product>
__device__ void by_precision(bool allow_tf32, const Product& product) {
  if (sizeof(T) == 2 || !allow_tf32) {
    product(std::true_type{});
  } else {
    if constexpr (sizeof(T) == 4) product(std::false_type{});
  }
}

// C = A B^T over the head dim, for all kRows rows of the tile B.
template <class T, int kWidth, int kRows, bool kExact, bool kSwapped = false, int kGroups, class Rows>
__device__ void multiply_rows(Accumulator (&c)[kGroups][kRows / 8], const Rows& a_rows, uint32_t tile) {
  using Layout = TileLayout<T, kWidth>;
  const int lane = threadIdx.x % 32, row = lane % 8 + lane / 16 * 8;
  const int swizzled = (lane / 8 & 1) ^ Layout::swizzle(row);
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) c[group][n][0] = c[group][n][1] = c[group][n][2] = c[group][n][3] = 0.f;
  }
  constexpr int steps = Layout::pieces / 2,
                unrolled = steps > 16 ? 4 : steps;  // not unrolled where compiling takes long
#pragma unroll 1
  for (int start = 0; start < steps; start += unrolled) {
#pragma unroll
    for (int i = 0; i < unrolled; ++i) {
      Fragment a[kGroups];
#pragma unroll
      for (int group = 0; group < kGroups; ++group) a_rows.get(a[group], group, start + i);
      const uint32_t address = tile + row * Layout::row_bytes + start * 32 + Layout::offset_in_row(2 * i, swizzled);
#pragma unroll
      for (int n = 0; n < kRows / 16; ++n) {
        Fragment b;
        load_matrices(b, address + n * 16 * Layout::row_bytes);
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          Tensor<T>::template multiply<kExact, kSwapped>(c[group][2 * n], a[group], b[0], b[1]);
          Tensor<T>::template multiply<kExact, kSwapped>(c[group][2 * n + 1], a[group], b[2], b[3]);
        }
      }
    }
  }
}

// acc += P B over the kRows rows of the tile B, of whose columns those from `column` on. P is held as C fragments; in
// float32 the summed index is permuted, the same way in P and B, so that P's registers are fragments of A as they are.
template <class T, int kWidth, int kRows, bool kExact, int kGroups, int kCount>
__device__ void multiply_columns(Accumulator (&acc)[kGroups][kCount], const Accumulator (&p)[kGroups][kRows / 8],
                                 uint32_t tile, int column) {
  using Layout = TileLayout<T, kWidth>;
  const int lane = threadIdx.x % 32;
  if constexpr (sizeof(T) == 2) {
    const int row = lane % 16, swizzled = lane / 16 ^ Layout::swizzle(row);
    const uint32_t address = tile + row * Layout::row_bytes + column * sizeof(T);
#pragma unroll
    for (int step = 0; step < kRows / 16; ++step) {
      Fragment a[kGroups];
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        const Accumulator &left = p[group][2 * step], &right = p[group][2 * step + 1];
        a[group][0] = pack(left[0], left[1], T{});
        a[group][1] = pack(left[2], left[3], T{});
        a[group][2] = pack(right[0], right[1], T{});
        a[group][3] = pack(right[2], right[3], T{});
      }
#pragma unroll
      for (int n = 0; n < kCount / 2; ++n) {
        Fragment b;
        load_matrices_transposed(b, address + step * 16 * Layout::row_bytes + Layout::offset_in_row(2 * n, swizzled));
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          Tensor<T>::template multiply<kExact>(acc[group][2 * n], a[group], b[0], b[1]);
          Tensor<T>::template multiply<kExact>(acc[group][2 * n + 1], a[group], b[2], b[3]);
        }
      }
    }
  } else {
    // the rows that this lane reads are 2 t and 2 t + 1 of eight
    const int row = 2 * (lane % 4);
    const int swizzled0 = lane / 16 ^ Layout::swizzle(row), swizzled1 = lane / 16 ^ Layout::swizzle(row + 1);
    const uint32_t address = tile + row * Layout::row_bytes + (column + lane / 4 % 4) * sizeof(T);
#pragma unroll
    for (int step = 0; step < kRows / 8; ++step) {
      Fragment a[kGroups];
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[group][i] = __float_as_uint(p[group][step][i % 2 * 2 + i / 2]);
      }
#pragma unroll
      for (int n = 0; n < kCount; ++n) {
        const uint32_t eight = address + 8 * step * Layout::row_bytes;
        const uint32_t b0 = load_word(eight + Layout::offset_in_row(2 * n, swizzled0));
        const uint32_t b1 = load_word(eight + Layout::row_bytes + Layout::offset_in_row(2 * n, swizzled1));
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          Tensor<T>::template multiply<kExact>(acc[group][n], a[group], b0, b1);
        }
      }
    }
  }
}

// --- Large scores ---
//
// A float32 sum of products is off by a few 2^-24 of itself, and the weight 2^score by as much relative to 1. Where
// that comes near the error budget, the scores of a row are summed again in double and rounded once. 16-bit inputs are
// coarser than these sums, and so is TF32.

constexpr float large_score = 64.f;  // in base 2

template <class T>
__device__ bool is_large(const AttentionArguments& args, float score) {
  return sizeof(T) == 4 && !args.allow_tf32 && fabsf(score) > large_score && fabsf(score) < INFINITY;
}

// Rows `first` to `last` of a (batch, head) slice, in global memory; the last one in place of those beyond it.
template <class T>
struct GlobalRows {
  const T* data;
  int64_t stride;
  int first, last;

  __device__ const T* row(int index) const { return data + min(first + index, last) * stride; }
};

// Bit 4 n + i for c[i] of piece n of a C fragment: those of row g, or of row g + 8.
__device__ inline uint32_t row_of_fragment(int half) { return half == 0 ? 0x33333333u : 0xccccccccu; }

// Scores of 16 rows and kColumns columns of one (batch, head) as a C fragment; those with their bit in `chosen` are
// replaced.
template <int kColumns, class T>
__device__ void refine_scores(Accumulator (&c)[kColumns / 8], const GlobalRows<T>& rows, const GlobalRows<T>& columns,
                              int head_dim, uint32_t chosen) {
  if constexpr (sizeof(T) == 4) {
    const int lane = threadIdx.x % 32;
    const T *row0 = rows.row(lane / 4), *row1 = rows.row(lane / 4 + 8);
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
      const T *column0 = columns.row(8 * n + 2 * (lane % 4)), *column1 = columns.row(8 * n + 2 * (lane % 4) + 1);
      double sum[4] = {};
#pragma unroll 1
      for (int k = 0; k < head_dim; ++k) {
        const double x[2] = {row0[k], row1[k]}, y[2] = {column0[k], column1[k]};
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] = fma(x[i / 2], y[i % 2], sum[i]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) c[n][i] = chosen >> (4 * n + i) & 1 ? static_cast<float>(sum[i]) : c[n][i];
    }
  }
}

}  // namespace amuse
