// Scratch memory and parallel loops for the kernel files (compiled once per instruction set, see kernels.h).
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "half.h"

namespace amuse {
namespace AMUSE_ISA {

// Uninitialised, aligned memory. Allocated before a team starts, since nothing may throw inside one.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) {
    constexpr int64_t alignment = 64;
    if (bytes > 0) {
      data_ = ::aligned_alloc(alignment, static_cast<size_t>((bytes + alignment - 1) / alignment * alignment));
      if (data_ == nullptr) throw std::bad_alloc();
    }
  }
  ~Scratch() { ::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class A>
  A* at(int64_t offset) const {
    return static_cast<A*>(data_) + offset;
  }

 private:
  void* data_ = nullptr;
};

// Buffers of different threads are kept on different cache lines.
inline int64_t padded(int64_t elements) { return (elements + 15) / 16 * 16; }

// body(thread, i) for i in [0, count). Bodies must not depend on which thread runs them.
template <class Body>
void parallel_for(int threads, int64_t count, const Body& body) {
#if defined(_OPENMP)
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    {
      const int thread = omp_get_thread_num();
#pragma omp for schedule(static)
      for (int64_t i = 0; i < count; ++i) body(thread, i);
    }
    return;
  }
#endif
  // Not a team of one: OpenMP's runtime stays untouched, which is what makes a forked child safe.
  for (int64_t i = 0; i < count; ++i) body(0, i);
}

// The same for few, uneven bodies: threads take the next one when they are done.
template <class Body>
void parallel_tasks(int threads, int64_t count, const Body& body) {
#if defined(_OPENMP)
  if (threads > 1 && count > 1) {
#pragma omp parallel num_threads(threads)
    {
      const int thread = omp_get_thread_num();
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < count; ++i) body(thread, i);
    }
    return;
  }
#endif
  for (int64_t i = 0; i < count; ++i) body(0, i);
}

// A row in the accumulation type: the tensor's own memory when it has that type, else widened into `buffer`.
inline const float* load_row(const float* row, float*, int64_t) { return row; }
inline const double* load_row(const double* row, double*, int64_t) { return row; }
template <class T>
const float* load_row(const T* row, float* buffer, int64_t d) {
  widen_row(row, buffer, d);
  return buffer;
}

// Where to compute an output row, and how to finish it: in place, or in `buffer` and rounded afterwards.
inline float* begin_row(float* row, float*) { return row; }
inline double* begin_row(double* row, double*) { return row; }
template <class T>
float* begin_row(T*, float* buffer) {
  return buffer;
}
inline void finish_row(const float*, float*, int64_t) {}
inline void finish_row(const double*, double*, int64_t) {}
template <class T>
void finish_row(const float* computed, T* row, int64_t d) {
  narrow_row(computed, row, d);
}

template <class T>
void zero(T* row, int64_t d) {
  if (d > 0) __builtin_memset(row, 0, static_cast<size_t>(d) * sizeof(T));  // an empty row may be null
}

}  // namespace AMUSE_ISA
}  // namespace amuse
