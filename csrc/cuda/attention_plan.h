// The launches of a call of p2c_attention: computed without a GPU, so that the tests can run exactly these elsewhere.
#pragma once

#include "attention.h"
#include "attention_arguments.h"

namespace amuse {

enum class AttentionKernel : int {
  forward,
  forward_short,
  backward_queries,
  backward_keys,
  backward_fused,
  backward_fused_short
};

// One launch. Grid and block have one dimension; a grid of 0 means that there is nothing to do.
struct AttentionLaunch {
  char entry[48];  // name of the kernel
  AttentionKernel kernel;
  bool options;  // the variant with groups, causal streams and dropout
  uint32_t grid, block, shared_bytes;
};

// A compiled kernel: its name and the CUDA runtime's handle of it.
struct AttentionEntry {
  const char* name;
  const void* kernel;
};

struct AttentionPlan {
  int launches;
  AttentionLaunch launch[2];
  Dtype dtype;
  int padded_head_dim;
  AttentionArguments arguments;  // for every launch
};

}  // namespace amuse

extern "C" {

// false: the parameters are outside of the contract, see attention.h.
bool amuse_cuda_attention_plan_forward(const amuse::AttentionForwardParams* params,
                                       const amuse::CudaAttentionOptions* options, amuse::AttentionPlan* plan);
bool amuse_cuda_attention_plan_backward(const amuse::AttentionBackwardParams* params,
                                        const amuse::CudaAttentionOptions* options, amuse::AttentionPlan* plan);
}
