// 16-bit floats are storage only: rows are widened to float, computed, and rounded back to nearest even.
// Included by files that are compiled once per instruction set, hence the inner namespace (see kernels.h).
#pragma once

#include <cstdint>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace amuse {
namespace AMUSE_ISA {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float float_from_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return float_from_bits(static_cast<uint32_t>(x.bits) << 16); }
inline float widen(Half x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t magnitude = x.bits & 0x7fffu;
  // Scaling by 2^112 rebases the exponent and also normalises subnormals.
  uint32_t bits = bits_of(float_from_bits(magnitude << 13) * 0x1p112f);
  bits |= magnitude >= 0x7c00u ? 0x7f800000u : 0u;  // infinity and NaN
  return float_from_bits(bits | (static_cast<uint32_t>(x.bits & 0x8000u) << 16));
#endif
}

inline void narrow(float x, float& out) { out = x; }
inline void narrow(double x, double& out) { out = x; }
inline void narrow(float x, BFloat16& out) {
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  // Rounding could carry a NaN into infinity or zero, so NaNs are truncated and made quiet instead.
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out.bits = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : rounded);
}
inline void narrow(float x, Half& out) {
#if defined(__F16C__)
  out.bits = static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
#else
  const uint32_t bits = bits_of(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Subnormal halves: adding 0.5 puts the last kept bit at the end of float's mantissa, so the adder rounds.
  const uint32_t subnormal = bits_of(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // 65520 and above round to infinity
  half = magnitude > 0x7f800000u ? 0x7e00u | ((magnitude >> 13) & 0x1ffu) : half;
  out.bits = static_cast<uint16_t>(sign | half);
#endif
}

inline void widen_row(const BFloat16* in, float* out, int64_t d) {
#pragma omp simd
  for (int64_t k = 0; k < d; ++k) out[k] = widen(in[k]);
}

inline void widen_row(const Half* in, float* out, int64_t d) {
  int64_t k = 0;
#if defined(__F16C__)
  for (; k + 8 <= d; k += 8) {
    _mm256_storeu_ps(out + k, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + k))));
  }
#endif
  for (; k < d; ++k) out[k] = widen(in[k]);
}

inline void narrow_row(const float* in, BFloat16* out, int64_t d) {
#pragma omp simd
  for (int64_t k = 0; k < d; ++k) narrow(in[k], out[k]);
}

inline void narrow_row(const float* in, Half* out, int64_t d) {
  int64_t k = 0;
#if defined(__F16C__)
  for (; k + 8 <= d; k += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(in + k), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + k), half);
  }
#endif
  for (; k < d; ++k) narrow(in[k], out[k]);
}

}  // namespace AMUSE_ISA
}  // namespace amuse
