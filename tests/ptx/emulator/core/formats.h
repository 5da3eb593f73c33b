// Floating-point formats narrower than 32 bits: decoding to float, encoding with every rounding.
#pragma once
#include <cmath>
#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#endif
#include "types.h"

namespace ptx {

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

struct SmallFormat {
  int exponent_bits, mantissa_bits;
  bool has_infinity;
  u32 nan;
  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  u32 infinity() const { return ((1u << exponent_bits) - 1) << mantissa_bits; }
  u32 largest() const { return has_infinity ? infinity() - 1 : nan - 1; }
};
constexpr SmallFormat HALF{5, 10, true, 0x7fff};
constexpr SmallFormat BFLOAT{8, 7, true, 0x7fff};
constexpr SmallFormat TF32{8, 10, true, 0x3ffff};
constexpr SmallFormat E5M2{5, 2, true, 0x7f};
constexpr SmallFormat E4M3{4, 3, false, 0x7f};

inline double round_to_integer(double x, Rounding rounding) {
  switch (rounding) {
    case Rounding::zero:
    case Rounding::integer_zero: return std::trunc(x);
    case Rounding::down:
    case Rounding::integer_down: return std::floor(x);
    case Rounding::up:
    case Rounding::integer_up: return std::ceil(x);
    case Rounding::away: return std::round(x);
    default: return std::nearbyint(x);
  }
}

// `finite`: clamp to the largest number instead of overflowing to infinity (.satfinite).
inline u32 encode(double x, const SmallFormat& format, Rounding rounding, bool finite = false) {
  if (std::isnan(x)) return format.nan;
  u32 sign = std::signbit(x) ? 1u << (format.exponent_bits + format.mantissa_bits) : 0;
  if (std::isinf(x)) return sign | (finite || !format.has_infinity ? format.largest() : format.infinity());
  if (x == 0) return sign;
  int smallest = 1 - format.bias();
  int exponent = std::max(std::ilogb(x), smallest);
  double steps = round_to_integer(std::ldexp(x, format.mantissa_bits - exponent), rounding);
  u64 magnitude = (u64)std::fabs(steps);
  // A normal number has its leading one at bit mantissa_bits: adding it to the exponent field carries as it should.
  u64 bits = ((u64)(exponent - smallest) << format.mantissa_bits) + magnitude;
  if (bits <= format.largest()) return sign | (u32)bits;
  bool stays_finite = finite || !format.has_infinity || rounding == Rounding::zero ||
                      (rounding == Rounding::down && !sign) || (rounding == Rounding::up && sign);
  return sign | (stays_finite ? format.largest() : format.infinity());
}

inline float decode(u32 bits, const SmallFormat& format) {
  u32 magnitude = bits & ((1u << (format.exponent_bits + format.mantissa_bits)) - 1);
  float sign = bits >> (format.exponent_bits + format.mantissa_bits) & 1 ? -1.f : 1.f;
  if (magnitude == format.infinity() && format.has_infinity) return sign * INFINITY;
  if (magnitude > format.largest()) return std::copysign(NAN, sign);
  int exponent = (int)(magnitude >> format.mantissa_bits);
  float mantissa = (float)(magnitude & ((1u << format.mantissa_bits) - 1));
  if (exponent) mantissa += (float)(1 << format.mantissa_bits);
  return sign * std::ldexp(mantissa, std::max(exponent, 1) - format.bias() - format.mantissa_bits);
}

inline float half_to_float(u16 bits) {
#if defined(__F16C__)
  return _cvtsh_ss(bits);
#else
  return decode(bits, HALF);
#endif
}

inline float bfloat_to_float(u16 bits) { return bits_as<float>((u32)bits << 16); }

inline u16 float_to_half(float x) {
#if defined(__F16C__)
  return std::isnan(x) ? HALF.nan : _cvtss_sh(x, 0);
#else
  return (u16)encode(x, HALF, Rounding::nearest);
#endif
}

inline u16 float_to_bfloat(float x) {
  u32 bits = bits_as<u32>(x);
  if (std::isnan(x)) return BFLOAT.nan;
  return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// What the tensor cores read of a 32-bit register holding a tf32 operand.
inline float tf32_operand(u32 bits) { return bits_as<float>(bits & 0xffffe000u); }

// The sum rounded to odd: a second rounding to a narrower format then gives the correctly rounded result.
inline double add_to_odd(double x, double y) {
  double sum = x + y;
  if (!std::isfinite(sum)) return sum;
  double from_y = sum - x;
  double error = (x - (sum - from_y)) + (y - from_y);
  u64 bits = bits_as<u64>(sum);
  if (error == 0 || (bits & 1)) return sum;
  bool away_from_zero = (error > 0) == (sum > 0);
  return bits_as<double>(away_from_zero ? bits + 1 : bits - 1);
}

}  // namespace ptx
