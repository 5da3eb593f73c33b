// How the table of opcodes.py meets the registers: a PTX type becomes a C++ value per lane, and `map` applies an
// expression to every lane of the mask. A register is 64 bits wide; narrower values are kept zero-extended.
#pragma once
#include <cfenv>
#include <initializer_list>

#include "arithmetic.h"
#include "formats.h"
#include "machine.h"

namespace ptx {

template <class T>
struct Plain {
  using Value = T;
  static constexpr int parts = 1;
  static constexpr bool floating = std::is_floating_point_v<T>;
  static Value load(u64 bits, int) {
    if constexpr (std::is_same_v<T, float>)
      return bits_as<float>((u32)bits);
    else if constexpr (std::is_same_v<T, double>)
      return bits_as<double>(bits);
    else
      return (T)bits;
  }
  static u64 store(Value value, int) {
    if constexpr (std::is_same_v<T, float>)
      return std::isnan(value) ? 0x7fffffffu : bits_as<u32>(value);
    else if constexpr (std::is_same_v<T, double>)
      return bits_as<u64>(value);
    else
      return (u64)(std::make_unsigned_t<T>)value;
  }
  static Value flush(Value x) {
    if constexpr (std::is_same_v<T, float>)
      return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x;
    else
      return x;
  }
};

// 16-bit floats compute in float (add, sub, mul round correctly that way) or, for fma, in a double rounded to odd.
template <bool IS_HALF, int PARTS>
struct Sixteen {
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
  template <class X>
  static X flush(X x) {
    return std::fabs(x) < (IS_HALF ? X(0x1p-14) : X(0x1p-126)) ? std::copysign(X(0), x) : x;
  }
};

struct PairOfFloats : Plain<float> {
  static constexpr int parts = 2;
  static Value load(u64 bits, int part) { return bits_as<float>((u32)(bits >> (32 * part))); }
  static u64 store(Value value, int part) { return Plain<float>::store(value, 0) << (32 * part); }
};

struct Predicate {
  using Value = bool;
};

namespace tag {
using u8_ = Plain<u8>;
using s8_ = Plain<s8>;
using u16_ = Plain<u16>;
using s16_ = Plain<s16>;
using u32_ = Plain<u32>;
using s32_ = Plain<s32>;
using u64_ = Plain<u64>;
using s64_ = Plain<s64>;
using b8_ = u8_;
using b16_ = u16_;
using b32_ = u32_;
using b64_ = u64_;
using f32_ = Plain<float>;
using f64_ = Plain<double>;
using f32x2_ = PairOfFloats;
using f16_ = Sixteen<true, 1>;
using f16x2_ = Sixteen<true, 2>;
using bf16_ = Sixteen<false, 1>;
using bf16x2_ = Sixteen<false, 2>;
using pred_ = Predicate;
}  // namespace tag

template <class Body>
inline void each_lane(u32 mask, Body body) {
  if (mask == ALL_LANES) {
    for (int lane = 0; lane < LANES; lane++) body(lane);
  } else {
    for (int lane = 0; lane < LANES; lane++)
      if (mask >> lane & 1) body(lane);
  }
}

// A source operand: where its lanes are, and which of them are defined.
template <class S>
struct Source {
  using Value = typename S::Value;
  const u64* bits;
  u32 defined;
  s32 slot;
  Source(Warp& warp, const Instruction& i, int k)
      : bits(warp.reg(i.slot[k])), defined(warp.defined[i.slot[k]]), slot(i.slot[k]) {}
  u32 predicate_defined() const { return ALL_LANES; }
  Value at(int lane, int part) const { return S::load(bits[lane], part); }
  Value flushed(int lane, int part, bool flush) const {
    if constexpr (S::floating)
      return flush ? S::flush(at(lane, part)) : at(lane, part);
    else
      return at(lane, part);
  }
};
template <>
struct Source<Predicate> {
  u32 bits, defined;
  s32 slot = -1;
  Source(Warp& warp, const Instruction& i, int k)
      : bits(warp.predicates[i.slot[k]] ^ (i.value[k] ? ALL_LANES : 0)), defined(warp.predicates_defined[i.slot[k]]) {}
  u32 predicate_defined() const { return defined; }
  bool at(int lane, int) const { return bits >> lane & 1; }
  bool flushed(int lane, int part, bool) const { return at(lane, part); }
};

// Lanes of the result that are defined: those of which all sources are. Predicates come with slot -1.
struct Definedness {
  u32 lanes, origin;
};
inline Definedness combine_defined(Warp& warp, u32 defined, u32 predicates_defined, u32 mask,
                                   std::initializer_list<s32> slots) {
  if (!(mask & ~defined)) return {ALL_LANES, 0};
  u32 origin = note_undefined(warp, slots.begin(), (int)slots.size(), mask);  // may report, and define by that
  u32 after = predicates_defined;
  for (s32 slot : slots)
    if (slot >= 0) after &= warp.defined[slot];
  return {after, origin};
}

inline void begin_rounding(Rounding rounding) {
  static const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD, FE_TONEAREST};
  if (rounding != Rounding::nearest) std::fesetround(modes[(int)rounding]);
}
inline void end_rounding(Rounding rounding) {
  if (rounding != Rounding::nearest) std::fesetround(FE_TONEAREST);
}

// Operand 0 is the destination, sources count from 1; i.value[k] tells whether predicate k is negated. Every lane is
// computed and the active ones are kept: without a branch in the loop the compiler vectorises it.
template <class D, class F, class... S>
inline void apply(Warp& warp, const Instruction& i, u32 mask, F f, const S&... from) {
  Definedness defined = combine_defined(
      warp, (ALL_LANES & ... & from.defined), (ALL_LANES & ... & from.predicate_defined()), mask, {from.slot...});
  if constexpr (std::is_same_v<D, Predicate>) {
    u32 result = 0;
    for (int lane = 0; lane < LANES; lane++) result |= (u32)(bool)f(from.flushed(lane, 0, i.ftz)...) << lane;
    u32 &to = warp.predicates[i.slot[0]], &known = warp.predicates_defined[i.slot[0]];
    to = (to & ~mask) | (result & mask);
    known = (known & ~mask) | (defined.lanes & mask);
  } else {
    u64* to = warp.reg(i.slot[0]);
    bool modified = i.ftz || i.saturate || i.rounding != Rounding::nearest;
    if (D::floating && modified) {
      if constexpr (D::floating) {
        begin_rounding(i.rounding);
        for (int lane = 0; lane < LANES; lane++) {
          u64 bits = 0;
          for (int part = 0; part < D::parts; part++) {
            auto result = f(from.flushed(lane, part, i.ftz)...);
            if (i.ftz) result = D::flush(result);
            if (i.saturate) result = saturate_unit(result);
            bits |= D::store(result, part);
          }
          if (mask >> lane & 1) to[lane] = bits;
        }
        end_rounding(i.rounding);
      }
    } else {
      for (int lane = 0; lane < LANES; lane++) {
        u64 bits = 0;
        for (int part = 0; part < D::parts; part++) bits |= D::store(f(from.at(lane, part)...), part);
        to[lane] = mask >> lane & 1 ? bits : to[lane];
      }
    }
    define(warp, i.slot[0], mask, defined.lanes, defined.origin);
  }
}

template <class D, class A, class F>
inline void map(Warp& warp, const Instruction& i, u32 mask, F f) {
  apply<D>(warp, i, mask, f, Source<A>(warp, i, 1));
}
template <class D, class A, class B, class F>
inline void map(Warp& warp, const Instruction& i, u32 mask, F f) {
  apply<D>(warp, i, mask, f, Source<A>(warp, i, 1), Source<B>(warp, i, 2));
}
template <class D, class A, class B, class C, class F>
inline void map(Warp& warp, const Instruction& i, u32 mask, F f) {
  apply<D>(warp, i, mask, f, Source<A>(warp, i, 1), Source<B>(warp, i, 2), Source<C>(warp, i, 3));
}
template <class D, class A, class B, class C, class E, class F>
inline void map(Warp& warp, const Instruction& i, u32 mask, F f) {
  apply<D>(
      warp, i, mask, f, Source<A>(warp, i, 1), Source<B>(warp, i, 2), Source<C>(warp, i, 3), Source<E>(warp, i, 4));
}

}  // namespace ptx
