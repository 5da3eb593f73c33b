// Adaptive fusion and interpolation coefficients on CUDA devices: float32, float16, bfloat16. Plain C++: needs neither
// CUDA's headers nor torch. The parameters are those of ../fusion.h with device memory behind every pointer.
#pragma once

#include <cstdint>

#include "../fusion.h"

extern "C" {

// Enqueue the kernels on `stream`, a cudaStream_t, and return. The result is a cudaError_t: 0 on success; 1,
// cudaErrorInvalidValue, also for parameters outside of the contract (dtype, number of modalities, a width of 2^27 or
// more). The calling thread's current device is the same afterwards.
int amuse_cuda_fusion_forward(const amuse::FusionForwardParams* params, int device, void* stream);

// `workspace`: device memory, 16-byte aligned, of that many bytes, which may be 0.
int64_t amuse_cuda_fusion_backward_workspace(const amuse::FusionBackwardParams* params);
int amuse_cuda_fusion_backward(const amuse::FusionBackwardParams* params, void* workspace, int device, void* stream);

int amuse_cuda_interpolation_forward(const amuse::InterpolationForwardParams* params, int device, void* stream);
int amuse_cuda_interpolation_backward(const amuse::InterpolationBackwardParams* params, int device, void* stream);
}
