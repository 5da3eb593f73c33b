// Parameters and entry points of adaptive fusion (paper Eq. 2) and of the closed-form interpolation
// coefficients (Eq. 6). Shared by the Python binding, the C++ tests and the kernels; no torch, no Python.
//
// Strides are in elements. "A" is the accumulation type: double for float64, float for everything else.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace amuse {

// The most modalities a sample may have; scratch of the kernels is sized by it.
constexpr int64_t max_modalities = 8;

enum class AlphaKind : int {
  scalar = 0,       // alpha (n, m, m)
  elementwise = 1,  // alpha (n, m, m, d)
  gate = 2,         // alpha computed from pair_weight and pair_bias
};

struct FusionParams {
  Dtype dtype;  // of descriptors, alpha, outputs and their gradients
  AlphaKind alpha_kind;
  int64_t n, m, d;  // samples, modalities, width
  int64_t stride_n, stride_m;

  const void* descriptors;  // (n, m, d), last dim contiguous
  const void* alpha;        // contiguous; null with a gate
  const void* pair_weight;  // A (m * (m - 1), 2, d), contiguous, pairs (m, n), n != m, lexicographic; gate only
  const void* pair_bias;    // A (m * (m - 1)); gate only
  const uint8_t* present;   // (n, m), contiguous, 0 = absent; null = all present
};

struct FusionForwardParams : FusionParams {
  void* fused;      // (n, m, d), contiguous
  void* alpha_out;  // (n, m, m) or elementwise (n, m, m, d), contiguous
};

struct FusionBackwardParams : FusionParams {
  const void* grad_fused;  // (n, m, d), contiguous
  const void* grad_alpha;  // shape of alpha_out, contiguous; null = 0
  void* grad_descriptors;  // (n, m, d), contiguous
  void* grad_alpha_in;     // shape of alpha; not with a gate
  void* grad_pair_weight;  // A, shape of pair_weight; gate only
  void* grad_pair_bias;    // A, shape of pair_bias; gate only
};

struct InterpolationForwardParams {
  Dtype dtype;
  int64_t n, d;
  double epsilon;
  const void *a, *b, *grad;  // (n, d), contiguous
  void* out;                 // (n, d), contiguous
};

struct InterpolationBackwardParams {
  Dtype dtype;
  int64_t n, d;
  double epsilon;
  const void *grad_out, *a, *b, *grad;
  void *grad_a, *grad_b, *grad_grad;
};

// num_threads 0 means OpenMP's own default. Results are bitwise the same for every number of threads.
void fusion_forward(const FusionForwardParams& params, int num_threads);
void fusion_backward(const FusionBackwardParams& params, int num_threads);
void interpolation_forward(const InterpolationForwardParams& params, int num_threads);
void interpolation_backward(const InterpolationBackwardParams& params, int num_threads);

}  // namespace amuse
