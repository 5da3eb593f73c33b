// Adaptive fusion, backward. With s present modalities and g_m the gradient of fused_m:
//   d alpha_mn = <g_m, f_n - f_m> / s + grad_alpha_mn
//   d f_m      = sum over n of ((1 - alpha_mn) g_m + alpha_nm g_n) / s, and with a gate, z_mn its logit,
//   d z_mn     = d alpha_mn alpha_mn (1 - alpha_mn), which adds w_mn[0] d z_mn to d f_m and w_mn[1] d z_mn to d f_n.
// Descriptors, coefficients and upstream gradients are read once. The gate's parameters get their gradients from the d
// z, in fusion_weight.cu.
#include "fusion_rows.h"
#include "fusion_variants.h"
#include "fusion_weight.h"

namespace amuse {

struct FusionBackwardArguments {
  FusionBackwardParams p;
  float* grad_logits;  // (n, m, m), with a gate
  int shift;           // of Rows
};

namespace {

using Arguments = FusionBackwardArguments;

// The gradients of the fused rows.
template <class T, int V, int M>
__device__ void load_gradients(const FusionBackwardParams& p, const Rows& rows, unsigned present, int k,
                               float (&g)[M][V]) {
  load_modalities(static_cast<const T*>(p.grad_fused) + rows.index * p.m * p.d + k, p.d, present, k < p.d, g);
}

// x += scale * y
template <int V>
__device__ void add(float (&x)[V], float scale, const float (&y)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) x[v] += scale * y[v];
}

// d f_m of one row from column k on; alpha and grad_logit of all its pairs.
template <class T, int V, int M, bool gate>
__device__ void store_descriptor_gradients(const FusionBackwardParams& p, const Rows& rows, unsigned present,
                                           const float* alpha, const float* grad_logit, int k, const float (&g)[M][V]) {
  const int modalities = static_cast<int>(p.m), count = __popc(present);
  const float share = 1.0f / static_cast<float>(max(count, 1));
  const float* weight = static_cast<const float*>(p.pair_weight) + k;
  T* out = static_cast<T*>(p.grad_descriptors) + rows.index * p.m * p.d + k;
#pragma unroll
  for (int m = 0; m < M; ++m) {
    if (m >= modalities) break;
    float df[V] = {}, through_gate[V] = {}, given = 0.0f;
#pragma unroll
    for (int n = 0; n < M; ++n) {
      if (n == m || !(present >> m & present >> n & 1)) continue;
      const int out_pair = m * modalities + n, in_pair = n * modalities + m;
      given += alpha[out_pair];
      add(df, alpha[in_pair], g[n]);
      if constexpr (gate) {
        float w[V];
        load(weight + pair_index(p.m, m, n) * 2 * p.d, w);
        add(through_gate, grad_logit[out_pair], w);
        load(weight + (pair_index(p.m, n, m) * 2 + 1) * p.d, w);
        add(through_gate, grad_logit[in_pair], w);
      }
    }
    add(df, static_cast<float>(count - 1) - given, g[m]);
#pragma unroll
    for (int v = 0; v < V; ++v) df[v] = count == 1 ? g[m][v] : df[v] * share + through_gate[v];
    store(out + m * p.d, df);
  }
}

// One coefficient for a pair: given, or the gate's.
template <class T, int V, int M, AlphaKind kind>
__device__ void backward(const Arguments& a, Alpha<kind>) {
  constexpr bool gate = kind == AlphaKind::gate;
  const FusionBackwardParams& p = a.p;
  extern __shared__ unsigned shared[];
  const Rows rows(a.shift);
  // Shares of <g_m, f_n - f_m> become the gradient of the logit, shares of the logit become alpha.
  const PairTable product(shared, p, rows, 0), alpha(shared, p, rows, 1);
  const int modalities = static_cast<int>(p.m), pairs = modalities * modalities, pass = V << a.shift;
  const unsigned present = load_presence(p, rows, shared);

  float f[M][V], g[M][V];
  for (int begin = 0; begin < p.d; begin += pass) {
    const int k = begin + rows.thread * V;
    load_descriptors<T>(p, rows, present, k, f);
    load_gradients<T>(p, rows, present, k, g);
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int n = 0; n < M; ++n) {
        if (m == n || m >= modalities || n >= modalities) continue;
        float change = 0.0f, logit = 0.0f;
#pragma unroll
        for (int v = 0; v < V; ++v) change += g[m][v] * (f[n][v] - f[m][v]);
        change = rows.lanes_sum(change);
        if (gate) logit = rows.lanes_sum(k < p.d ? partial_logit(p, m, n, k, f[m], f[n]) : 0.0f);
        if (!rows.leads()) continue;
        const int pair = m * modalities + n;
        float &changes = product.at(rows.row, rows.part(), pair), &logits = alpha.at(rows.row, rows.part(), pair);
        changes = begin > 0 ? changes + change : change;
        if (gate) logits = begin > 0 ? logits + logit : logit;
      }
    }
  }
  __syncthreads();

  for (int i = threadIdx.x; i < rows.count() * pairs; i += blockDim.x) {
    const int row = i / pairs, pair = i % pairs, m = pair / modalities, n = pair % modalities;
    const int64_t index = (rows.index - rows.row + row) * pairs + pair;
    float value = 0.0f, gradient = 0.0f;
    if (m != n && (shared[row] >> m & shared[row] >> n & 1)) {
      value = gate ? gate_of(p, m, n, alpha.sum(row, pair)) : widen(static_cast<const T*>(p.alpha)[index]);
      gradient = product.sum(row, pair) / static_cast<float>(__popc(shared[row]));
      if (p.grad_alpha != nullptr) gradient += widen(static_cast<const T*>(p.grad_alpha)[index]);
      if (gate) gradient *= value * (1.0f - value);
    }
    alpha.at(row, 0, pair) = value;
    if (gate) product.at(row, 0, pair) = gradient;
    if (index >= p.n * pairs) break;
    if (gate) {
      a.grad_logits[index] = gradient;
    } else {
      narrow(gradient, static_cast<T*>(p.grad_alpha_in)[index]);
    }
  }
  __syncthreads();
  if (rows.index >= p.n) return;

  for (int k = rows.thread * V; k < p.d; k += pass) {
    if (p.d > pass) load_gradients<T>(p, rows, present, k, g);
    store_descriptor_gradients<T, V, M, gate>(
        p, rows, present, &alpha.at(rows.row, 0, 0), &product.at(rows.row, 0, 0), k, g);
  }
}

// A coefficient for every element of a pair.
template <class T, int V, int M>
__device__ void backward(const Arguments& a, Alpha<AlphaKind::elementwise>) {
  const FusionBackwardParams& p = a.p;
  extern __shared__ unsigned shared[];
  const Rows rows(a.shift);
  const unsigned present = load_presence(p, rows, shared);
  if (rows.index >= p.n) return;
  const int modalities = static_cast<int>(p.m), count = __popc(present);
  const float share = 1.0f / static_cast<float>(max(count, 1));
  for (int k = rows.thread * V; k < p.d; k += V << a.shift) {
    float f[M][V], g[M][V], df[M][V] = {};
    load_descriptors<T>(p, rows, present, k, f);
    load_gradients<T>(p, rows, present, k, g);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      if (m >= modalities) break;
#pragma unroll
      for (int n = 0; n < M; ++n) {
        if (n >= modalities) break;
        const int64_t offset = ((rows.index * p.m + m) * p.m + n) * p.d + k;
        float gradient[V] = {};
        if (m != n && (present >> m & present >> n & 1)) {
          float alpha[V];
          load(static_cast<const T*>(p.alpha) + offset, alpha);
          if (p.grad_alpha != nullptr) load(static_cast<const T*>(p.grad_alpha) + offset, gradient);
#pragma unroll
          for (int v = 0; v < V; ++v) {
            const float scaled = g[m][v] * share;
            gradient[v] += scaled * (f[n][v] - f[m][v]);
            df[m][v] += (1.0f - alpha[v]) * scaled;
            df[n][v] += alpha[v] * scaled;
          }
        }
        store(static_cast<T*>(p.grad_alpha_in) + offset, gradient);
      }
    }
    T* out = static_cast<T*>(p.grad_descriptors) + rows.index * p.m * p.d + k;
#pragma unroll
    for (int m = 0; m < M; ++m) {
      if (m >= modalities) break;
#pragma unroll
      for (int v = 0; v < V; ++v) df[m][v] = count == 1 ? g[m][v] : df[m][v];
      store(out + m * p.d, df[m]);
    }
  }
}

}  // namespace

#define AMUSE_KERNEL(name, T, V, M, kind)                                                                     \
  extern "C" __global__ void __launch_bounds__(rows_block_max, 1) name(const __grid_constant__ Arguments a) { \
    backward<T, V, M>(a, Alpha<AlphaKind::kind>{});                                                           \
  }
AMUSE_FUSION_KINDS(AMUSE_KERNEL, amuse_fusion_backward)
#undef AMUSE_KERNEL

CudaPlan fusion_backward_plan(const FusionBackwardParams& p, void* workspace) {
  static const KernelEntry<Arguments> entries[] = {AMUSE_FUSION_KINDS(AMUSE_KERNEL_ENTRY, amuse_fusion_backward)};
  CudaPlan plan;
  plan.error = fusion_check(p);
  if (plan.error != cudaSuccess) return plan;
  const bool gate = p.alpha_kind == AlphaKind::gate, elementwise = p.alpha_kind == AlphaKind::elementwise;
  const bool aligned = fusion_aligned(p, {p.descriptors, p.pair_weight, p.grad_fused, p.grad_descriptors}) &&
                       (!elementwise || fusion_aligned(p, {p.alpha, p.grad_alpha, p.grad_alpha_in}));
  const RowsShape shape = rows_shape(p.n, p.d, fusion_columns(p, aligned));
  const auto& entry = fusion_entry(entries, p, aligned);
  float* const grad_logits = gate ? static_cast<float*>(workspace) : nullptr;
  plan.add(entry, shape.grid, shape.block, fusion_shared_bytes(p, shape, elementwise ? 0 : 2),
           Arguments{p, grad_logits, shape.shift});
  if (gate) fusion_weight_plan(p, grad_logits, grad_logits + fusion_logits(p), plan);
  return plan;
}

}  // namespace amuse

int64_t amuse_cuda_fusion_backward_workspace(const amuse::FusionBackwardParams* params) {
  using namespace amuse;
  if (fusion_check(*params) != cudaSuccess || params->alpha_kind != AlphaKind::gate) return 0;
  return static_cast<int64_t>(sizeof(float)) * (fusion_logits(*params) + fusion_weight_partials(*params));
}

int amuse_cuda_fusion_backward(const amuse::FusionBackwardParams* params, void* workspace, int device, void* stream) {
  return amuse::run(amuse::fusion_backward_plan(*params, workspace), device, static_cast<cudaStream_t>(stream));
}
