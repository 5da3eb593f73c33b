// Register-blocked matrix products C = A B for tiles that lie in cache, on explicit vectors. Every element of C is one
// chain of multiply-adds in the order of k, whatever the block it falls into, so results do not depend on how a
// product is cut into tiles. Compiled once per instruction set.
#pragma once

#include "rows.h"

namespace amuse {
namespace AMUSE_ISA {

// Rows of a register block: with two vectors of columns it fills the registers that are left besides B and one
// broadcast element of A.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int block_rows = 12;
#elif defined(__AVX__)
constexpr int block_rows = 6;
#else
constexpr int block_rows = 4;  // without a fused multiply-add the product needs a register of its own
#endif

// Columns of a register block.
template <class A>
constexpr int64_t panel = 2 * lanes<A>;

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Rows of elements, `stride` apart.
template <class A>
struct Matrix {
  const A* data;
  int64_t stride;
};

// Where a product goes: C = alpha A B with one alpha per row; `add` adds it to C. Without an alpha, `add` continues the
// chain of multiply-adds that C holds, so that it does not matter where a sum over k is divided.
template <class A>
struct Into {
  const A* alpha = nullptr;
  bool add = false;
};

// Element (r, k) of A is a[r * lda + k], or transposed a[k * lda + r].
template <class A, int R, int N, bool transposed>
void multiply_block(const A* a, int64_t lda, const A* b, int64_t ldb, A* c, int64_t ldc, int64_t depth, Into<A> into) {
  Vector<A> sum[R][N] = {};
  if (into.alpha == nullptr && into.add) {
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) sum[r][n] = load(c + r * ldc + n * lanes<A>);
    }
  }
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
  const auto finish = [&](const auto& value) {
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        A* out = c + r * ldc + n * lanes<A>;
        store(out, value(sum[r][n], r, out));
      }
    }
  };
  const A* alpha = into.alpha;
  if (alpha == nullptr) {
    finish([](Vector<A> x, int, const A*) { return x; });
  } else if (!into.add) {
    finish([=](Vector<A> x, int r, const A*) { return alpha[r] * x; });
  } else {
    finish([=](Vector<A> x, int r, const A* old) { return load(old) + alpha[r] * x; });
  }
}

template <class A>
using Block = void (*)(const A*, int64_t, const A*, int64_t, A*, int64_t, int64_t, Into<A>);

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

// A (rows x depth), B (depth x columns), C (rows x columns); columns a multiple of the vector length. Rows are shared
// out evenly over the register blocks: one of few rows leaves the multipliers idle.
template <bool transposed, class A>
void multiply(Matrix<A> a, Matrix<A> b, A* c, int64_t ldc, int64_t rows, int64_t columns, int64_t depth,
              Into<A> into = {}) {
  const int64_t blocks = (rows + block_rows - 1) / block_rows;
  if (blocks == 0) return;
  const int64_t few = rows / blocks, larger_blocks = rows % blocks;
  const auto sweep = [&](Block<A> larger, Block<A> smaller, int64_t j) {
    int64_t r = 0;
    for (int64_t i = 0; i < blocks; ++i) {
      const Into<A> own{into.alpha == nullptr ? nullptr : into.alpha + r, into.add};
      (i < larger_blocks ? larger : smaller)(
          a.data + (transposed ? r : r * a.stride), a.stride, b.data + j, b.stride, c + r * ldc + j, ldc, depth, own);
      r += i < larger_blocks ? few + 1 : few;
    }
  };
  int64_t j = 0;
  const Block<A> larger = block_of<A, 2, transposed>(few + 1), smaller = block_of<A, 2, transposed>(few);
  for (; j + panel<A> <= columns; j += panel<A>) sweep(larger, smaller, j);
  if (j < columns) sweep(block_of<A, 1, transposed>(few + 1), block_of<A, 1, transposed>(few), j);
}

}  // namespace AMUSE_ISA
}  // namespace amuse
