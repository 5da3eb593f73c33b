// cvt. A source value is an exact number (a 128-bit integer or a double); the destination type rounds it once.
#include "handlers.h"

namespace ptx {

struct Number {
  bool is_integer;
  s128 whole;
  double real;
};

static Number read_number(u64 bits, int part, Type type, bool ftz) {
  auto real = [](double x) { return Number{false, 0, x}; };
  auto whole = [](s128 x) { return Number{true, x, 0}; };
  u16 sixteen = (u16)(bits >> (16 * part));
  u8 eight = (u8)(bits >> (8 * part));
  switch (type) {
    case Type::u8: return whole((u8)bits);
    case Type::s8: return whole((s8)bits);
    case Type::u16: return whole((u16)bits);
    case Type::s16: return whole((s16)bits);
    case Type::u32: return whole((u32)bits);
    case Type::s32: return whole((s32)bits);
    case Type::u64: return whole((u64)bits);
    case Type::s64: return whole((s64)bits);
    case Type::f16:
    case Type::f16x2: return real(half_to_float(sixteen));
    case Type::bf16:
    case Type::bf16x2: return real(bfloat_to_float(sixteen));
    case Type::e4m3x2: return real(decode(eight, E4M3));
    case Type::e5m2x2: return real(decode(eight, E5M2));
    case Type::f64: return real(bits_as<double>(bits));
    default: {
      float x = bits_as<float>((u32)bits);
      return real(ftz ? Plain<float>::flush(x) : x);
    }
  }
}

static void set_rounding(Rounding rounding) {
  static const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
  std::fesetround((int)rounding < 4 ? modes[(int)rounding] : FE_TONEAREST);
}

// volatile keeps the compiler from moving the conversion past the change of rounding mode.
template <class T>
static T round_to(const Number& x, Rounding rounding) {
  set_rounding(rounding);
  volatile T result;
  if (!x.is_integer) {
    volatile double real = x.real;
    result = (T)real;
  } else if (x.whole < 0) {
    volatile s64 whole = (s64)x.whole;
    result = (T)whole;
  } else {
    volatile u64 whole = (u64)x.whole;
    result = (T)whole;
  }
  std::fesetround(FE_TONEAREST);
  return result;
}

template <class T>
static u64 to_integer(const Number& x, Rounding rounding, bool saturate, Type from) {
  constexpr s128 low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
  if (x.is_integer) return (u64)(T)(saturate ? std::clamp(x.whole, low, high) : x.whole);
  // The manual: NaN gives 0, except where a 64-bit type is involved, which gives the top bit.
  if (std::isnan(x.real)) return from == Type::f64 || sizeof(T) == 8 ? (u64)(T)(1ull << (width_of<T> - 1)) : 0;
  double rounded = round_to_integer(x.real, rounding);
  if (rounded <= (double)low) return (u64)(T)low;
  if (rounded >= (double)high) return (u64)(T)high;
  return (u64)(T)rounded;
}

// Integers of 64 bits do not fit a double: keep a sticky bit, so that the later rounding sees what was cut off.
static double exact_enough(const Number& x) {
  if (!x.is_integer) return x.real;
  double near = (double)(s64)(x.whole >> 12) * 4096.0, rest = (double)(s64)(x.whole & 4095);
  return add_to_odd(near, rest);
}

struct Target {
  Type type, from;
  Rounding rounding;
  bool ftz, saturate, finite, relu;
};

static u64 write_number(Number x, const Target& to) {
  bool to_float = to.type == Type::f32 || to.type == Type::f64;
  bool small = !to_float && to.type != Type::u8 &&
               (to.type > Type::s64 || to.type == Type::f16 || to.type == Type::bf16 || to.type == Type::f16x2 ||
                to.type == Type::bf16x2);
  if (!x.is_integer && (to_float || small)) {
    if (to.rounding >= Rounding::integer_nearest) x.real = round_to_integer(x.real, to.rounding);
    if (to.relu && x.real < 0) x.real = 0;
  }
  if (to.saturate && (to_float || small)) {
    if (x.is_integer)
      x.whole = std::clamp<s128>(x.whole, 0, 1);
    else
      x.real = saturate_unit(x.real);
  }
  Rounding rounding = to.rounding >= Rounding::integer_nearest ? Rounding::nearest : to.rounding;
  switch (to.type) {
    case Type::u8: return (u8)to_integer<u8>(x, to.rounding, to.saturate, to.from);
    case Type::s8: return to_integer<s8>(x, to.rounding, to.saturate, to.from);
    case Type::u16: return to_integer<u16>(x, to.rounding, to.saturate, to.from);
    case Type::s16: return to_integer<s16>(x, to.rounding, to.saturate, to.from);
    case Type::u32: return to_integer<u32>(x, to.rounding, to.saturate, to.from);
    case Type::s32: return to_integer<s32>(x, to.rounding, to.saturate, to.from);
    case Type::u64: return to_integer<u64>(x, to.rounding, to.saturate, to.from);
    case Type::s64: return to_integer<s64>(x, to.rounding, to.saturate, to.from);
    case Type::f64: return Plain<double>::store(round_to<double>(x, rounding), 0);
    case Type::f32: {
      float result = round_to<float>(x, rounding);
      return Plain<float>::store(to.ftz ? Plain<float>::flush(result) : result, 0);
    }
    case Type::tf32: return (u64)encode(x.real, TF32, rounding, to.finite) << 13;
    case Type::f16:
    case Type::f16x2: return encode(exact_enough(x), HALF, rounding, to.finite);
    case Type::bf16:
    case Type::bf16x2: return encode(exact_enough(x), BFLOAT, rounding, to.finite);
    case Type::e4m3x2: return encode(x.real, E4M3, rounding, true);
    default: return encode(x.real, E5M2, rounding, true);
  }
}

namespace handler {

// slots: d, a, b (-1 unless two floats are packed: a is the upper half).
// values: type of d, type of a, bytes of d's register, satfinite, relu.
void convert(Warp& warp, const Instruction& i, u32 mask) {
  Type type = (Type)i.value[0], from = (Type)i.value[1];
  Target target{type, from, i.rounding, i.ftz, i.saturate, (bool)i.value[3], (bool)i.value[4]};
  int sources = i.slot[2] < 0 ? 1 : 2;
  u32 defined = warp.defined[i.slot[1]] & (sources == 2 ? warp.defined[i.slot[2]] : ALL_LANES), origin = 0;
  if (mask & ~defined) {
    origin = note_undefined(warp, i.slot + 1, sources, mask);
    defined = warp.defined[i.slot[1]] & (sources == 2 ? warp.defined[i.slot[2]] : ALL_LANES);
  }
  u64* to = warp.reg(i.slot[0]);
  const u64* a = warp.reg(i.slot[1]);
  const u64* b = sources == 2 ? warp.reg(i.slot[2]) : nullptr;
  u64 keep = i.value[2] == 8 ? ~0ull : (1ull << (8 * i.value[2])) - 1;
  bool common = i.rounding == Rounding::nearest && from == Type::f32 && !target.ftz && !target.saturate &&
                !target.finite && !target.relu;
  bool eight = type == Type::e4m3x2 || type == Type::e5m2x2;
  bool packs = type == Type::f16x2 || type == Type::bf16x2 || eight;
  for (int lane = 0; lane < LANES; lane++) {
    if (!(mask >> lane & 1)) continue;
    if (common && (type == Type::f16x2 || type == Type::bf16x2)) {  // the frequent case, without the generic path
      float high = bits_as<float>((u32)a[lane]), low = bits_as<float>((u32)b[lane]);
      to[lane] = type == Type::f16x2 ? (u32)float_to_half(high) << 16 | float_to_half(low)
                                     : (u32)float_to_bfloat(high) << 16 | float_to_bfloat(low);
      continue;
    }
    if (!packs) {
      to[lane] = write_number(read_number(a[lane], 0, from, i.ftz), target) & keep;
      continue;
    }
    u64 low = write_number(read_number(b ? b[lane] : a[lane], 0, from, i.ftz), target);
    u64 high = write_number(read_number(a[lane], b ? 0 : 1, from, i.ftz), target);
    to[lane] = high << (eight ? 8 : 16) | low;
  }
  define(warp, i.slot[0], mask, defined, origin);
}

}  // namespace handler
}  // namespace ptx
