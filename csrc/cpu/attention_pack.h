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

// Panels of the transposed rows, (d x count) with count rounded up to whole vectors by zeros, times `factor`.
// buffer: lanes x d elements.
template <class T, class A>
void pack_transposed(const RowList<T>& rows, int64_t count, int64_t d, A factor, A* out, A* buffer) {
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
    A* target = out + i / panel<A> * panel<A> * d + i % panel<A>;
    int64_t k = 0;
    for (; k + n <= d; k += n) {
      Vector<A> block[n];
#pragma GCC unroll 16
      for (int64_t r = 0; r < n; ++r) block[r] = factor * load(sources[r] + k);
      transpose<A>(block);
#pragma GCC unroll 16
      for (int64_t r = 0; r < n; ++r) store(target + (k + r) * panel<A>, block[r]);
    }
    for (; k < d; ++k) {
      for (int64_t r = 0; r < n; ++r) target[k * panel<A> + r] = factor * sources[r][k];
    }
  }
}

// Panels of the rows themselves, (count x d) with d rounded up to whole vectors by zeros. buffer: d elements.
template <class T, class A>
Panels<A> pack_rows(const RowList<T>& rows, int64_t count, int64_t d, A* out, A* buffer) {
  constexpr int64_t n = lanes<A>;
  const int64_t panel_stride = count * panel<A>;
  for (int64_t i = 0; i < count; ++i) {
    const A* row = load_row(rows[i], buffer, d);
    int64_t k = 0;
    for (; k + n <= d; k += n) store(out + k / panel<A> * panel_stride + i * panel<A> + k % panel<A>, load(row + k));
    if (k < d) {
      A* target = out + k / panel<A> * panel_stride + i * panel<A> + k % panel<A>;
      for (int64_t j = 0; j < n; ++j) target[j] = k + j < d ? row[k + j] : A(0);
    }
  }
  return {out, panel<A>, panel_stride};
}

// Rows of the accumulation type for use as the left factor; widened into `buffer` (count x d) when they need it.
template <class A>
struct LeftRows {
  const A* data;
  int64_t stride;
};
template <class T, class A>
LeftRows<A> left_rows(const RowList<T>& rows, int64_t count, int64_t d, A* buffer) {
  if constexpr (sizeof(T) == sizeof(A)) {
    return {rows[0], rows.stride};
  } else {
    for (int64_t i = 0; i < count; ++i) widen_row(rows[i], buffer + i * d, d);
    return {buffer, d};
  }
}

}  // namespace AMUSE_ISA
}  // namespace amuse
