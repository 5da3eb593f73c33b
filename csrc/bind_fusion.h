// Parameters of fusion.h out of what Python passes: pointers as integers (tensor.data_ptr(), 0 for none), sizes, codes.
// Shared by the bindings of the CPU and the CUDA kernels.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "bind.h"
#include "fusion.h"

namespace amuse {

inline Dtype checked_dtype(int code) {
  if (code < 0 || code > 3) invalid("dtype", "a code of DTYPES, 0 to 3", code);
  return static_cast<Dtype>(code);
}

inline int64_t item_size(Dtype dtype) {
  switch (dtype) {
    case Dtype::float32: return 4;
    case Dtype::float64: return 8;
    default: return 2;
  }
}

inline int64_t accumulator_size(Dtype dtype) { return dtype == Dtype::float64 ? 8 : 4; }

inline int64_t checked_product(std::initializer_list<int64_t> sizes) {
  int64_t product = 8;  // leaves room for the item size
  for (int64_t size : sizes) {
    if (__builtin_mul_overflow(product, size, &product)) invalid("sizes", "a tensor that fits into memory", size);
  }
  return product / 8;
}

// A pointer that must be there and aligned whenever its tensor has elements.
inline void* pointer(const char* name, uintptr_t address, int64_t elements, int64_t alignment) {
  if (elements > 0 && address == 0) throw std::invalid_argument(std::string(name) + ": expected a pointer, got null");
  if (address % static_cast<uintptr_t>(alignment) != 0) {
    throw std::invalid_argument(std::string(name) + ": the pointer is not aligned to " + std::to_string(alignment) +
                                " bytes");
  }
  return reinterpret_cast<void*>(address);
}

struct FusionSizes {
  int64_t descriptors, alpha, pairs, item, accumulator;
};

inline FusionSizes fill_fusion(FusionParams& p, uintptr_t descriptors, uintptr_t alpha, uintptr_t pair_weight,
                               uintptr_t pair_bias, uintptr_t present, int64_t n, int64_t m, int64_t d,
                               int64_t stride_n, int64_t stride_m, int dtype, int alpha_kind) {
  p.dtype = checked_dtype(dtype);
  if (alpha_kind < 0 || alpha_kind > 2) invalid("alpha_kind", "0 (scalar), 1 (elementwise) or 2 (gate)", alpha_kind);
  p.alpha_kind = static_cast<AlphaKind>(alpha_kind);
  if (n < 0) invalid("n", "0 or more samples", n);
  if (m < 1 || m > max_modalities) invalid("m", "1 to " + std::to_string(max_modalities) + " modalities", m);
  if (d < 1) invalid("d", "a width of at least 1", d);
  if (stride_n < 0) invalid("stride_n", "0 or more", stride_n);
  if (stride_m < 0) invalid("stride_m", "0 or more", stride_m);
  p.n = n, p.m = m, p.d = d, p.stride_n = stride_n, p.stride_m = stride_m;

  FusionSizes sizes{};
  sizes.item = item_size(p.dtype);
  sizes.accumulator = accumulator_size(p.dtype);
  sizes.descriptors = checked_product({n, m, d});
  sizes.alpha = checked_product({n, m, m, p.alpha_kind == AlphaKind::elementwise ? d : 1});
  sizes.pairs = m * (m - 1);
  p.descriptors = pointer("descriptors", descriptors, sizes.descriptors, sizes.item);
  p.present = static_cast<const uint8_t*>(pointer("present", present, 0, 1));
  const bool gate = p.alpha_kind == AlphaKind::gate;
  p.alpha = gate ? nullptr : pointer("alpha", alpha, sizes.alpha, sizes.item);
  p.pair_weight =
      gate ? pointer("pair_weight", pair_weight, checked_product({sizes.pairs, 2, d}), sizes.accumulator) : nullptr;
  p.pair_bias = gate ? pointer("pair_bias", pair_bias, sizes.pairs, sizes.accumulator) : nullptr;
  return sizes;
}

inline FusionForwardParams fusion_forward_params(uintptr_t descriptors, uintptr_t alpha, uintptr_t pair_weight,
                                                 uintptr_t pair_bias, uintptr_t present, uintptr_t fused,
                                                 uintptr_t alpha_out, int64_t n, int64_t m, int64_t d, int64_t stride_n,
                                                 int64_t stride_m, int dtype, int alpha_kind) {
  FusionForwardParams p{};
  const FusionSizes sizes = fill_fusion(
      p, descriptors, alpha, pair_weight, pair_bias, present, n, m, d, stride_n, stride_m, dtype, alpha_kind);
  p.fused = pointer("fused", fused, sizes.descriptors, sizes.item);
  p.alpha_out = pointer("alpha_out", alpha_out, sizes.alpha, sizes.item);
  return p;
}

inline FusionBackwardParams fusion_backward_params(uintptr_t grad_fused, uintptr_t grad_alpha, uintptr_t descriptors,
                                                   uintptr_t alpha, uintptr_t pair_weight, uintptr_t pair_bias,
                                                   uintptr_t present, uintptr_t grad_descriptors,
                                                   uintptr_t grad_alpha_in, uintptr_t grad_pair_weight,
                                                   uintptr_t grad_pair_bias, int64_t n, int64_t m, int64_t d,
                                                   int64_t stride_n, int64_t stride_m, int dtype, int alpha_kind) {
  FusionBackwardParams p{};
  const FusionSizes sizes = fill_fusion(
      p, descriptors, alpha, pair_weight, pair_bias, present, n, m, d, stride_n, stride_m, dtype, alpha_kind);
  p.grad_fused = pointer("grad_fused", grad_fused, sizes.descriptors, sizes.item);
  p.grad_alpha = pointer("grad_alpha", grad_alpha, 0, sizes.item);
  p.grad_descriptors = pointer("grad_descriptors", grad_descriptors, sizes.descriptors, sizes.item);
  if (p.alpha_kind == AlphaKind::gate) {
    p.grad_pair_weight =
        pointer("grad_pair_weight", grad_pair_weight, checked_product({sizes.pairs, 2, d}), sizes.accumulator);
    p.grad_pair_bias = pointer("grad_pair_bias", grad_pair_bias, sizes.pairs, sizes.accumulator);
  } else {
    p.grad_alpha_in = pointer("grad_alpha_in", grad_alpha_in, sizes.alpha, sizes.item);
  }
  return p;
}

template <class Params>
int64_t fill_interpolation(Params& p, int64_t n, int64_t d, double epsilon, int dtype) {
  p.dtype = checked_dtype(dtype);
  if (n < 0) invalid("n", "0 or more rows", n);
  if (d < 1) invalid("d", "a width of at least 1", d);
  p.n = n, p.d = d, p.epsilon = epsilon;
  return checked_product({n, d});
}

inline InterpolationForwardParams interpolation_forward_params(uintptr_t a, uintptr_t b, uintptr_t grad_b,
                                                               uintptr_t out, int64_t n, int64_t d, double epsilon,
                                                               int dtype) {
  InterpolationForwardParams p{};
  const int64_t elements = fill_interpolation(p, n, d, epsilon, dtype), item = item_size(p.dtype);
  p.a = pointer("a", a, elements, item);
  p.b = pointer("b", b, elements, item);
  p.grad = pointer("grad_b", grad_b, elements, item);
  p.out = pointer("out", out, elements, item);
  return p;
}

inline InterpolationBackwardParams interpolation_backward_params(uintptr_t grad_out, uintptr_t a, uintptr_t b,
                                                                 uintptr_t grad_b, uintptr_t out_grad_a,
                                                                 uintptr_t out_grad_b, uintptr_t out_grad_grad_b,
                                                                 int64_t n, int64_t d, double epsilon, int dtype) {
  InterpolationBackwardParams p{};
  const int64_t elements = fill_interpolation(p, n, d, epsilon, dtype), item = item_size(p.dtype);
  p.grad_out = pointer("grad_out", grad_out, elements, item);
  p.a = pointer("a", a, elements, item);
  p.b = pointer("b", b, elements, item);
  p.grad = pointer("grad_b", grad_b, elements, item);
  p.grad_a = pointer("out_grad_a", out_grad_a, elements, item);
  p.grad_b = pointer("out_grad_b", out_grad_b, elements, item);
  p.grad_grad = pointer("out_grad_grad_b", out_grad_grad_b, elements, item);
  return p;
}

}  // namespace amuse
