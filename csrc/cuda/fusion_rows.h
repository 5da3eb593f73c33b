// Shared by the kernels of adaptive fusion. A block holds whole rows of all modalities in registers, and the values of
// each pair (m, n) of a row in shared memory. Absent descriptors are not loaded.
#pragma once

#include <initializer_list>

#include "element.h"
#include "fusion_plan.h"
#include "rows.h"

namespace amuse {

// A block's shared memory: the rows' presence bits, then `tables` tables with a float for each row, warp of it, and
// pair.
inline int fusion_shared_bytes(const FusionParams& p, const RowsShape& shape, int tables) {
  const int pitch = static_cast<int>(p.m * p.m) | 1;
  return 4 * shape.rows() * (1 + tables * shape.parts() * pitch);
}

// Every row of the given tensors starts at a multiple of 16 bytes.
inline bool fusion_aligned(const FusionParams& p, std::initializer_list<const void*> tensors) {
  const int64_t columns = elements_in_16_bytes(p.dtype);
  return p.d % columns == 0 && p.stride_n % columns == 0 && p.stride_m % columns == 0 && at_16_bytes(tensors);
}

inline cudaError_t fusion_check(const FusionParams& p) {
  const bool taken =
      dtype_index(p.dtype) >= 0 && p.n >= 0 && p.m >= 1 && p.m <= max_modalities && p.d >= 1 && p.d <= rows_width_max;
  return taken ? cudaSuccess : cudaErrorInvalidValue;
}

#if defined(__CUDACC__)

// One table of a block. A row of it has an odd pitch, so that the rows of a warp lie in different banks.
struct PairTable {
  float* first;
  int modalities, parts, pitch;

  __device__ PairTable(unsigned* present, const FusionParams& p, const Rows& rows, int table)
      : modalities(static_cast<int>(p.m)), parts(rows.parts()), pitch(static_cast<int>(p.m * p.m) | 1) {
    first = reinterpret_cast<float*>(present + rows.count()) + table * rows.count() * parts * pitch;
  }
  __device__ float& at(int row, int part, int pair) const { return first[(row * parts + part) * pitch + pair]; }
  // The sum over the warps of a row.
  __device__ float sum(int row, int pair) const {
    float total = at(row, 0, pair);
    for (int part = 1; part < parts; ++part) total += at(row, part, pair);
    return total;
  }
};

__device__ inline int64_t pair_index(int64_t modalities, int m, int n) { return m * (modalities - 1) + n - (n > m); }

// Bit m: the row has modality m; 0 for a row that does not exist. Fills `present` for all rows of the block, all of
// whose threads call it, and returns that of the caller's row.
__device__ inline unsigned load_presence(const FusionParams& p, const Rows& rows, unsigned* present) {
  if (rows.thread == 0) {
    unsigned bits = rows.index < p.n ? (1u << p.m) - 1 : 0;
    if (bits != 0 && p.present != nullptr) {
      const uint8_t* there = p.present + rows.index * p.m;
      for (int m = 0; m < p.m; ++m) bits &= ~(static_cast<unsigned>(there[m] == 0) << m);
    }
    present[rows.row] = bits;
  }
  __syncthreads();
  return present[rows.row];
}

// x[m] = V columns of the row of modality m from column k on; 0 where it is absent or ends.
template <class T, int V, int M>
__device__ inline void load_modalities(const T* row, int64_t stride, unsigned present, bool in, float (&x)[M][V]) {
#pragma unroll
  for (int m = 0; m < M; ++m) {
    if (in && (present >> m & 1)) {
      load(row + m * stride, x[m]);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) x[m][v] = 0.0f;
    }
  }
}

// The rows of FusionParams::descriptors.
template <class T, int V, int M>
__device__ inline void load_descriptors(const FusionParams& p, const Rows& rows, unsigned present, int k,
                                        float (&f)[M][V]) {
  load_modalities(static_cast<const T*>(p.descriptors) + rows.index * p.stride_n + k, p.stride_m, present, k < p.d, f);
}

// This thread's share of the gate's logit of a pair, without the bias: V columns from k on.
template <int V>
__device__ inline float partial_logit(const FusionParams& p, int m, int n, int k, const float (&f_m)[V],
                                      const float (&f_n)[V]) {
  const float* weight = static_cast<const float*>(p.pair_weight) + pair_index(p.m, m, n) * 2 * p.d + k;
  float w_m[V], w_n[V], sum = 0.0f;
  load(weight, w_m);
  load(weight + p.d, w_n);
#pragma unroll
  for (int v = 0; v < V; ++v) sum += w_m[v] * f_m[v] + w_n[v] * f_n[v];
  return sum;
}

__device__ inline float gate_of(const FusionParams& p, int m, int n, float logit) {
  return 1.0f / (1.0f + expf(-logit - static_cast<const float*>(p.pair_bias)[pair_index(p.m, m, n)]));
}

#endif  // __CUDACC__

}  // namespace amuse
