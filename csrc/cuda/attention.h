// p2c_attention on CUDA devices: float32, float16, bfloat16. Plain C++: needs neither CUDA's headers nor torch.
//
// The parameters are those of ../attention.h with device memory behind every pointer, gates and lse float32, with
// two differences: `seed` and the `out` of a backward are not read.
#pragma once

#include <cstdint>

#include "../attention.h"

namespace amuse {

// What a launch needs beyond the problem.
struct CudaAttentionOptions {
  const int64_t* seed;  // on the device, so that nothing waits for it; null without dropout
  void* workspace;      // on the device, 16-byte aligned, of amuse_cuda_attention_workspace bytes; backward only
  void* stream;         // cudaStream_t
  int device;
  bool allow_tf32;  // float32: one TF32 product instead of three that together are about as exact as float32
};

}  // namespace amuse

extern "C" {

// Bytes that a backward needs in between; may be 0.
int64_t amuse_cuda_attention_workspace(const amuse::AttentionBackwardParams* params);

// Enqueue the kernels and return. The result is a cudaError_t: 0 on success; 1, cudaErrorInvalidValue, also for
// parameters outside of the contract (dtype, head dim, number of sources, a length of 2^31 or more).
// The calling thread's current device is the same afterwards. A gradient that the parameters hold no memory for
// (grad_gates null) is not computed; all others are.
int amuse_cuda_attention_forward(const amuse::AttentionForwardParams* params,
                                 const amuse::CudaAttentionOptions* options);
int amuse_cuda_attention_backward(const amuse::AttentionBackwardParams* params,
                                  const amuse::CudaAttentionOptions* options);
}
