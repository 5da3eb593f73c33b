// Copies of keys, values and queries in the layouts that attention_gemm.h multiplies. Rows are gathered, so hidden keys
// cost nothing afterwards, and widened to the accumulation type. Compiled once per instruction set.
#pragma once

#include "attention_exp.h"
#include "attention_gemm.h"
#include "parallel.h"

namespace amuse {
namespace AMUSE_ISA {

// Row r of a tensor's (L, D) slice, r = first + i or index[i].
template <class T>
struct RowList {
  const T* data;
  int64_t stride;
  const int32_t* index;  // null: rows first, first + 1, ...
  int64_t first;

  const T* operator[](int64_t i) const { return data + (index == nullptr ? first + i : index[i]) * stride; }
  RowList from(int64_t start) const {
    return {data, stride, index == nullptr ? nullptr : index + start, index == nullptr ? first + start : 0};
  }
};

// Swaps blocks of w lanes: those of a with an odd number for those of b with an even one.
template <class A, int w>
inline void exchange(Vector<A>& a, Vector<A>& b) {
  using Bits = typename BitsOf<A>::type;
  Bits low, high;
#pragma GCC unroll 16
  for (int i = 0; i < static_cast<int>(lanes<A>); ++i) {
    low[i] = (i & w) ? i - w + static_cast<int>(lanes<A>) : i;
    high[i] = (i & w) ? i + static_cast<int>(lanes<A>) : i + w;
  }
#if defined(__clang__)
  Vector<A> x, y;
  for (int i = 0; i < static_cast<int>(lanes<A>); ++i) {
    x[i] = (i & w) ? b[i - w] : a[i];
    y[i] = (i & w) ? b[i] : a[i + w];
  }
#else
  const Vector<A> x = __builtin_shuffle(a, b, low), y = __builtin_shuffle(a, b, high);
#endif
  a = x;
  b = y;
}

template <class A, int w>
inline void exchange_all(Vector<A>* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < static_cast<int>(lanes<A>); ++i) {
    if ((i & w) == 0) exchange<A, w>(rows[i], rows[i + w]);
  }
}

template <class A>
inline void transpose(Vector<A>* rows) {
  constexpr int n = static_cast<int>(lanes<A>);
  if constexpr (n >= 16) exchange_all<A, 8>(rows);
  if constexpr (n >= 8) exchange_all<A, 4>(rows);
  if constexpr (n >= 4) exchange_all<A, 2>(rows);
  exchange_all<A, 1>(rows);
}

// A row of the accumulation type to a row of the tensor, rounded to its type.
template <class T, class A>
void copy_row(const A* from, T* to, int64_t d) {
  if constexpr (sizeof(T) == sizeof(A)) {
    __builtin_memcpy(to, from, static_cast<size_t>(d) * sizeof(A));
  } else {
    narrow_row(from, to, d);
  }
}

// The transposed rows, (d x count) with count rounded up to whole vectors by zeros, times `factor`. buffer: lanes x d
// elements.
template <class T, class A>
void pack_transposed(const RowList<T>& rows, int64_t count, int64_t d, A factor, A* out, int64_t stride, A* buffer) {
  constexpr int64_t n = lanes<A>;
  for (int64_t i = 0; i < count; i += n) {
    const A* sources[n];
    for (int64_t r = 0; r < n; ++r) {
      if (i + r < count) {
        sources[r] = load_row(rows[i + r], buffer + r * d, d);
      } else {
        zero(buffer + r * d, d);
        sources[r] = buffer + r * d;
      }
    }
    int64_t k = 0;
    for (; k + n <= d; k += n) {
      Vector<A> block[n];
#pragma GCC unroll 16
      for (int64_t r = 0; r < n; ++r) block[r] = factor * load(sources[r] + k);
      transpose<A>(block);
#pragma GCC unroll 16
      for (int64_t r = 0; r < n; ++r) store(out + (k + r) * stride + i, block[r]);
    }
    for (; k < d; ++k) {
      for (int64_t r = 0; r < n; ++r) out[k * stride + i + r] = factor * sources[r][k];
    }
  }
}

// The rows themselves with `width` elements, those from d on 0: in place where they are such rows already, else copied
// into `buffer` (count x width). Rows far apart are copied too: they would fall into few sets of the first-level cache.
template <class T, class A>
Matrix<A> matrix_of(const RowList<T>& rows, int64_t count, int64_t d, int64_t width, A* buffer) {
  if constexpr (sizeof(T) == sizeof(A)) {
    constexpr int64_t far = 1024 / static_cast<int64_t>(sizeof(A));
    if (rows.index == nullptr && width == d && rows.stride < far) return {rows[0], rows.stride};
  }
  for (int64_t i = 0; i < count; ++i) {
    A* row = buffer + i * width;
    if constexpr (sizeof(T) == sizeof(A)) {
      __builtin_memcpy(row, rows[i], static_cast<size_t>(d) * sizeof(A));
    } else {
      widen_row(rows[i], row, d);
    }
    zero(row + d, width - d);
  }
  return {buffer, width};
}

}  // namespace AMUSE_ISA
}  // namespace amuse
