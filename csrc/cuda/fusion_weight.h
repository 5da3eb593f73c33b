// The gradient of the gate's parameters in two stages: partial sums over blocks of rows, then their sum in a fixed
// order, so that it is bitwise reproducible. All in fp32.
#pragma once

#include "fusion_plan.h"

namespace amuse {

// Floats of the gradients of the logits, rounded up to 16 bytes, and of the partial sums.
int64_t fusion_logits(const FusionParams& params);
int64_t fusion_weight_partials(const FusionParams& params);

// Appends both stages: d z (n, m, m) in, grad_pair_weight and grad_pair_bias out.
void fusion_weight_plan(const FusionBackwardParams& params, const float* grad_logits, float* partials, CudaPlan& plan);

}  // namespace amuse
