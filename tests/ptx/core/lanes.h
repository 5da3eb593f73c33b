// How the table of opcodes.py meets the registers: a PTX type becomes a C++ value per lane, and `map` applies an
// expression to every lane of the mask. A register is 64 bits wide; narrower values are kept zero-extended.
#pragma once
#include <cfenv>

#include "arithmetic.h"
#include "formats.h"
#include "machine.h"

namespace ptx {

template <class T> struct Plain {
  using Value = T;
  static constexpr int parts = 1;
  static constexpr bool floating = std::is_floating_point_v<T>;
  static Value load(u64 bits, int) {
    if constexpr (std::is_same_v<T, float>) return bits_as<float>((u32)bits);
    else if constexpr (std::is_same_v<T, double>) return bits_as<double>(bits);
    else return (T)bits;
  }
  static u64 store(Value value, int) {
    if constexpr (std::is_same_v<T, float>) return std::isnan(value) ? 0x7fffffffu : bits_as<u32>(value);
    else if constexpr (std::is_same_v<T, double>) return bits_as<u64>(value);
    else return (u64)(std::make_unsigned_t<T>)value;
  }
  static Value flush(Value x) {
    if constexpr (std::is_same_v<T, float>) return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x;
    else return x;
  }
};

// 16-bit floats compute in float (add, sub, mul round correctly that way) or, for fma, in a double rounded to odd.
template <bool IS_HALF, int PARTS> struct Sixteen {
  using Value = float;
  static constexpr int parts = PARTS;
  static constexpr bool floating = true;
  static Value load(u64 bits, int part) {
    u16 piece = (u16)(bits >> (16 * part));
    return IS_HALF ? half_to_float(piece) : bfloat_to_float(piece);
  }
  static u64 store(double value, int part) {
    return (u64)encode(value, IS_HALF ? HALF : BFLOAT, Rounding::nearest) << (16 * part);
  }
  static u64 store(float value, int part) {
    return (u64)(IS_HALF ? float_to_half(value) : float_to_bfloat(value)) << (16 * part);
  }
  template <class X> static X flush(X x) {
    return std::fabs(x) < (IS_HALF ? X(0x1p-14) : X(0x1p-126)) ? std::copysign(X(0), x) : x;
  }
};

struct PairOfFloats : Plain<float> {
  static constexpr int parts = 2;
  static Value load(u64 bits, int part) { return bits_as<float>((u32)(bits >> (32 * part))); }
  static u64 store(Value value, int part) { return Plain<float>::store(value, 0) << (32 * part); }
};

// An untyped copy: keeps NaN payloads.
struct Predicate { using Value = bool; };

namespace tag {
using u8_ = Plain<u8>; using s8_ = Plain<s8>; using u16_ = Plain<u16>; using s16_ = Plain<s16>;
using u32_ = Plain<u32>; using s32_ = Plain<s32>; using u64_ = Plain<u64>; using s64_ = Plain<s64>;
using b8_ = u8_; using b16_ = u16_; using b32_ = u32_; using b64_ = u64_;
using f32_ = Plain<float>; using f64_ = Plain<double>; using f32x2_ = PairOfFloats;
using f16_ = Sixteen<true, 1>; using f16x2_ = Sixteen<true, 2>;
using bf16_ = Sixteen<false, 1>; using bf16x2_ = Sixteen<false, 2>;
using pred_ = Predicate;
}  // namespace tag

template <class Body> inline void each_lane(u32 mask, Body body) {
  if (mask == ALL_LANES) {
    for (int lane = 0; lane < LANES; lane++) body(lane);
  } else {
    for (int lane = 0; lane < LANES; lane++)
      if (mask >> lane & 1) body(lane);
  }
}

template <class S> struct Source {
  const u64* bits;
  Source(Warp& warp, const Instruction& i, int operand) : bits(warp.reg(i.slot[operand])) {}
  typename S::Value at(int lane, int part) const { return S::load(bits[lane], part); }
};
template <> struct Source<Predicate> {
  u32 bits;
  Source(Warp& warp, const Instruction& i, int operand)
      : bits(warp.predicates[i.slot[operand]] ^ (i.value[operand] ? ALL_LANES : 0)) {}
  bool at(int lane, int) const { return bits >> lane & 1; }
};

template <class S> inline u32 defined_lanes(Warp& warp, const Instruction& i, int operand) {
  if constexpr (std::is_same_v<S, Predicate>) return warp.predicates_defined[i.slot[operand]];
  else return warp.defined[i.slot[operand]];
}

// Operand 0 is the destination, sources count from 1; i.value[k] tells whether predicate k is negated.
template <class D, class... S, size_t... K, class F>
inline void map_to_register(Warp& warp, const Instruction& i, u32 mask, std::index_sequence<K...>, F f) {
  u32 defined = (ALL_LANES & ... & defined_lanes<S>(warp, i, K + 1));
  u32 origin = 0;
  if (mask & ~defined) {
    s32 sources[sizeof...(S)] = {std::is_same_v<S, Predicate> ? -1 : i.slot[K + 1]...};
    origin = note_undefined(warp, sources, sizeof...(S), mask);
    defined = (ALL_LANES & ... & defined_lanes<S>(warp, i, K + 1));
  }
  u64* to = warp.reg(i.slot[0]);
  std::tuple<Source<S>...> from{Source<S>(warp, i, K + 1)...};
  if constexpr (D::floating) {
    if (i.ftz || i.saturate || i.rounding != Rounding::nearest) {
      static const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD, FE_TONEAREST};
      std::fesetround(modes[(int)i.rounding]);
      auto flushed = [&](auto x) {
        if constexpr (std::is_floating_point_v<decltype(x)>) return i.ftz ? D::flush(x) : x;
        else return x;
      };
      each_lane(mask, [&](int lane) {
        u64 bits = 0;
        for (int part = 0; part < D::parts; part++) {
          auto result = flushed(f(flushed(std::get<K>(from).at(lane, part))...));
          if (i.saturate) result = saturate_unit(result);
          bits |= D::store(result, part);
        }
        to[lane] = bits;
      });
      std::fesetround(FE_TONEAREST);
      define(warp, i.slot[0], mask, defined, origin);
      return;
    }
  }
  each_lane(mask, [&](int lane) {
    u64 bits = 0;
    for (int part = 0; part < D::parts; part++) bits |= D::store(f(std::get<K>(from).at(lane, part)...), part);
    to[lane] = bits;
  });
  define(warp, i.slot[0], mask, defined, origin);
}

template <class... S, size_t... K, class F>
inline void map_to_predicate(Warp& warp, const Instruction& i, u32 mask, std::index_sequence<K...>, F f) {
  u32 defined = (ALL_LANES & ... & defined_lanes<S>(warp, i, K + 1));
  if (mask & ~defined) {
    s32 sources[sizeof...(S)] = {std::is_same_v<S, Predicate> ? -1 : i.slot[K + 1]...};
    note_undefined(warp, sources, sizeof...(S), mask);
    defined = (ALL_LANES & ... & defined_lanes<S>(warp, i, K + 1));
  }
  std::tuple<Source<S>...> from{Source<S>(warp, i, K + 1)...};
  u32 result = 0;
  for (int lane = 0; lane < LANES; lane++) result |= (u32)(bool)f(std::get<K>(from).at(lane, 0)...) << lane;
  u32& to = warp.predicates[i.slot[0]];
  to = (to & ~mask) | (result & mask);
  u32& known = warp.predicates_defined[i.slot[0]];
  known = (known & ~mask) | (defined & mask);
}

template <class D, class... S, class F> inline void map(Warp& warp, const Instruction& i, u32 mask, F f) {
  if constexpr (std::is_same_v<D, Predicate>) map_to_predicate<S...>(warp, i, mask, std::index_sequence_for<S...>{}, f);
  else map_to_register<D, S...>(warp, i, mask, std::index_sequence_for<S...>{}, f);
}

}  // namespace ptx
