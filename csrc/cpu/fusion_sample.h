// One sample of adaptive fusion: which modalities it has, its rows, and the gate (compiled once per instruction set).
#pragma once

#include <cmath>

#include "kernels.h"
#include "parallel.h"
#include "rows.h"

namespace amuse {
namespace AMUSE_ISA {

template <class A>
struct Sample {
  int64_t count;                  // present modalities
  int64_t index[max_modalities];  // which ones, ascending
  const A* rows[max_modalities];  // descriptors by modality; null where absent
};

// `buffer` holds (m, d) elements for descriptors that have to be widened. Absent descriptors are not read.
template <class T, class A>
inline void load_sample(const FusionParams& p, int64_t i, A* buffer, Sample<A>& sample) {
  const T* descriptors = static_cast<const T*>(p.descriptors) + i * p.stride_n;
  sample.count = 0;
  for (int64_t m = 0; m < p.m; ++m) {
    sample.rows[m] = nullptr;
    if (p.present != nullptr && p.present[i * p.m + m] == 0) continue;
    sample.index[sample.count++] = m;
    sample.rows[m] = load_row(descriptors + m * p.stride_m, buffer + m * p.d, p.d);
  }
}

inline int64_t pair_index(int64_t modalities, int64_t m, int64_t n) {
  return m * (modalities - 1) + (n < m ? n : n - 1);
}

// The gate's w_mn[side]: side 0 is multiplied by f_m, side 1 by f_n.
template <class A>
inline A* pair_row(A* pair_weight, const FusionParams& p, int64_t m, int64_t n, int64_t side) {
  return pair_weight + (pair_index(p.m, m, n) * 2 + side) * p.d;
}

inline float sigmoid(float z) { return 1.0f / (1.0f + ::expf(-z)); }
inline double sigmoid(double z) { return 1.0 / (1.0 + ::exp(-z)); }

// alpha[m][n] on the pairs of present modalities; the other entries stay as they are.
template <class A>
inline void gate_alpha(const FusionParams& p, const Sample<A>& sample, A (&alpha)[max_modalities][max_modalities]) {
  const A* weight = static_cast<const A*>(p.pair_weight);
  const A* bias = static_cast<const A*>(p.pair_bias);
  A product[2][max_modalities][max_modalities];
  for (int64_t a = 0; a < sample.count; ++a) {
    const int64_t m = sample.index[a];
    // Every weight row that f_m is multiplied by, so that f_m is read once for four of them.
    const A* rows[2 * max_modalities];
    A* targets[2 * max_modalities];
    A values[2 * max_modalities];
    int64_t count = 0;
    for (int64_t b = 0; b < sample.count; ++b) {
      if (b == a) continue;
      const int64_t n = sample.index[b];
      rows[count] = pair_row(weight, p, m, n, 0);
      targets[count++] = &product[0][m][n];
      rows[count] = pair_row(weight, p, n, m, 1);
      targets[count++] = &product[1][n][m];
    }
    dots(sample.rows[m], rows, count, p.d, values);
    for (int64_t r = 0; r < count; ++r) *targets[r] = values[r];
  }
  for (int64_t a = 0; a < sample.count; ++a) {
    for (int64_t b = 0; b < sample.count; ++b) {
      if (b == a) continue;
      const int64_t m = sample.index[a], n = sample.index[b];
      alpha[m][n] = sigmoid(product[0][m][n] + product[1][m][n] + bias[pair_index(p.m, m, n)]);
    }
  }
}

// Alpha of one sample in the accumulation type, for a gate or for a scalar alpha given by the caller.
template <class T, class A>
inline void sample_alpha(const FusionParams& p, int64_t i, const Sample<A>& sample,
                         A (&alpha)[max_modalities][max_modalities]) {
  if (p.alpha_kind == AlphaKind::gate) {
    gate_alpha(p, sample, alpha);
    return;
  }
  const T* given = static_cast<const T*>(p.alpha) + i * p.m * p.m;
  for (int64_t a = 0; a < sample.count; ++a) {
    for (int64_t b = 0; b < sample.count; ++b) {
      const int64_t m = sample.index[a], n = sample.index[b];
      if (a != b) alpha[m][n] = widen(given[m * p.m + n]);
    }
  }
}

// Eq. 2 as a matrix: fused_m = sum over n of coefficient[m][n] f_n, on present modalities.
template <class A>
inline void fusion_coefficients(const Sample<A>& sample, const A (&alpha)[max_modalities][max_modalities],
                                A (&coefficient)[max_modalities][max_modalities]) {
  if (sample.count == 1) {
    coefficient[sample.index[0]][sample.index[0]] = A(1);  // a lone modality passes unchanged
    return;
  }
  const A size = static_cast<A>(sample.count);
  for (int64_t a = 0; a < sample.count; ++a) {
    const int64_t m = sample.index[a];
    A kept = 0;
    for (int64_t b = 0; b < sample.count; ++b) {
      if (b == a) continue;
      const int64_t n = sample.index[b];
      coefficient[m][n] = alpha[m][n] / size;
      kept += A(1) - alpha[m][n];
    }
    coefficient[m][m] = kept / size;
  }
}

}  // namespace AMUSE_ISA
}  // namespace amuse
