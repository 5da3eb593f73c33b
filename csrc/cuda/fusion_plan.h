// The launches of fusion.h's entry points.
#pragma once

#include "fusion.h"
#include "launch.h"

namespace amuse {

CudaPlan fusion_forward_plan(const FusionForwardParams& params);
CudaPlan fusion_backward_plan(const FusionBackwardParams& params, void* workspace);
CudaPlan interpolation_forward_plan(const InterpolationForwardParams& params);
CudaPlan interpolation_backward_plan(const InterpolationBackwardParams& params);

}  // namespace amuse
