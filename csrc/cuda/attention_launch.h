// The plans of attention_plan.h with the kernels' handles, ready to run.
#pragma once

#include "attention.h"
#include "launch.h"

namespace amuse {

CudaPlan attention_forward_plan(const AttentionForwardParams& params, const CudaAttentionOptions& options);
CudaPlan attention_backward_plan(const AttentionBackwardParams& params, const CudaAttentionOptions& options);

}  // namespace amuse
