// Register-blocked matrix products C = A B for tiles that lie in cache, on explicit vectors. Every element of C is one
// chain of multiply-adds in the order of k, whatever the block it falls into, so results do not depend on how a
// product is cut into tiles. Compiled once per instruction set.
#pragma once

#include "rows.h"

namespace amuse {
namespace AMUSE_ISA {

// Rows of a register block: with two vectors of columns it fills the registers that are left beside B and one
// broadcast element of A.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int block_rows = 12;
#elif defined(__AVX__)
constexpr int block_rows = 6;
#else
constexpr int block_rows = 4;  // without a fused multiply-add the product needs a register of its own
#endif

// Columns of a register block. B comes in panels of this many columns.
template <class A>
constexpr int64_t panel = 2 * lanes<A>;

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Element (k, j) of B is at data[(j / panel) * panel_stride + k * stride + j % panel].
template <class A>
struct Panels {
  const A* data;
  int64_t stride, panel_stride;
};

// C = alpha A B + beta C with one factor a row (step 1) or one for all (step 0). Null alpha: C = A B. Null beta: C is
// not read.
template <class A>
struct Factors {
  const A* alpha = nullptr;
  const A* beta = nullptr;
  int64_t step = 0;
};

// Element (r, k) of A is a[r * lda + k], or transposed a[k * lda + r].
template <class A, int R, int N, bool transposed>
void multiply_block(const A* a, int64_t lda, const A* b, int64_t ldb, A* c, int64_t ldc, int64_t depth,
                    const A* alpha, const A* beta, int64_t step) {
  Vector<A> sum[R][N] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vector<A> row[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) row[n] = load(b + n * lanes<A>);
    b += ldb;
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const A x = transposed ? a[r] : a[r * lda];
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) sum[r][n] += x * row[n];
    }
    a += transposed ? lda : 1;
  }
  if (alpha == nullptr) {
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) store(c + r * ldc + n * lanes<A>, sum[r][n]);
    }
  } else if (beta == nullptr) {
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) store(c + r * ldc + n * lanes<A>, alpha[r * step] * sum[r][n]);
    }
  } else {
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        A* out = c + r * ldc + n * lanes<A>;
        store(out, alpha[r * step] * sum[r][n] + beta[r * step] * load(out));
      }
    }
  }
}

template <class A>
using Block = void (*)(const A*, int64_t, const A*, int64_t, A*, int64_t, int64_t, const A*, const A*, int64_t);

template <class A, int N, bool transposed>
Block<A> block_of(int64_t rows) {
  switch (rows) {
    case 1: return multiply_block<A, 1, N, transposed>;
    case 2: return multiply_block<A, 2, N, transposed>;
    case 3: return multiply_block<A, 3, N, transposed>;
    case 4: return multiply_block<A, 4, N, transposed>;
#if !defined(__x86_64__) || defined(__AVX__)
    case 5: return multiply_block<A, 5, N, transposed>;
    case 6: return multiply_block<A, 6, N, transposed>;
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
    case 7: return multiply_block<A, 7, N, transposed>;
    case 8: return multiply_block<A, 8, N, transposed>;
    case 9: return multiply_block<A, 9, N, transposed>;
    case 10: return multiply_block<A, 10, N, transposed>;
    case 11: return multiply_block<A, 11, N, transposed>;
    case 12: return multiply_block<A, 12, N, transposed>;
#endif
    default: return nullptr;
  }
}

// A (rows x depth), B (depth x columns), C (rows x columns); columns a multiple of the vector length.
template <bool transposed, class A>
void multiply(const A* a, int64_t lda, Panels<A> b, A* c, int64_t ldc, int64_t rows, int64_t columns, int64_t depth,
              Factors<A> factors = {}) {
  const int64_t rest = rows % block_rows;
  const auto sweep = [&](Block<A> full, Block<A> last, int64_t j) {
    const A* panel_data = b.data + j / panel<A> * b.panel_stride;
    for (int64_t r = 0; r < rows; r += block_rows) {
      const A* alpha = factors.alpha == nullptr ? nullptr : factors.alpha + r * factors.step;
      const A* beta = factors.beta == nullptr ? nullptr : factors.beta + r * factors.step;
      (r + block_rows <= rows ? full : last)(transposed ? a + r : a + r * lda, lda, panel_data, b.stride,
                                             c + r * ldc + j, ldc, depth, alpha, beta, factors.step);
    }
  };
  int64_t j = 0;
  const Block<A> full = multiply_block<A, block_rows, 2, transposed>, last = block_of<A, 2, transposed>(rest);
  for (; j + panel<A> <= columns; j += panel<A>) sweep(full, last, j);
  if (j < columns) {
    sweep(multiply_block<A, block_rows, 1, transposed>, block_of<A, 1, transposed>(rest), j);
  }
}

}  // namespace AMUSE_ISA
}  // namespace amuse
