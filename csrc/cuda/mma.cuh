// Tensor-core products on fragments, and the instructions that move tiles: PTX of sm_80, which every later chip runs.
//
// A fragment of A is 16 x 32 bytes, of B 8 x 32 bytes (both rows of the operand as it lies in memory), C is 16 x 8:
// lane 4 g + t holds rows g and g + 8, columns 2 t and 2 t + 1, as c[0], c[1] and c[2], c[3].
#pragma once

#include <cstdint>

#include "element.h"

namespace amuse {

using Accumulator = float[4];
using Fragment = uint32_t[4];

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Without `present` the 16 bytes become 0 and nothing is read.
__device__ inline void copy_async(uint32_t to, const void* from, bool present) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(present ? 16 : 0) : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
__device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

__device__ inline void load_matrices(Fragment& r, uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}
__device__ inline void load_matrices_transposed(Fragment& r, uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}
__device__ inline uint32_t load_word(uint32_t address) {
  uint32_t word;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(address));
  return word;
}

// The parts that differ between the element types. `multiply` adds A B^T; with kExact, float32 products come from three
// of TF32, in an order that makes B A^T with kSwapped the same numbers.
template <class T>
struct Tensor;

template <>
struct Tensor<Half> {
  template <bool kExact, bool kSwapped = false>
  static __device__ void multiply(Accumulator& c, const Fragment& a, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

template <>
struct Tensor<BFloat16> {
  template <bool kExact, bool kSwapped = false>
  static __device__ void multiply(Accumulator& c, const Fragment& a, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

template <>
struct Tensor<float> {
  static __device__ void multiply_tf32(Accumulator& c, const Fragment& a, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
  static __device__ uint32_t rounded(uint32_t x) {
    uint32_t y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(__uint_as_float(x)));
    return y;
  }
  // x = large + small up to 2^-21 of x; the tensor cores read the upper 10 bits of both mantissas. Infinity becomes
  // NaN.
  static __device__ uint32_t large(uint32_t x) { return x & 0xffffe000u; }
  static __device__ uint32_t small(uint32_t x) {
    return __float_as_uint(__uint_as_float(x) - __uint_as_float(large(x)));
  }
  template <bool kExact, bool kSwapped = false>
  static __device__ void multiply(Accumulator& c, const Fragment& a, uint32_t b0, uint32_t b1) {
    if (!kExact) {
      const Fragment r = {rounded(a[0]), rounded(a[1]), rounded(a[2]), rounded(a[3])};
      multiply_tf32(c, r, rounded(b0), rounded(b1));
      return;
    }
    const Fragment high = {large(a[0]), large(a[1]), large(a[2]), large(a[3])};
    const Fragment low = {small(a[0]), small(a[1]), small(a[2]), small(a[3])};
    if (kSwapped) multiply_tf32(c, high, small(b0), small(b1));
    multiply_tf32(c, low, large(b0), large(b1));
    if (!kSwapped) multiply_tf32(c, high, small(b0), small(b1));
    multiply_tf32(c, high, large(b0), large(b1));
  }
};

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// A NaN stays a NaN.
__device__ inline float minimum(float x, float y) {
  float z;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}

// Maximum and sum of a row of C, over the four lanes that share it.
__device__ inline float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
template <class X>
__device__ X row_sum(X x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

}  // namespace amuse
