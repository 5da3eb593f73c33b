// Entry points of fusion.h: choose the copy of a kernel that this processor runs best, and the number of threads.
#include "../fusion.h"

#include "kernels.h"
#include "runtime.h"

namespace amuse {
namespace {

template <class Params>
struct Copies {
  void (*baseline)(const Params&, int);
  void (*avx2)(const Params&, int);
  void (*avx512)(const Params&, int);

  void operator()(const Params& params, int threads) const {
    switch (current_isa()) {
      case Isa::avx512: return avx512(params, threads);
      case Isa::avx2: return avx2(params, threads);
      case Isa::baseline: return baseline(params, threads);
    }
  }
};

// A copy that was not compiled is never chosen, see isa_available.
#if defined(AMUSE_HAS_AVX2)
#define AMUSE_AVX2(kernel) avx2::kernel
#else
#define AMUSE_AVX2(kernel) nullptr
#endif
#if defined(AMUSE_HAS_AVX512)
#define AMUSE_AVX512(kernel) avx512::kernel
#else
#define AMUSE_AVX512(kernel) nullptr
#endif
#define AMUSE_COPIES(kernel) \
  { baseline::kernel, AMUSE_AVX2(kernel), AMUSE_AVX512(kernel) }

constexpr Copies<FusionForwardParams> forward_copies = AMUSE_COPIES(fusion_forward);
constexpr Copies<FusionBackwardParams> backward_copies = AMUSE_COPIES(fusion_backward);
constexpr Copies<InterpolationForwardParams> interpolation_forward_copies = AMUSE_COPIES(interpolation_forward);
constexpr Copies<InterpolationBackwardParams> interpolation_backward_copies = AMUSE_COPIES(interpolation_backward);

int64_t elements(const FusionParams& p) {
  return p.n * p.m * p.d * (p.alpha_kind == AlphaKind::elementwise ? p.m : 1);
}

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
