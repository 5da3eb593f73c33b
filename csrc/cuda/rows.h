// How the memory-bound kernels lay threads over rows: 2^shift neighbouring threads share a row, each with V
// neighbouring columns at a time; a row longer than that takes several passes.
#pragma once

#include <cstdint>

namespace amuse {

constexpr int rows_block = 128;  // threads, unless a row takes more
constexpr int rows_block_max = 256;
constexpr int64_t rows_width_max = (1 << 27) - 1;  // columns are counted in 32 bits

struct RowsShape {
  int shift, block;
  int64_t grid;
  int rows() const { return block >> shift; }                     // rows of a block
  int parts() const { return shift > 5 ? 1 << (shift - 5) : 1; }  // warps of a row
};

// For n rows of d columns, V at a time.
inline RowsShape rows_shape(int64_t n, int64_t d, int columns) {
  RowsShape shape{2, rows_block, 0};
  while (1 << shape.shift < rows_block_max && (static_cast<int64_t>(columns) << shape.shift) < d) ++shape.shift;
  if (shape.block < 1 << shape.shift) shape.block = 1 << shape.shift;
  shape.grid = (n + shape.rows() - 1) / shape.rows();
  return shape;
}

#if defined(__CUDACC__)
struct Rows {
  int shift;
  int thread;     // position in the row
  int row;        // in the block
  int64_t index;  // index of the row among all

  __device__ explicit Rows(int shift_) : shift(shift_) {
    thread = static_cast<int>(threadIdx.x) & ((1 << shift) - 1);
    row = static_cast<int>(threadIdx.x) >> shift;
    index = static_cast<int64_t>(blockIdx.x) * count() + row;
  }
  __device__ int count() const { return static_cast<int>(blockDim.x) >> shift; }
  __device__ int parts() const { return shift > 5 ? 1 << (shift - 5) : 1; }
  __device__ int part() const { return thread >> 5; }
  // The one thread that writes what lanes_sum gave.
  __device__ bool leads() const { return (thread & 31) == 0; }

  // Sum over the threads of a row inside of one warp, all of whose lanes call it; each gets the same bits. The
  // additions stay additions: contracted with a product before them, they would round differently in each lane.
  __device__ float lanes_sum(float x) const {
#pragma unroll
    for (int bit = 4; bit >= 0; --bit) {
      const float sum = __fadd_rn(x, __shfl_xor_sync(~0u, x, 1 << bit));
      x = bit < shift ? sum : x;
    }
    return x;
  }
};
#endif

}  // namespace amuse
