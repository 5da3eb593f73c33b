#include "attention_launch.h"

#include "attention_plan.h"

#define AMUSE_EACH_HEAD_DIM(apply, element) \
  apply(element, 32) apply(element, 64) apply(element, 128) apply(element, 256)
#define AMUSE_EACH_FILE(apply) \
  AMUSE_EACH_HEAD_DIM(apply, fp16) AMUSE_EACH_HEAD_DIM(apply, bf16) AMUSE_EACH_HEAD_DIM(apply, fp32)

namespace amuse {

// attention_kernels.cu
#define AMUSE_DECLARE(element, head_dim) \
  AttentionEntry attention_entry_##element##_##head_dim(AttentionKernel kernel, bool options);
AMUSE_EACH_FILE(AMUSE_DECLARE)
#undef AMUSE_DECLARE

namespace {

AttentionEntry entry_of(const AttentionPlan& plan, const AttentionLaunch& launch) {
  constexpr Dtype fp16 = Dtype::float16, bf16 = Dtype::bfloat16, fp32 = Dtype::float32;
#define AMUSE_CHOOSE(element, head_dim)                                           \
  if (plan.dtype == element && plan.padded_head_dim == head_dim) {                \
    return attention_entry_##element##_##head_dim(launch.kernel, launch.options); \
  }
  AMUSE_EACH_FILE(AMUSE_CHOOSE)
#undef AMUSE_CHOOSE
  return {};
}

CudaPlan with_entries(const AttentionPlan& plan, bool within_contract) {
  CudaPlan result;
  if (!within_contract) {
    result.error = cudaErrorInvalidValue;
    return result;
  }
  const auto* bytes = reinterpret_cast<const unsigned char*>(&plan.arguments);
  for (int i = 0; i < plan.launches; ++i) {
    const AttentionLaunch& launch = plan.launch[i];
    const AttentionEntry entry = entry_of(plan, launch);
    result.launches.push_back({entry.name,
                               entry.kernel,
                               launch.grid,
                               static_cast<int>(launch.block),
                               static_cast<int>(launch.shared_bytes),
                               {bytes, bytes + sizeof plan.arguments}});
  }
  return result;
}

}  // namespace

CudaPlan attention_forward_plan(const AttentionForwardParams& params, const CudaAttentionOptions& options) {
  AttentionPlan plan;
  const bool within_contract = amuse_cuda_attention_plan_forward(&params, &options, &plan);
  return with_entries(plan, within_contract);
}

CudaPlan attention_backward_plan(const AttentionBackwardParams& params, const CudaAttentionOptions& options) {
  AttentionPlan plan;
  const bool within_contract = amuse_cuda_attention_plan_backward(&params, &options, &plan);
  return with_entries(plan, within_contract);
}

}  // namespace amuse

int amuse_cuda_attention_forward(const amuse::AttentionForwardParams* params,
                                 const amuse::CudaAttentionOptions* options) {
  return amuse::run(
      amuse::attention_forward_plan(*params, *options), options->device, static_cast<cudaStream_t>(options->stream));
}

int amuse_cuda_attention_backward(const amuse::AttentionBackwardParams* params,
                                  const amuse::CudaAttentionOptions* options) {
  return amuse::run(
      amuse::attention_backward_plan(*params, *options), options->device, static_cast<cudaStream_t>(options->stream));
}
