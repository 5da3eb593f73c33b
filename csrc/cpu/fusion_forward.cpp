// Adaptive fusion, forward (paper Eq. 2). Compiled once per instruction set.
#include "fusion_sample.h"

namespace amuse {
namespace AMUSE_ISA {
namespace {

template <class T, class A>
void fuse_scalar(const FusionForwardParams& p, int64_t i, const Sample<A>& sample, A* out_buffer) {
  A alpha[max_modalities][max_modalities];
  A coefficient[max_modalities][max_modalities];
  sample_alpha<T>(p, i, sample, alpha);
  fusion_coefficients(sample, alpha, coefficient);

  T* alpha_out = static_cast<T*>(p.alpha_out) + i * p.m * p.m;
  zero(alpha_out, p.m * p.m);
  for (int64_t a = 0; a < sample.count; ++a) {
    const int64_t m = sample.index[a];
    const A* rows[max_modalities];
    A row_coefficients[max_modalities];
    for (int64_t b = 0; b < sample.count; ++b) {
      const int64_t n = sample.index[b];
      rows[b] = sample.rows[n];
      row_coefficients[b] = coefficient[m][n];
      if (a != b) narrow(alpha[m][n], alpha_out[m * p.m + n]);
    }
    T* fused = static_cast<T*>(p.fused) + (i * p.m + m) * p.d;
    A* out = begin_row(fused, out_buffer);
    if (sample.count == 1) {
      __builtin_memcpy(out, rows[0], static_cast<size_t>(p.d) * sizeof(A));
    } else {
      combine<false>(out, rows, row_coefficients, sample.count, p.d);
    }
    finish_row(out, fused, p.d);
  }
}

template <class T, class A>
void fuse_elementwise(const FusionForwardParams& p, int64_t i, const Sample<A>& sample, A* out_buffer,
                      A* alpha_buffer) {
  const int64_t base = i * p.m * p.m;
  const T* alpha = static_cast<const T*>(p.alpha);
  T* alpha_out = static_cast<T*>(p.alpha_out);
  zero(alpha_out + base * p.d, p.m * p.m * p.d);
  const A size = static_cast<A>(sample.count);
  for (int64_t a = 0; a < sample.count; ++a) {
    const int64_t m = sample.index[a];
    const A* f_m = sample.rows[m];
    T* fused = static_cast<T*>(p.fused) + (i * p.m + m) * p.d;
    A* out = begin_row(fused, out_buffer);
    if (sample.count == 1) {
      __builtin_memcpy(out, f_m, static_cast<size_t>(p.d) * sizeof(A));
      finish_row(out, fused, p.d);
      continue;
    }
    zero(out, p.d);
    for (int64_t b = 0; b < sample.count; ++b) {
      if (a == b) continue;
      const int64_t n = sample.index[b];
      const A* f_n = sample.rows[n];
      const int64_t offset = (base + m * p.m + n) * p.d;
      __builtin_memcpy(alpha_out + offset, alpha + offset, static_cast<size_t>(p.d) * sizeof(T));
      const A* weight = load_row(alpha + offset, alpha_buffer, p.d);
#pragma omp simd
      for (int64_t k = 0; k < p.d; ++k) out[k] += weight[k] * f_n[k] + (A(1) - weight[k]) * f_m[k];
    }
#pragma omp simd
    for (int64_t k = 0; k < p.d; ++k) out[k] /= size;
    finish_row(out, fused, p.d);
  }
}

template <class T>
void forward(const FusionForwardParams& p, int threads) {
  using A = typename Accumulator<T>::type;
  const int64_t per_thread = padded((p.m + 2) * p.d);  // widened descriptors, one output row, one alpha row
  const Scratch scratch(threads * per_thread * static_cast<int64_t>(sizeof(A)));
  parallel_for(threads, p.n, [&](int thread, int64_t i) {
    A* descriptors = scratch.at<A>(thread * per_thread);
    A* out_buffer = descriptors + p.m * p.d;
    Sample<A> sample;
    load_sample<T>(p, i, descriptors, sample);
    for (int64_t m = 0; m < p.m; ++m) {
      if (sample.rows[m] == nullptr) zero(static_cast<T*>(p.fused) + (i * p.m + m) * p.d, p.d);
    }
    if (p.alpha_kind == AlphaKind::elementwise) {
      fuse_elementwise<T>(p, i, sample, out_buffer, out_buffer + p.d);
    } else {
      fuse_scalar<T>(p, i, sample, out_buffer);
    }
  });
}

}  // namespace

void fusion_forward(const FusionForwardParams& params, int threads) {
  switch (params.dtype) {
    case Dtype::float32: return forward<float>(params, threads);
    case Dtype::float64: return forward<double>(params, threads);
    case Dtype::float16: return forward<Half>(params, threads);
    case Dtype::bfloat16: return forward<BFloat16>(params, threads);
  }
}

}  // namespace AMUSE_ISA
}  // namespace amuse
