// Functions that the expressions of opcodes.py call. Each is one line of the PTX manual's semantics.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "formats.h"
#include "types.h"

namespace ptx {

template <class T>
constexpr u32 width_of = 8 * sizeof(T);
template <class T>
using Unsigned = std::make_unsigned_t<T>;
// The type of twice the width: u16 -> u32, s32 -> s64, u64 -> u128.
template <class T>
struct Doubled;
template <>
struct Doubled<u16> {
  using type = u32;
};
template <>
struct Doubled<s16> {
  using type = s32;
};
template <>
struct Doubled<u32> {
  using type = u64;
};
template <>
struct Doubled<s32> {
  using type = s64;
};
template <>
struct Doubled<u64> {
  using type = u128;
};
template <>
struct Doubled<s64> {
  using type = s128;
};
template <class T>
using Wide = typename Doubled<T>::type;

// Integers wrap: C++ signed overflow and the promotion of 16-bit operands are avoided by computing in u64.
template <class T>
inline T wrap_add(T a, T b) {
  return (T)((u64)a + (u64)b);
}
template <class T>
inline T wrap_subtract(T a, T b) {
  return (T)((u64)a - (u64)b);
}
template <class T>
inline T low_product(T a, T b) {
  return (T)((u64)a * (u64)b);
}
template <class T>
inline T high_product(T a, T b) {
  return (T)((Wide<T>)a * (Wide<T>)b >> width_of<T>);
}
template <class T>
inline Wide<T> wide_product(T a, T b) {
  return (Wide<T>)a * (Wide<T>)b;
}
template <class T>
inline T negate(T a) {
  return (T)(0 - (u64)a);
}
template <class T>
inline T magnitude(T a) {
  return a < 0 ? negate(a) : a;
}
template <class T>
inline T clamp_to(s64 x) {
  return (T)std::clamp<s64>(x, std::numeric_limits<T>::min(), std::numeric_limits<T>::max());
}
// Division by zero is unspecified; this is what the hardware's routines return.
template <class T>
inline T divide(T a, T b) {
  if (b == 0) return (T)-1;
  if constexpr (std::is_signed_v<T>)
    if (b == -1) return negate(a);
  return (T)(a / b);
}
template <class T>
inline T remainder_of(T a, T b) {
  if (b == 0) return a;
  if constexpr (std::is_signed_v<T>)
    if (b == -1) return 0;
  return (T)(a % b);
}
inline s32 times24(s32 a, s32 b) { return (s32)((s64)((s32)((u32)a << 8) >> 8) * ((s32)((u32)b << 8) >> 8)); }
inline u32 times24(u32 a, u32 b) { return (u32)((u64)(a & 0xffffff) * (b & 0xffffff)); }
inline s64 product24(s32 a, s32 b) { return (s64)((s32)((u32)a << 8) >> 8) * ((s32)((u32)b << 8) >> 8); }
inline u64 product24(u32 a, u32 b) { return (u64)(a & 0xffffff) * (b & 0xffffff); }

template <class T>
inline T shift_left(T a, u32 by) {
  return by >= width_of<T> ? 0 : (T)((Unsigned<T>)a << by);
}
template <class T>
inline T shift_right(T a, u32 by) {
  return by >= width_of<T> ? (a < 0 ? (T)-1 : 0) : (T)(a >> by);
}
inline u32 funnel_left(u32 low, u32 high, u32 by) {
  return by >= 32 ? low : (u32)(((u64)high << 32 | low) << by >> 32);
}
inline u32 funnel_right(u32 low, u32 high, u32 by) { return by >= 32 ? high : (u32)(((u64)high << 32 | low) >> by); }

template <class T>
inline u32 leading_zeros(T a) {
  return a == 0 ? width_of<T> : sizeof(T) == 8 ? __builtin_clzll((u64)a) : __builtin_clz((u32)a);
}
template <class T>
inline u32 find_bit(T a) {  // position of the highest bit that is not a sign bit
  Unsigned<T> bits = a < 0 ? (Unsigned<T>)~a : (Unsigned<T>)a;
  return bits == 0 ? 0xffffffffu : width_of<T> - 1 - leading_zeros(bits);
}
template <class T>
inline u32 find_bit_shift(T a) {
  u32 at = find_bit(a);
  return at == ~0u ? at : width_of<T> - 1 - at;
}
template <class T>
inline T reverse_bits(T a) {
  T result = 0;
  for (u32 k = 0; k < width_of<T>; k++) result |= (T)((a >> k & 1) << (width_of<T> - 1 - k));
  return result;
}
template <class T>
inline T extract_field(T a, u32 position, u32 length) {
  position &= 255, length &= 255;
  u32 top = width_of<T> - 1;
  bool sign = std::is_signed_v<T> && length && ((Unsigned<T>)a >> std::min(position + length - 1, top) & 1);
  Unsigned<T> result = 0;
  for (u32 k = 0; k <= top; k++) {
    bool bit = k < length && position + k <= top ? (Unsigned<T>)a >> (position + k) & 1 : sign;
    result |= (Unsigned<T>)bit << k;
  }
  return (T)result;
}
template <class T>
inline T insert_field(T field, T into, u32 position, u32 length) {
  position &= 255, length &= 255;
  for (u32 k = 0; k < length && position + k < width_of<T>; k++) {
    T bit = (T)1 << (position + k);
    into = (into & ~bit) | ((field >> k & 1) ? bit : 0);
  }
  return into;
}
inline u32 bit_mask(u32 position, u32 count, bool wrap) {
  if (wrap) position &= 31, count &= 31;
  u32 mask = count >= 32 ? ~0u : (1u << count) - 1;
  return position >= 32 ? 0 : mask << position;
}
inline u32 logic3(u32 a, u32 b, u32 c, u32 table) {
  u32 result = 0;
  for (int row = 0; row < 8; row++)
    if (table >> row & 1) result |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
  return result;
}
inline u32 permute_bytes(u32 a, u32 b, u32 selectors) {
  u64 bytes = (u64)b << 32 | a;
  u32 result = 0;
  for (int k = 0; k < 4; k++) {
    u32 selector = selectors >> (4 * k) & 15;
    u8 byte = (u8)(bytes >> (8 * (selector & 7)));
    if (selector & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= (u32)byte << (8 * k);
  }
  return result;
}
// Modes of prmt: f4e, b4e, rc8, ecl, ecr, rc16, numbered from 0.
inline u32 permute_mode(u32 a, u32 b, u32 c, int mode) {
  static const u32 selectors[6][4] = {{0x3210, 0x4321, 0x5432, 0x6543}, {0x5670, 0x6701, 0x7012, 0x0123},
                                      {0x0000, 0x1111, 0x2222, 0x3333}, {0x3210, 0x3211, 0x3222, 0x3333},
                                      {0x0000, 0x1110, 0x2210, 0x3210}, {0x1010, 0x3232, 0x1010, 0x3232}};
  return permute_bytes(a, b, selectors[mode][c & 3]);
}
template <class A, class B>
inline s32 dot4(u32 a, u32 b, s32 c) {
  u32 sum = (u32)c;
  for (int k = 0; k < 4; k++) sum += (u32)((s32)(A)(a >> (8 * k)) * (s32)(B)(b >> (8 * k)));
  return (s32)sum;
}

template <class T>
inline T saturate_unit(T x) {
  return std::isnan(x) ? T(0) : std::min(T(1), std::max(T(0), x));
}
// One NaN operand gives the other operand, two give NaN; -0 is below +0.
template <class T>
inline T float_minimum(T a, T b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  return a < b ? a : b < a ? b : std::signbit(a) ? a : b;
}
template <class T>
inline T float_maximum(T a, T b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  return a > b ? a : b > a ? b : std::signbit(a) ? b : a;
}
template <class T>
inline T nan_minimum(T a, T b) {
  return std::isnan(a) || std::isnan(b) ? T(NAN) : float_minimum(a, b);
}
template <class T>
inline T nan_maximum(T a, T b) {
  return std::isnan(a) || std::isnan(b) ? T(NAN) : float_maximum(a, b);
}
template <class T>
inline T sign_of_both(T value, T a, T b) {
  return std::copysign(value, std::signbit(a) != std::signbit(b) ? T(-1) : T(1));
}
inline float approximate_quotient(float a, float b) {
  float size = std::fabs(b);
  return size > 0x1p126f && std::isfinite(b) ? (std::isinf(a) ? NAN : std::copysign(0.f, a) * std::copysign(1.f, b))
                                             : a / b;
}
template <class T>
inline bool is_subnormal(T x) {
  return std::fpclassify(x) == FP_SUBNORMAL;
}
// fma of 16-bit floats: the product is exact in double, the sum is rounded to odd before it is narrowed.
inline double fused16(float a, float b, float c) { return add_to_odd((double)a * b, c); }

}  // namespace ptx
