// The attention kernels of one element type and head dim: compiled once for each, with -DAMUSE_ELEMENT=fp16, bf16 or
// fp32 and -DAMUSE_HEAD_DIM=32, 64, 128 or 256. Names such as attention_forward_fp16_64 are what attention_plan.cpp asks for; `_options`
// has groups, causal streams and dropout.
#include "attention_backward.cuh"
#include "attention_forward.cuh"

#define AMUSE_JOIN_(a, b, c, d) a##_##b##_##c##d
#define AMUSE_JOIN(a, b, c, d) AMUSE_JOIN_(a, b, c, d)
#define AMUSE_KERNEL(kernel, suffix, options)                                                                       \
  extern "C" __global__ void __launch_bounds__(amuse::kernel##_threads) AMUSE_JOIN(kernel, AMUSE_ELEMENT, AMUSE_HEAD_DIM, suffix)( \
      const __grid_constant__ amuse::AttentionArguments args) {                                                      \
    amuse::kernel<amuse::AMUSE_ELEMENT, AMUSE_HEAD_DIM, options>(args);                                                     \
  }

namespace amuse {

using fp16 = __half;
using bf16 = __nv_bfloat16;
using fp32 = float;
constexpr int attention_forward_threads = forward_tile(sizeof(AMUSE_ELEMENT), AMUSE_HEAD_DIM).threads();
constexpr int attention_backward_queries_threads = backward_tile(sizeof(AMUSE_ELEMENT), AMUSE_HEAD_DIM).threads();
constexpr int attention_backward_keys_threads = attention_backward_queries_threads;

}  // namespace amuse

AMUSE_KERNEL(attention_forward, , false)
AMUSE_KERNEL(attention_forward, _options, true)
AMUSE_KERNEL(attention_backward_queries, , false)
AMUSE_KERNEL(attention_backward_queries, _options, true)
AMUSE_KERNEL(attention_backward_keys, , false)
AMUSE_KERNEL(attention_backward_keys, _options, true)
