// Dot products and linear combinations of rows, on explicit vectors: the grouping of a sum is fixed by the code, not
// by the compiler or by the address of a row, so results are reproducible (compiled once per instruction set).
#pragma once

#include <cstdint>

namespace amuse {
namespace AMUSE_ISA {

#if defined(__AVX512F__)
#define AMUSE_VECTOR_BYTES 64
#elif defined(__AVX__)
#define AMUSE_VECTOR_BYTES 32
#else
#define AMUSE_VECTOR_BYTES 16
#endif

template <class A>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(AMUSE_VECTOR_BYTES)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(AMUSE_VECTOR_BYTES)));
};
template <class A>
using Vector = typename VectorOf<A>::type;
template <class A>
constexpr int64_t lanes = AMUSE_VECTOR_BYTES / static_cast<int64_t>(sizeof(A));

template <class A>
inline Vector<A> load(const A* p) {
  Vector<A> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class A>
inline void store(A* p, Vector<A> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

template <class A>
inline A sum_lanes(Vector<A> v) {
  A sum = v[0];
#pragma GCC unroll 16
  for (int64_t j = 1; j < lanes<A>; ++j) sum += v[j];
  return sum;
}

// out[r] = <x, rows[r]> for R rows at once, which hides the latency of the additions and reads x once.
template <int R, class A>
inline void dot_rows(const A* x, const A* const* rows, int64_t d, A* out) {
  Vector<A> even[R] = {}, odd[R] = {};
  int64_t k = 0;
  for (; k + 2 * lanes<A> <= d; k += 2 * lanes<A>) {
    const Vector<A> x0 = load(x + k), x1 = load(x + k + lanes<A>);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      even[r] += x0 * load(rows[r] + k);
      odd[r] += x1 * load(rows[r] + k + lanes<A>);
    }
  }
  if (k + lanes<A> <= d) {
    const Vector<A> x0 = load(x + k);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) even[r] += x0 * load(rows[r] + k);
    k += lanes<A>;
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    A sum = sum_lanes<A>(even[r] + odd[r]);
    for (int64_t j = k; j < d; ++j) sum += x[j] * rows[r][j];
    out[r] = sum;
  }
}

template <class A>
void dots(const A* x, const A* const* rows, int64_t count, int64_t d, A* out) {
  int64_t r = 0;
  for (; r + 4 <= count; r += 4) dot_rows<4>(x, rows + r, d, out + r);
  if (r + 2 <= count) {
    dot_rows<2>(x, rows + r, d, out + r);
    r += 2;
  }
  if (r < count) dot_rows<1>(x, rows + r, d, out + r);
}

// <g, x - y>; the difference is taken first, so that close descriptors lose no digits.
template <class A>
inline A dot_difference(const A* g, const A* x, const A* y, int64_t d) {
  Vector<A> even = {}, odd = {};
  int64_t k = 0;
  for (; k + 2 * lanes<A> <= d; k += 2 * lanes<A>) {
    even += load(g + k) * (load(x + k) - load(y + k));
    odd += load(g + k + lanes<A>) * (load(x + k + lanes<A>) - load(y + k + lanes<A>));
  }
  A sum = sum_lanes<A>(even + odd);
  for (; k < d; ++k) sum += g[k] * (x[k] - y[k]);
  return sum;
}

template <int U, bool add, class A>
inline void combine_block(A* out, const A* const* rows, const A* coefficients, int64_t count, int64_t k) {
  Vector<A> sum[U];
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) sum[u] = add ? load(out + k + u * lanes<A>) : Vector<A>{};
  for (int64_t r = 0; r < count; ++r) {
    const A* row = rows[r] + k;
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) sum[u] += coefficients[r] * load(row + u * lanes<A>);
  }
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) store(out + k + u * lanes<A>, sum[u]);
}

// out = (add ? out : 0) + sum over r of coefficients[r] * rows[r].
template <bool add, class A>
void combine(A* out, const A* const* rows, const A* coefficients, int64_t count, int64_t d) {
  int64_t k = 0;
  for (; k + 4 * lanes<A> <= d; k += 4 * lanes<A>) combine_block<4, add>(out, rows, coefficients, count, k);
  for (; k + lanes<A> <= d; k += lanes<A>) combine_block<1, add>(out, rows, coefficients, count, k);
  for (; k < d; ++k) {
    A sum = add ? out[k] : A(0);
    for (int64_t r = 0; r < count; ++r) sum += coefficients[r] * rows[r][k];
    out[k] = sum;
  }
}

}  // namespace AMUSE_ISA
}  // namespace amuse
