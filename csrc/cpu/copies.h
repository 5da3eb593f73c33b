// The copies of a kernel, one per instruction set (see kernels.h), and the choice between them.
#pragma once

#include "runtime.h"

namespace amuse {

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
#define AMUSE_COPIES(kernel) {baseline::kernel, AMUSE_AVX2(kernel), AMUSE_AVX512(kernel)}

}  // namespace amuse
