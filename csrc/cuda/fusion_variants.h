// The instantiations of a fusion kernel, each with its own name: KERNEL(name, T, V, M, kind) for every kind of
// alpha, dtype and shape. Shapes: 16-byte accesses for up to 4 or up to 8 modalities, and one element at a time where
// alignment allows no more.
#pragma once

#include <type_traits>

#include "element.h"
#include "fusion_plan.h"

#define AMUSE_FUSION_SHAPES(KERNEL, base, T, V, kind) \
  KERNEL(base##_m4, T, V, 4, kind)                    \
  KERNEL(base##_m8, T, V, 8, kind)                    \
  KERNEL(base##_plain, T, 1, 8, kind)

#define AMUSE_FUSION_DTYPES(KERNEL, base, kind)           \
  AMUSE_FUSION_SHAPES(KERNEL, base##_f32, float, 4, kind) \
  AMUSE_FUSION_SHAPES(KERNEL, base##_f16, Half, 8, kind)  \
  AMUSE_FUSION_SHAPES(KERNEL, base##_bf16, BFloat16, 8, kind)

// In the order of AlphaKind and of fusion_variant.
#define AMUSE_FUSION_KINDS(KERNEL, base)                       \
  AMUSE_FUSION_DTYPES(KERNEL, base##_scalar, scalar)           \
  AMUSE_FUSION_DTYPES(KERNEL, base##_elementwise, elementwise) \
  AMUSE_FUSION_DTYPES(KERNEL, base##_gate, gate)

#define AMUSE_KERNEL_ENTRY(name, T, V, M, kind) {#name, name},

namespace amuse {

// Distinguishes a kernel's overloads.
template <AlphaKind kind>
using Alpha = std::integral_constant<AlphaKind, kind>;

// Position among the nine variants of a kind.
inline int fusion_variant(const FusionParams& p, bool aligned) {
  return 3 * dtype_index(p.dtype) + (!aligned ? 2 : p.m <= 4 ? 0 : 1);
}

// The kernel for a call, among those that AMUSE_FUSION_KINDS lists.
template <class Parameters>
const KernelEntry<Parameters>& fusion_entry(const KernelEntry<Parameters> (&entries)[27], const FusionParams& p,
                                            bool aligned) {
  return entries[9 * static_cast<int>(p.alpha_kind) + fusion_variant(p, aligned)];
}

// Columns that a thread of the variant handles at a time.
inline int fusion_columns(const FusionParams& p, bool aligned) { return aligned ? elements_in_16_bytes(p.dtype) : 1; }

}  // namespace amuse
