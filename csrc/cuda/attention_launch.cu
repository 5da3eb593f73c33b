#include <cuda_runtime.h>

#include "attention_plan.h"

#define AMUSE_EACH_HEAD_DIM(do_, element) do_(element, 32) do_(element, 64) do_(element, 128) do_(element, 256)
#define AMUSE_EACH_KERNELS(do_) \
  AMUSE_EACH_HEAD_DIM(do_, fp16) AMUSE_EACH_HEAD_DIM(do_, bf16) AMUSE_EACH_HEAD_DIM(do_, fp32)

namespace amuse {

// attention_kernels.cu
#define AMUSE_DECLARE(element, head_dim) \
  const void* attention_kernels_##element##_##head_dim(AttentionKernel kernel, bool options);
AMUSE_EACH_KERNELS(AMUSE_DECLARE)
#undef AMUSE_DECLARE

namespace {

const void* kernel_of(const AttentionPlan& plan, const AttentionLaunch& launch) {
  constexpr Dtype fp16 = Dtype::float16, bf16 = Dtype::bfloat16, fp32 = Dtype::float32;
#define AMUSE_CHOOSE(element, head_dim)                         \
  if (plan.dtype == element && plan.padded_head_dim == head_dim) { \
    return attention_kernels_##element##_##head_dim(launch.kernel, launch.options); \
  }
  AMUSE_EACH_KERNELS(AMUSE_CHOOSE)
#undef AMUSE_CHOOSE
  return nullptr;
}

cudaError_t enqueue(const AttentionPlan& plan, cudaStream_t stream) {
  for (int i = 0; i < plan.launches; ++i) {
    const AttentionLaunch& launch = plan.launch[i];
    if (launch.grid == 0) continue;
    const void* kernel = kernel_of(plan, launch);
    const auto allow_shared = cudaFuncAttributeMaxDynamicSharedMemorySize;
    cudaError_t code = cudaFuncSetAttribute(kernel, allow_shared, static_cast<int>(launch.shared_bytes));
    if (code != cudaSuccess) return code;
    void* arguments[] = {const_cast<AttentionArguments*>(&plan.arguments)};
    code = cudaLaunchKernel(kernel, dim3(launch.grid), dim3(launch.block), arguments, launch.shared_bytes, stream);
    if (code != cudaSuccess) return code;
  }
  return cudaSuccess;
}

int run(const AttentionPlan& plan, const CudaAttentionOptions& options) {
  int before = 0;
  cudaError_t code = cudaGetDevice(&before);
  if (code == cudaSuccess && before != options.device) code = cudaSetDevice(options.device);
  if (code == cudaSuccess) {
    code = enqueue(plan, static_cast<cudaStream_t>(options.stream));
    if (before != options.device) {
      const cudaError_t restored = cudaSetDevice(before);
      if (code == cudaSuccess) code = restored;
    }
  }
  (void)cudaGetLastError();  // a pending error would be blamed on the next call
  return code;
}

}  // namespace
}  // namespace amuse

int amuse_cuda_attention_forward(const amuse::AttentionForwardParams* params,
                                 const amuse::CudaAttentionOptions* options) {
  amuse::AttentionPlan plan;
  if (!amuse_cuda_attention_plan_forward(params, options, &plan)) return cudaErrorInvalidValue;
  return amuse::run(plan, *options);
}

int amuse_cuda_attention_backward(const amuse::AttentionBackwardParams* params,
                                  const amuse::CudaAttentionOptions* options) {
  amuse::AttentionPlan plan;
  if (!amuse_cuda_attention_plan_backward(params, options, &plan)) return cudaErrorInvalidValue;
  return amuse::run(plan, *options);
}
