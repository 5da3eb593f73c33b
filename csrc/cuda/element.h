// Tensors as the kernels see them: fp32, fp16 or bf16 in memory, fp32 in registers.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "../dtype.h"

namespace amuse {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// Position of a dtype among the three that kernels are compiled for; -1: not one of them.
inline int dtype_index(Dtype dtype) {
  return dtype == Dtype::float32 ? 0 : dtype == Dtype::float16 ? 1 : dtype == Dtype::bfloat16 ? 2 : -1;
}

// Elements in 16 bytes, the widest access.
inline int elements_in_16_bytes(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 8; }

inline bool at_16_bytes(std::initializer_list<const void*> pointers) {
  bool all = true;
  for (const void* pointer : pointers) all = all && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  return all;
}

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(Half x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}
__device__ inline float widen(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

__device__ inline void narrow(float x, float& to) { to = x; }
__device__ inline void narrow(float x, Half& to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
__device__ inline void narrow(float x, BFloat16& to) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }

// Two neighbours in a register, the first in the low half.
__device__ inline uint32_t pack(float first, float second, Half) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
}
__device__ inline uint32_t pack(float first, float second, BFloat16) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
}

// V neighbouring elements: one, or whole 16 bytes at an aligned address.
template <class T, int V>
__device__ inline void load(const T* from, float (&x)[V]) {
  if constexpr (V == 1) {
    x[0] = widen(*from);
  } else if constexpr (std::is_same<T, float>::value) {
#pragma unroll
    for (int i = 0; i < V; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + i);
      x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
    }
  } else {
    static_assert(V == 8, "16 bytes of 16-bit elements");
    const uint4 eight = *reinterpret_cast<const uint4*>(from);
    const uint32_t words[] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = widen(T{static_cast<uint16_t>(words[i])});
      x[2 * i + 1] = widen(T{static_cast<uint16_t>(words[i] >> 16)});
    }
  }
}

// One access, forced: the compiler would split some of them into four.
__device__ inline void store_16_bytes(void* to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile(
      "st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(a), "r"(b), "r"(c), "r"(d));
}

template <class T, int V>
__device__ inline void store(T* to, const float (&x)[V]) {
  if constexpr (V == 1) {
    narrow(x[0], *to);
  } else if constexpr (std::is_same<T, float>::value) {
#pragma unroll
    for (int i = 0; i < V; i += 4) {
      store_16_bytes(to + i, __float_as_uint(x[i]), __float_as_uint(x[i + 1]), __float_as_uint(x[i + 2]),
                     __float_as_uint(x[i + 3]));
    }
  } else {
    static_assert(V == 8, "16 bytes of 16-bit elements");
    store_16_bytes(to, pack(x[0], x[1], T{}), pack(x[2], x[3], T{}), pack(x[4], x[5], T{}), pack(x[6], x[7], T{}));
  }
}

}  // namespace amuse
