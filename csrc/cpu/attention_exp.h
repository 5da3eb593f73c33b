// Vectorised 2^x. Compiled once per instruction set.
#pragma once

#include "rows.h"

namespace amuse {
namespace AMUSE_ISA {

// Adding this number rounds to an integer and leaves it in the low bits of the mantissa.
template <class A>
struct Exp2;

template <>
struct Exp2<float> {
  using Bits = int32_t;
  static constexpr float rounder = 0x1.8p23f, lowest = -126.0f;
  static constexpr int mantissa_bits = 23, degree = 5;
  // minimax on [-1/2, 1/2], relative error 7.5e-8 before rounding
  static constexpr float coefficients[degree + 1] = {0x1.00000133c1310p+0f, 0x1.62e428c5bb594p-1f,
                                                     0x1.ebf9174f83c53p-3f, 0x1.c6b6e4f711defp-5f,
                                                     0x1.3d0c52d1e5085p-7f, 0x1.5c08e64ddf36cp-10f};
};

template <>
struct Exp2<double> {
  using Bits = int64_t;
  static constexpr double rounder = 0x1.8p52, lowest = -1022.0;
  static constexpr int mantissa_bits = 52, degree = 11;
  // minimax on [-1/2, 1/2], relative error 3.1e-18 before rounding
  static constexpr double coefficients[degree + 1] = {
      1.0,
      0x1.62e42fefa39efp-1,
      0x1.ebfbdff82c5adp-3,
      0x1.c6b08d7049fd1p-5,
      0x1.3b2ab6fb9f413p-7,
      0x1.5d87fe78cf260p-10,
      0x1.43091310bf66dp-13,
      0x1.ffcbfba7bc9a1p-17,
      0x1.62bfc3c1d2153p-20,
      0x1.b5267882d5309p-24,
      0x1.e620fb67ac6ddp-28,
      0x1.e7aa1c12faa3cp-32,
  };
};

template <class A>
struct BitsOf {
  typedef typename Exp2<A>::Bits type __attribute__((vector_size(AMUSE_VECTOR_BYTES)));
};

template <class A>
inline Vector<A> broadcast(A x) {
  return x - Vector<A>{};
}

// x from -infinity to about 120; what would be subnormal is 0, and NaN stays NaN.
template <class A>
inline Vector<A> exp2(Vector<A> x) {
  using E = Exp2<A>;
  using Bits = typename BitsOf<A>::type;
  const Vector<A> rounded = x + E::rounder;
  const Vector<A> f = x - (rounded - E::rounder);
  Vector<A> sum = broadcast<A>(E::coefficients[E::degree]);
#pragma GCC unroll 12
  for (int i = E::degree - 1; i >= 0; --i) sum = sum * f + E::coefficients[i];
  const Bits power = reinterpret_cast<Bits>(sum) + (reinterpret_cast<Bits>(rounded) << E::mantissa_bits);
  // Below the normal range, and at -infinity, where f is NaN.
  const Bits hidden = x < E::lowest;
  return reinterpret_cast<Vector<A>>(power & ~hidden);
}

template <class A>
inline A exp2_of(A x) {
  return exp2<A>(broadcast<A>(x))[0];
}

}  // namespace AMUSE_ISA
}  // namespace amuse
