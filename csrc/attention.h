// Parameters and entry points of Peripheral-to-Central attention (paper Eq. 1). Shared by the Python binding, the C++
// tests and the kernels; no torch, no Python.
//
// Strides are in elements. "A" is the accumulation type: double for float64, float for everything else.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace amuse {

constexpr int64_t max_sources = 8;

enum class Relation : int { any = 0, same = 1, different = 2 };

// (B, H, L, D), last dim contiguous.
struct AttentionTensor {
  void* data;
  int64_t stride_b, stride_h, stride_l;
};

struct AttentionSource {
  AttentionTensor key, value;
  int64_t length;
  const uint8_t* mask;    // (B, length), contiguous, 0 = hidden; null = all visible
  const int64_t* groups;  // (B, length), contiguous; null with Relation::any
  Relation relation;
  bool causal;
};

struct AttentionParams {
  Dtype dtype;  // of query, keys, values, output and their gradients
  bool joint;   // one softmax over all sources
  int64_t b, h, lq, d, sources;
  double softmax_scale;
  double dropout_p;
  uint32_t drop_threshold;  // a pair is dropped when its random word is below
  uint64_t seed;
  AttentionTensor query;
  AttentionSource source[max_sources];
  const int64_t* query_groups;  // (B, Lq), contiguous; null when every relation is any
  const void* gates;            // A (B, H, P) with the strides below; null = ones
  int64_t gate_stride_b, gate_stride_h, gate_stride_p;
};

struct AttentionForwardParams : AttentionParams {
  AttentionTensor out;
  void* lse;  // A (B, H, Lq, P), or (B, H, Lq) for joint; contiguous
};

struct AttentionBackwardParams : AttentionParams {
  AttentionTensor grad_out;
  AttentionTensor out;   // joint only
  const void* lse;       // of the forward
  const void* grad_lse;  // shape of lse, contiguous; null = 0
  AttentionTensor grad_query;
  AttentionTensor grad_key[max_sources], grad_value[max_sources];
  void* grad_gates;  // A (B, H, P), contiguous; null = not wanted
};

// num_threads 0 means OpenMP's own default. Results are bitwise the same for every number of threads.
void attention_forward(const AttentionForwardParams& params, int num_threads);
void attention_backward(const AttentionBackwardParams& params, int num_threads);

}  // namespace amuse
