// Closed-form interpolation coefficients (paper Eq. 6) and their exact derivative. Per row, with D = a - b:
//   x = epsilon ||D|| / ||g|| * g / D,  c = clip(x, 0, 1), 0 where D = 0 or ||g|| = 0.
// With h the upstream gradient where 0 <= x <= 1, else 0, and t = <h, x>:
//   d g = epsilon ||D|| / ||g|| * h / D - g t / ||g||^2,   d a = -h x / D + D t / ||D||^2,   d b = -d a.
// Compiled once per instruction set.
#include <cmath>

#include "kernels.h"
#include "parallel.h"
#include "rows.h"

namespace amuse {
namespace AMUSE_ISA {
namespace {

inline float square_root(float x) { return ::sqrtf(x); }
inline double square_root(double x) { return ::sqrt(x); }

template <class A>
inline A norm(const A* x, int64_t d) {
  A square;
  dot_rows<1>(x, &x, d, &square);
  return square_root(square);
}

template <class T>
void forward(const InterpolationForwardParams& p, int threads) {
  using A = typename Accumulator<T>::type;
  const A epsilon = static_cast<A>(p.epsilon);
  const int64_t d = p.d, per_thread = padded(5 * d);
  const Scratch scratch(threads * per_thread * static_cast<int64_t>(sizeof(A)));
  parallel_for(threads, p.n, [&](int thread, int64_t i) {
    A* buffer = scratch.at<A>(thread * per_thread);
    const A* a = load_row(static_cast<const T*>(p.a) + i * d, buffer, d);
    const A* b = load_row(static_cast<const T*>(p.b) + i * d, buffer + d, d);
    const A* g = load_row(static_cast<const T*>(p.grad) + i * d, buffer + 2 * d, d);
    A* difference = buffer + 3 * d;
    T* target = static_cast<T*>(p.out) + i * d;
    A* out = begin_row(target, buffer + 4 * d);
#pragma omp simd
    for (int64_t k = 0; k < d; ++k) difference[k] = a[k] - b[k];
    const A length = norm(g, d);
    if (length == A(0)) {
      zero(target, d);
      return;
    }
    const A scale = epsilon * norm(difference, d) / length;
#pragma omp simd
    for (int64_t k = 0; k < d; ++k) {
      A x = scale * g[k] / difference[k];
      // Comparisons with NaN are false, so NaN stays as it does in torch.clamp.
      x = x < A(0) ? A(0) : x;
      x = x > A(1) ? A(1) : x;
      out[k] = difference[k] == A(0) ? A(0) : x;
    }
    finish_row(out, target, d);
  });
}

template <class T>
void backward(const InterpolationBackwardParams& p, int threads) {
  using A = typename Accumulator<T>::type;
  const A epsilon = static_cast<A>(p.epsilon);
  const int64_t d = p.d, per_thread = padded(10 * d);
  const Scratch scratch(threads * per_thread * static_cast<int64_t>(sizeof(A)));
  parallel_for(threads, p.n, [&](int thread, int64_t i) {
    A* buffer = scratch.at<A>(thread * per_thread);
    const A* a = load_row(static_cast<const T*>(p.a) + i * d, buffer, d);
    const A* b = load_row(static_cast<const T*>(p.b) + i * d, buffer + d, d);
    const A* g = load_row(static_cast<const T*>(p.grad) + i * d, buffer + 2 * d, d);
    const A* upstream = load_row(static_cast<const T*>(p.grad_out) + i * d, buffer + 3 * d, d);
    A *difference = buffer + 4 * d, *x = buffer + 5 * d, *quotient = buffer + 6 * d;
    T* target_a = static_cast<T*>(p.grad_a) + i * d;
    T* target_b = static_cast<T*>(p.grad_b) + i * d;
    T* target_g = static_cast<T*>(p.grad_grad) + i * d;
    A* out_a = begin_row(target_a, buffer + 7 * d);
    A* out_b = begin_row(target_b, buffer + 8 * d);
    A* out_g = begin_row(target_g, buffer + 9 * d);
#pragma omp simd
    for (int64_t k = 0; k < d; ++k) difference[k] = a[k] - b[k];
    const A length = norm(g, d), distance = norm(difference, d);
    if (length == A(0) || distance == A(0)) {  // undefined in every element
      zero(target_a, d);
      zero(target_b, d);
      zero(target_g, d);
      return;
    }
    const A scale = epsilon * distance / length;
    // quotient = h / D and x are 0 wherever no gradient flows, which keeps 0 / 0 out of the sums below.
#pragma omp simd
    for (int64_t k = 0; k < d; ++k) {
      const A value = scale * g[k] / difference[k];
      const bool flows = (value >= A(0)) & (value <= A(1)) & (difference[k] != A(0));
      x[k] = flows ? value : A(0);
      quotient[k] = flows ? upstream[k] / difference[k] : A(0);
      out_g[k] = flows ? upstream[k] : A(0);
    }
    const A* rows[1] = {x};
    A total;
    dot_rows<1>(static_cast<const A*>(out_g), rows, d, &total);
    const A per_length = total / length / length, per_distance = total / distance / distance;
#pragma omp simd
    for (int64_t k = 0; k < d; ++k) {
      const A gradient = per_distance * difference[k] - quotient[k] * x[k];
      out_a[k] = gradient;
      out_b[k] = -gradient;
      out_g[k] = scale * quotient[k] - per_length * g[k];
    }
    finish_row(out_a, target_a, d);
    finish_row(out_b, target_b, d);
    finish_row(out_g, target_g, d);
  });
}

}  // namespace

void interpolation_forward(const InterpolationForwardParams& params, int threads) {
  switch (params.dtype) {
    case Dtype::float32: return forward<float>(params, threads);
    case Dtype::float64: return forward<double>(params, threads);
    case Dtype::float16: return forward<Half>(params, threads);
    case Dtype::bfloat16: return forward<BFloat16>(params, threads);
  }
}

void interpolation_backward(const InterpolationBackwardParams& params, int threads) {
  switch (params.dtype) {
    case Dtype::float32: return backward<float>(params, threads);
    case Dtype::float64: return backward<double>(params, threads);
    case Dtype::float16: return backward<Half>(params, threads);
    case Dtype::bfloat16: return backward<BFloat16>(params, threads);
  }
}

}  // namespace AMUSE_ISA
}  // namespace amuse
