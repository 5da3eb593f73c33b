// The kernel files are compiled once per instruction set, with -DAMUSE_ISA=<name>; each copy lives in a namespace of
// that name and attention.cpp and fusion.cpp call the best one. Those files use no inline function or template of the
// standard library: the linker would keep one copy of it for all, perhaps the one that needs AVX-512.
#pragma once

#include "../attention.h"
#include "../fusion.h"

namespace amuse {

#define AMUSE_DECLARE_KERNELS(isa)                                                     \
  namespace isa {                                                                      \
  void attention_forward(const AttentionForwardParams& params, int threads);           \
  void attention_backward(const AttentionBackwardParams& params, int threads);         \
  void fusion_forward(const FusionForwardParams& params, int threads);                 \
  void fusion_backward(const FusionBackwardParams& params, int threads);               \
  void interpolation_forward(const InterpolationForwardParams& params, int threads);   \
  void interpolation_backward(const InterpolationBackwardParams& params, int threads); \
  }

AMUSE_DECLARE_KERNELS(baseline)
AMUSE_DECLARE_KERNELS(avx2)
AMUSE_DECLARE_KERNELS(avx512)
#undef AMUSE_DECLARE_KERNELS

}  // namespace amuse
