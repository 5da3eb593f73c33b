// Adaptive fusion, forward (paper Eq. 2): every descriptor and coefficient is read once.
#include "fusion_rows.h"
#include "fusion_variants.h"

namespace amuse {

struct FusionForwardArguments {
  FusionForwardParams p;
  int shift;  // of Rows
};

namespace {

using Arguments = FusionForwardArguments;

// fused_m of one row from column k on: alpha[m, n] for all n in `alpha`.
template <class T, int V, int M>
__device__ void mix(const FusionForwardParams& p, const Rows& rows, unsigned present, const float* alpha, int k,
                    const float (&f)[M][V]) {
  const int modalities = static_cast<int>(p.m), count = __popc(present);
  const float share = 1.0f / static_cast<float>(max(count, 1));
  T* fused = static_cast<T*>(p.fused) + rows.index * p.m * p.d + k;
#pragma unroll
  for (int m = 0; m < M; ++m) {
    if (m >= modalities) break;
    float out[V] = {}, given = 0.0f;
#pragma unroll
    for (int n = 0; n < M; ++n) {
      if (n == m || !(present >> m & present >> n & 1)) continue;
      const float coefficient = alpha[m * modalities + n];
      given += coefficient;
#pragma unroll
      for (int v = 0; v < V; ++v) out[v] += coefficient * f[n][v];
    }
    const float kept = static_cast<float>(count - 1) - given;
#pragma unroll
    for (int v = 0; v < V; ++v) out[v] = count == 1 ? f[m][v] : (out[v] + kept * f[m][v]) * share;
    store(fused + m * p.d, out);
  }
}

// One coefficient for a pair: given, or the gate's.
template <class T, int V, int M, AlphaKind kind>
__device__ void forward(const Arguments& a, Alpha<kind>) {
  constexpr bool gate = kind == AlphaKind::gate;
  const FusionForwardParams& p = a.p;
  extern __shared__ unsigned shared[];
  const Rows rows(a.shift);
  const PairTable alpha(shared, p, rows, 0);  // first the logits
  const int modalities = static_cast<int>(p.m), pairs = modalities * modalities, pass = V << a.shift;
  const unsigned present = load_presence(p, rows, shared);

  float f[M][V];
  load_descriptors<T>(p, rows, present, rows.thread * V, f);
  if constexpr (gate) {
    for (int begin = 0; begin < p.d; begin += pass) {
      const int k = begin + rows.thread * V;
      if (begin > 0) load_descriptors<T>(p, rows, present, k, f);
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < M; ++n) {
          if (m == n || m >= modalities || n >= modalities) continue;
          const float logit = rows.lanes_sum(k < p.d ? partial_logit(p, m, n, k, f[m], f[n]) : 0.0f);
          float& sum = alpha.at(rows.row, rows.part(), m * modalities + n);
          if (rows.leads()) sum = begin > 0 ? sum + logit : logit;
        }
      }
    }
    __syncthreads();
  }

  for (int i = threadIdx.x; i < rows.count() * pairs; i += blockDim.x) {
    const int row = i / pairs, pair = i % pairs, m = pair / modalities, n = pair % modalities;
    const int64_t index = (rows.index - rows.row + row) * pairs + pair;
    const bool valid = m != n && (shared[row] >> m & shared[row] >> n & 1);
    float value = 0.0f;
    if (valid) value = gate ? gate_of(p, m, n, alpha.sum(row, pair)) : widen(static_cast<const T*>(p.alpha)[index]);
    alpha.at(row, 0, pair) = value;
    if (index < p.n * pairs) narrow(value, static_cast<T*>(p.alpha_out)[index]);
  }
  __syncthreads();
  if (rows.index >= p.n) return;

  for (int k = rows.thread * V; k < p.d; k += pass) {
    if (k >= pass || (gate && p.d > pass)) load_descriptors<T>(p, rows, present, k, f);
    mix<T>(p, rows, present, &alpha.at(rows.row, 0, 0), k, f);
  }
}

// A coefficient for every element of a pair.
template <class T, int V, int M>
__device__ void forward(const Arguments& a, Alpha<AlphaKind::elementwise>) {
  const FusionForwardParams& p = a.p;
  extern __shared__ unsigned shared[];
  const Rows rows(a.shift);
  const unsigned present = load_presence(p, rows, shared);
  if (rows.index >= p.n) return;
  const int modalities = static_cast<int>(p.m), count = __popc(present);
  const float share = 1.0f / static_cast<float>(max(count, 1));
  for (int k = rows.thread * V; k < p.d; k += V << a.shift) {
    float f[M][V];
    load_descriptors<T>(p, rows, present, k, f);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      if (m >= modalities) break;
      const int64_t row = rows.index * p.m + m;
      float out[V] = {};
#pragma unroll
      for (int n = 0; n < M; ++n) {
        if (n >= modalities) break;
        const int64_t offset = (row * p.m + n) * p.d + k;
        const bool valid = m != n && (present >> m & present >> n & 1);
        float alpha[V] = {};
        if (valid) load(static_cast<const T*>(p.alpha) + offset, alpha);
        store(static_cast<T*>(p.alpha_out) + offset, alpha);
        if (!valid) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) out[v] += alpha[v] * f[n][v] + (1.0f - alpha[v]) * f[m][v];
      }
#pragma unroll
      for (int v = 0; v < V; ++v) out[v] = count == 1 ? f[m][v] : out[v] * share;
      store(static_cast<T*>(p.fused) + row * p.d + k, out);
    }
  }
}

}  // namespace

#define AMUSE_KERNEL(name, T, V, M, kind)                                                                     \
  extern "C" __global__ void __launch_bounds__(rows_block_max, 1) name(const __grid_constant__ Arguments a) { \
    forward<T, V, M>(a, Alpha<AlphaKind::kind>{});                                                            \
  }
AMUSE_FUSION_KINDS(AMUSE_KERNEL, amuse_fusion_forward)
#undef AMUSE_KERNEL

CudaPlan fusion_forward_plan(const FusionForwardParams& p) {
  static const KernelEntry<Arguments> entries[] = {AMUSE_FUSION_KINDS(AMUSE_KERNEL_ENTRY, amuse_fusion_forward)};
  CudaPlan plan;
  plan.error = fusion_check(p);
  if (plan.error != cudaSuccess) return plan;
  const bool aligned = fusion_aligned(p, {p.descriptors, p.pair_weight, p.fused}) &&
                       (p.alpha_kind != AlphaKind::elementwise || fusion_aligned(p, {p.alpha, p.alpha_out}));
  const RowsShape shape = rows_shape(p.n, p.d, fusion_columns(p, aligned));
  const auto& entry = fusion_entry(entries, p, aligned);
  const int tables = p.alpha_kind == AlphaKind::elementwise ? 0 : 1;
  plan.add(entry, shape.grid, shape.block, fusion_shared_bytes(p, shape, tables), Arguments{p, shape.shift});
  return plan;
}

}  // namespace amuse

int amuse_cuda_fusion_forward(const amuse::FusionForwardParams* params, int device, void* stream) {
  return amuse::run(amuse::fusion_forward_plan(*params), device, static_cast<cudaStream_t>(stream));
}
