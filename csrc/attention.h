// Parameters and entry points of Peripheral-to-Central attention (paper Eq. 1). Shared by the Python binding, the C++
// tests and the kernels; no torch, no Python.
//
// Strides are in elements. "A" is the accumulation type: double for float64, float for everything else.
//
// Samples may be packed. Every tensor, lse and the groups then hold a batch of 1 with the tokens of all samples: sample
// b has cu_seq[b] .. cu_seq[b + 1] of them, batch strides are 0, and there are no masks. Only gates and their gradient
// have an entry for each sample.
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
  int64_t length;         // packed: of the longest sample, or more
  const uint8_t* mask;    // (B, length), contiguous, 0 = hidden; null = all visible
  const int64_t* groups;  // (B, length), contiguous; null with Relation::any
  Relation relation;
  bool causal;
  const int32_t* cu_seq;  // (B + 1); null unless packed
};

struct AttentionParams {
  Dtype dtype;                   // of query, keys, values, output and their gradients
  bool joint;                    // one softmax over all sources
  int64_t b, h, lq, d, sources;  // packed: lq of the longest sample, or more
  double softmax_scale;
  double dropout_p;
  uint32_t drop_threshold;  // a pair is dropped when its random word is below
  uint64_t seed;
  AttentionTensor query;
  AttentionSource source[max_sources];
  const int64_t* query_groups;  // (B, Lq), contiguous; null when every relation is any
  const void* gates;            // A (B, H, P) with the strides below; null = ones
  int64_t gate_stride_b, gate_stride_h, gate_stride_p;
  const int32_t* cu_seq_q;  // (B + 1); null unless packed
  int64_t tokens_q;         // queries of all samples, where they are packed
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
