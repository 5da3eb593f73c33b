// Scores large enough for their rounding to show. A float32 sum of products is off by a few 2^-24 of itself, and the
// weight 2^score by as much relative to 1: where that comes near the error budget, a row's scores are summed again in
// double and rounded once. Whether that happens depends on nothing but the row. Compiled once per instruction set.
#pragma once

#include <type_traits>

#include "attention_exp.h"
#include "attention_gemm.h"

namespace amuse {
namespace AMUSE_ISA {

// In powers of two. The products of 16-bit tensors are left as they are: their inputs are coarser than these sums.
constexpr float large_score = 64;

template <class T>
bool is_large(float score) {
  return std::is_same<T, float>::value && (score > large_score || score < -large_score) && score - score == 0;
}
template <class T>
bool is_large(double) {
  return false;
}

template <class T, class A>
bool any_is_large(Vector<A> scores) {
  bool found = false;
  for (int64_t i = 0; i < lanes<A>; ++i) found |= is_large<T>(scores[i]);
  return found;
}

// Scores of R keys against a vector of queries, packed (depth x stride).
template <int R>
void exact_products(const float* key, int64_t key_stride, const float* query, int64_t stride, int64_t depth,
                    Vector<double> (&sum)[R]) {
  typedef float Narrow __attribute__((vector_size(AMUSE_VECTOR_BYTES / 2)));
  for (Vector<double>& one : sum) one = Vector<double>{};
  for (int64_t k = 0; k < depth; ++k) {
    Narrow narrow;
    __builtin_memcpy(&narrow, query + k * stride, sizeof narrow);
    const Vector<double> x = __builtin_convertvector(narrow, Vector<double>);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sum[r] += static_cast<double>(key[r * key_stride + k]) * x;
  }
}

// scores (keys x stride) of those queries of a vector, packed (depth x stride), whose entry in `rows` is large.
template <class T, class A>
void refine_scores(Matrix<A> key, const A* query, int64_t stride, int64_t depth, A* scores, int64_t count,
                   Vector<A> rows) {
  if constexpr (std::is_same<T, float>::value) {
    const auto refine = [&](auto keys, int64_t j) {
      constexpr int n = decltype(keys)::value;
      for (int64_t first = 0; first < lanes<A>; first += lanes<double>) {
        Vector<double> sum[n];
        exact_products(key.data + j * key.stride, key.stride, query + first, stride, depth, sum);
        for (int r = 0; r < n; ++r) {
          for (int64_t i = 0; i < lanes<double>; ++i) {
            if (is_large<T>(rows[first + i])) scores[(j + r) * stride + first + i] = static_cast<A>(sum[r][i]);
          }
        }
      }
    };
    int64_t j = 0;
    for (; j + 4 <= count; j += 4) refine(std::integral_constant<int, 4>{}, j);
    for (; j < count; ++j) refine(std::integral_constant<int, 1>{}, j);
  }
}

}  // namespace AMUSE_ISA
}  // namespace amuse
