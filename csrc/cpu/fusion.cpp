// Entry points of fusion.h: choose the copy of a kernel that this processor runs best, and the number of threads.
#include "../fusion.h"

#include "copies.h"
#include "kernels.h"

namespace amuse {
namespace {

constexpr Copies<FusionForwardParams> forward_copies = AMUSE_COPIES(fusion_forward);
constexpr Copies<FusionBackwardParams> backward_copies = AMUSE_COPIES(fusion_backward);
constexpr Copies<InterpolationForwardParams> interpolation_forward_copies = AMUSE_COPIES(interpolation_forward);
constexpr Copies<InterpolationBackwardParams> interpolation_backward_copies = AMUSE_COPIES(interpolation_backward);

int64_t elements(const FusionParams& p) { return p.n * p.m * p.d * (p.alpha_kind == AlphaKind::elementwise ? p.m : 1); }

}  // namespace

void fusion_forward(const FusionForwardParams& params, int num_threads) {
  forward_copies(params, team_size(num_threads, elements(params)));
}

void fusion_backward(const FusionBackwardParams& params, int num_threads) {
  backward_copies(params, team_size(num_threads, elements(params)));
}

void interpolation_forward(const InterpolationForwardParams& params, int num_threads) {
  interpolation_forward_copies(params, team_size(num_threads, params.n * params.d));
}

void interpolation_backward(const InterpolationBackwardParams& params, int num_threads) {
  interpolation_backward_copies(params, team_size(num_threads, params.n * params.d));
}

}  // namespace amuse
