// Adaptive fusion, backward. With s present modalities and g_m the gradient of fused_m:
//   d alpha_mn = <g_m, f_n - f_m> / s + grad_alpha_mn
//   d f_n      = sum over m of coefficient[m][n] g_m, and with a gate, z_mn its logit,
//   d z_mn     = d alpha_mn alpha_mn (1 - alpha_mn), which adds w_mn[0] d z_mn to d f_m and w_mn[1] d z_mn to d f_n.
// Compiled once per instruction set.
#include "fusion_sample.h"

namespace amuse {
namespace AMUSE_ISA {
namespace {

// The gradient of the pair weights sums over all samples: fixed chunks of samples get a partial sum each, and a second
// stage adds the partial sums in order. Chunks depend on n only, so the number of threads cannot show in the result.
constexpr int64_t max_chunks = 64;
constexpr int64_t min_chunk_samples = 32;
// Samples whose logit gradients are kept before a pass over the partial sums.
constexpr int64_t block_samples = 8;

template <class A>
struct GateBlock {
  Sample<A> samples[block_samples];
  A grad_logit[block_samples][max_modalities][max_modalities];
};

template <class T, class A>
void load_gradients(const FusionBackwardParams& p, int64_t i, const Sample<A>& sample, A* buffer,
                    const A* (&gradients)[max_modalities]) {
  const T* grad_fused = static_cast<const T*>(p.grad_fused) + i * p.m * p.d;
  for (int64_t a = 0; a < sample.count; ++a) {
    const int64_t m = sample.index[a];
    gradients[m] = load_row(grad_fused + m * p.d, buffer + m * p.d, p.d);
  }
}

template <class T, class A>
void zero_absent(const FusionBackwardParams& p, int64_t i, const Sample<A>& sample) {
  for (int64_t m = 0; m < p.m; ++m) {
    if (sample.rows[m] == nullptr) zero(static_cast<T*>(p.grad_descriptors) + (i * p.m + m) * p.d, p.d);
  }
}

// d alpha of every valid pair.
template <class T, class A>
void alpha_gradient(const FusionBackwardParams& p, int64_t i, const Sample<A>& sample,
                    const A* const (&gradients)[max_modalities], A (&grad_alpha)[max_modalities][max_modalities]) {
  const T* upstream = static_cast<const T*>(p.grad_alpha);
  for (int64_t a = 0; a < sample.count; ++a) {
    for (int64_t b = 0; b < sample.count; ++b) {
      if (a == b) continue;
      const int64_t m = sample.index[a], n = sample.index[b];
      A gradient = dot_difference(gradients[m], sample.rows[n], sample.rows[m], p.d) / static_cast<A>(sample.count);
      if (upstream != nullptr) gradient += widen(upstream[(i * p.m + m) * p.m + n]);
      grad_alpha[m][n] = gradient;
    }
  }
}

// d f_m as one linear combination: gradients of the fused rows, and with a gate the weight rows that meet f_m.
template <class T, class A>
void descriptor_gradient(const FusionBackwardParams& p, int64_t i, const Sample<A>& sample,
                         const A* const (&gradients)[max_modalities],
                         const A (&coefficient)[max_modalities][max_modalities], const A (*grad_logit)[max_modalities],
                         A* out_buffer) {
  const A* weight = static_cast<const A*>(p.pair_weight);
  for (int64_t a = 0; a < sample.count; ++a) {
    const int64_t m = sample.index[a];
    const A* rows[3 * max_modalities];
    A coefficients[3 * max_modalities];
    int64_t count = 0;
    for (int64_t b = 0; b < sample.count; ++b) {
      const int64_t n = sample.index[b];
      rows[count] = gradients[n];
      coefficients[count++] = coefficient[n][m];
      if (a == b || grad_logit == nullptr) continue;
      rows[count] = pair_row(weight, p, m, n, 0);
      coefficients[count++] = grad_logit[m][n];
      rows[count] = pair_row(weight, p, n, m, 1);
      coefficients[count++] = grad_logit[n][m];
    }
    T* target = static_cast<T*>(p.grad_descriptors) + (i * p.m + m) * p.d;
    A* out = begin_row(target, out_buffer);
    combine<false>(out, rows, coefficients, count, p.d);
    finish_row(out, target, p.d);
  }
}

template <class T, class A>
void sample_scalar(const FusionBackwardParams& p, int64_t i, A* buffer) {
  Sample<A> sample;
  load_sample<T>(p, i, buffer, sample);
  const A* gradients[max_modalities];
  load_gradients<T>(p, i, sample, buffer + p.m * p.d, gradients);
  zero_absent<T>(p, i, sample);

  A alpha[max_modalities][max_modalities];
  A coefficient[max_modalities][max_modalities];
  A grad_alpha[max_modalities][max_modalities];
  sample_alpha<T>(p, i, sample, alpha);
  fusion_coefficients(sample, alpha, coefficient);
  alpha_gradient<T>(p, i, sample, gradients, grad_alpha);
  descriptor_gradient<T, A>(p, i, sample, gradients, coefficient, nullptr, buffer + 2 * p.m * p.d);

  T* out = static_cast<T*>(p.grad_alpha_in) + i * p.m * p.m;
  zero(out, p.m * p.m);
  for (int64_t a = 0; a < sample.count; ++a) {
    for (int64_t b = 0; b < sample.count; ++b) {
      const int64_t m = sample.index[a], n = sample.index[b];
      if (a != b) narrow(grad_alpha[m][n], out[m * p.m + n]);
    }
  }
}

template <class T, class A>
void sample_elementwise(const FusionBackwardParams& p, int64_t i, A* buffer) {
  const int64_t d = p.d;
  Sample<A> sample;
  load_sample<T>(p, i, buffer, sample);
  const A* gradients[max_modalities];
  load_gradients<T>(p, i, sample, buffer + p.m * d, gradients);
  zero_absent<T>(p, i, sample);
  A* sums = buffer + 2 * p.m * d;
  A* alpha_buffer = sums + p.m * d;
  A* upstream_buffer = alpha_buffer + d;
  A* out_buffer = upstream_buffer + d;

  T* grad_alpha_in = static_cast<T*>(p.grad_alpha_in) + i * p.m * p.m * d;
  zero(grad_alpha_in, p.m * p.m * d);
  zero(sums, p.m * d);
  const A size = static_cast<A>(sample.count);
  for (int64_t a = 0; a < sample.count; ++a) {
    const int64_t m = sample.index[a];
    const A *f_m = sample.rows[m], *g = gradients[m];
    A* sum_m = sums + m * d;
    if (sample.count == 1) __builtin_memcpy(sum_m, g, static_cast<size_t>(d) * sizeof(A));
    for (int64_t b = 0; b < sample.count; ++b) {
      if (a == b) continue;
      const int64_t n = sample.index[b], pair = m * p.m + n, offset = (i * p.m * p.m + pair) * d;
      const A* f_n = sample.rows[n];
      const A* alpha = load_row(static_cast<const T*>(p.alpha) + offset, alpha_buffer, d);
      A* sum_n = sums + n * d;
      A* out = begin_row(grad_alpha_in + pair * d, out_buffer);
#pragma omp simd
      for (int64_t k = 0; k < d; ++k) {
        const A scaled = g[k] / size;
        sum_n[k] += alpha[k] * scaled;
        sum_m[k] += (A(1) - alpha[k]) * scaled;
        out[k] = scaled * (f_n[k] - f_m[k]);
      }
      if (p.grad_alpha != nullptr) {
        const A* upstream = load_row(static_cast<const T*>(p.grad_alpha) + offset, upstream_buffer, d);
#pragma omp simd
        for (int64_t k = 0; k < d; ++k) out[k] += upstream[k];
      }
      finish_row(out, grad_alpha_in + pair * d, d);
    }
  }
  for (int64_t a = 0; a < sample.count; ++a) {
    const int64_t m = sample.index[a];
    T* target = static_cast<T*>(p.grad_descriptors) + (i * p.m + m) * d;
    A* out = begin_row(target, out_buffer);
    __builtin_memcpy(out, sums + m * d, static_cast<size_t>(d) * sizeof(A));
    finish_row(out, target, d);
  }
}

template <class T>
void backward_given_alpha(const FusionBackwardParams& p, int threads) {
  using A = typename Accumulator<T>::type;
  const int64_t per_thread = padded((3 * p.m + 3) * p.d);
  const Scratch scratch(threads * per_thread * static_cast<int64_t>(sizeof(A)));
  parallel_for(threads, p.n, [&](int thread, int64_t i) {
    A* buffer = scratch.at<A>(thread * per_thread);
    if (p.alpha_kind == AlphaKind::elementwise) {
      sample_elementwise<T>(p, i, buffer);
    } else {
      sample_scalar<T>(p, i, buffer);
    }
  });
}

// Adds a block's share to the partial sums of its chunk: weights (m * (m - 1), 2, d), then biases.
template <class A>
void accumulate_block(const FusionParams& p, const GateBlock<A>& block, int64_t count, A* partial) {
  A* bias = partial + p.m * (p.m - 1) * 2 * p.d;
  for (int64_t m = 0; m < p.m; ++m) {
    for (int64_t n = 0; n < p.m; ++n) {
      if (m == n) continue;
      const A *left[block_samples], *right[block_samples];
      A gradients[block_samples];
      int64_t used = 0;
      for (int64_t s = 0; s < count; ++s) {
        const Sample<A>& sample = block.samples[s];
        if (sample.rows[m] == nullptr || sample.rows[n] == nullptr) continue;
        left[used] = sample.rows[m];
        right[used] = sample.rows[n];
        gradients[used] = block.grad_logit[s][m][n];
        bias[pair_index(p.m, m, n)] += gradients[used++];
      }
      combine<true>(pair_row(partial, p, m, n, 0), left, gradients, used, p.d);
      combine<true>(pair_row(partial, p, m, n, 1), right, gradients, used, p.d);
    }
  }
}

template <class T, class A>
void backward_gate_chunk(const FusionBackwardParams& p, int64_t begin, int64_t end, A* buffer, A* partial) {
  GateBlock<A> block;
  A* gradient_buffer = buffer + block_samples * p.m * p.d;
  A* out_buffer = gradient_buffer + p.m * p.d;
  for (int64_t first = begin; first < end; first += block_samples) {
    const int64_t count = end - first < block_samples ? end - first : block_samples;
    for (int64_t s = 0; s < count; ++s) {
      const int64_t i = first + s;
      Sample<A>& sample = block.samples[s];
      load_sample<T>(p, i, buffer + s * p.m * p.d, sample);
      const A* gradients[max_modalities];
      load_gradients<T>(p, i, sample, gradient_buffer, gradients);
      zero_absent<T>(p, i, sample);

      A alpha[max_modalities][max_modalities];
      A coefficient[max_modalities][max_modalities];
      auto& grad_logit = block.grad_logit[s];
      gate_alpha(p, sample, alpha);
      fusion_coefficients(sample, alpha, coefficient);
      alpha_gradient<T>(p, i, sample, gradients, grad_logit);
      for (int64_t a = 0; a < sample.count; ++a) {
        for (int64_t b = 0; b < sample.count; ++b) {
          const int64_t m = sample.index[a], n = sample.index[b];
          if (a != b) grad_logit[m][n] *= alpha[m][n] * (A(1) - alpha[m][n]);
        }
      }
      descriptor_gradient<T, A>(p, i, sample, gradients, coefficient, grad_logit, out_buffer);
    }
    accumulate_block(p, block, count, partial);
  }
}

template <class T>
void backward_gate(const FusionBackwardParams& p, int threads) {
  using A = typename Accumulator<T>::type;
  const int64_t pairs = p.m * (p.m - 1);
  const int64_t weights = pairs * 2 * p.d;
  const int64_t even_chunk = (p.n + max_chunks - 1) / max_chunks;
  const int64_t chunk = even_chunk > min_chunk_samples ? even_chunk : min_chunk_samples;
  const int64_t chunks = (p.n + chunk - 1) / chunk;
  const int64_t per_thread = padded((block_samples * p.m + p.m + 1) * p.d);
  const int64_t per_chunk = padded(weights + pairs);
  const Scratch scratch(threads * per_thread * static_cast<int64_t>(sizeof(A)));
  const Scratch partials(chunks * per_chunk * static_cast<int64_t>(sizeof(A)));

  parallel_for(threads, chunks, [&](int thread, int64_t c) {
    A* partial = partials.at<A>(c * per_chunk);
    zero(partial, per_chunk);
    const int64_t end = (c + 1) * chunk < p.n ? (c + 1) * chunk : p.n;
    backward_gate_chunk<T>(p, c * chunk, end, scratch.at<A>(thread * per_thread), partial);
  });

  constexpr int64_t stripe = 256;  // elements that one task of the second stage sums over all chunks
  A* grad_weight = static_cast<A*>(p.grad_pair_weight);
  A* grad_bias = static_cast<A*>(p.grad_pair_bias);
  parallel_for(threads, (weights + pairs + stripe - 1) / stripe, [&](int, int64_t task) {
    A sum[stripe] = {};
    const int64_t begin = task * stripe;
    const int64_t size = weights + pairs - begin < stripe ? weights + pairs - begin : stripe;
    for (int64_t c = 0; c < chunks; ++c) {
      const A* partial = partials.at<A>(c * per_chunk + begin);
#pragma omp simd
      for (int64_t k = 0; k < size; ++k) sum[k] += partial[k];
    }
    for (int64_t k = 0; k < size; ++k) {
      const int64_t element = begin + k;
      (element < weights ? grad_weight[element] : grad_bias[element - weights]) = sum[k];
    }
  });
}

template <class T>
void backward(const FusionBackwardParams& p, int threads) {
  if (p.alpha_kind == AlphaKind::gate) {
    backward_gate<T>(p, threads);
  } else {
    backward_given_alpha<T>(p, threads);
  }
}

}  // namespace

void fusion_backward(const FusionBackwardParams& params, int threads) {
  switch (params.dtype) {
    case Dtype::float32: return backward<float>(params, threads);
    case Dtype::float64: return backward<double>(params, threads);
    case Dtype::float16: return backward<Half>(params, threads);
    case Dtype::bfloat16: return backward<BFloat16>(params, threads);
  }
}

}  // namespace AMUSE_ISA
}  // namespace amuse
