// Gradients of the gate's parameters: w_mn[0] gets the sum over rows of d z_mn f_m, w_mn[1] that of d z_mn f_n, and the
// bias that of d z_mn. The descriptors are read once more, each by one warp.
#include "fusion_weight.h"

#include "fusion_rows.h"
#include "fusion_variants.h"

namespace amuse {

struct FusionWeightArguments {
  FusionParams p;
  const float* grad_logits;  // (n, m, m)
  float* partials;           // (blocks, size): weights (m * (m - 1), 2, d), then biases
  int64_t blocks, block_rows, size;
};

struct FusionWeightSumArguments {
  const float* partials;
  float *grad_weight, *grad_bias;
  int64_t blocks, pitch, size, weights;  // pitch: floats of a block's sums
};

namespace {

constexpr int warps = 4;  // warps of a block; each works alone
constexpr int64_t blocks_most = 128;
constexpr int64_t block_rows_least = 16;

struct Blocks {
  int64_t rows, count, size;
  explicit Blocks(const FusionParams& p) {
    rows = (p.n + blocks_most - 1) / blocks_most;
    if (rows < block_rows_least) rows = block_rows_least;
    count = (p.n + rows - 1) / rows;
    // a multiple of 16 bytes, as every row of weights is where d is
    size = (p.m * (p.m - 1) * (2 * p.d + 1) + 3) / 4 * 4;
  }
};

// A warp sums one modality's rows, 32 V columns of them.
template <class T, int V, int M>
__device__ void partial_sums(const FusionWeightArguments& a) {
  const FusionParams& p = a.p;
  const int modalities = static_cast<int>(p.m), lane = threadIdx.x % 32;
  const int64_t tiles = (p.d + 32 * V - 1) / (32 * V);
  const int64_t item = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32;
  const int64_t block = item / (tiles * p.m);
  if (block >= a.blocks) return;
  const int m = static_cast<int>(item / tiles % p.m);
  const int64_t k = (item % tiles * 32 + lane) * V;
  const bool in = k < p.d;

  float as_first[M][V] = {}, as_second[M][V] = {}, bias[M] = {};
  const int64_t begin = block * a.block_rows, end = min(begin + a.block_rows, p.n);
#pragma unroll 2
  for (int64_t row = begin; row < end; ++row) {
    if (p.present != nullptr && p.present[row * p.m + m] == 0) continue;
    float f[V] = {};
    if (in) load(static_cast<const T*>(p.descriptors) + row * p.stride_n + m * p.stride_m + k, f);
    const float* gradient = a.grad_logits + row * p.m * p.m;
#pragma unroll
    for (int n = 0; n < M; ++n) {
      if (n == m || n >= modalities) continue;
      const float first = gradient[m * modalities + n], second = gradient[n * modalities + m];
      bias[n] += first;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        as_first[n][v] += first * f[v];
        as_second[n][v] += second * f[v];
      }
    }
  }

  float* const partial = a.partials + block * a.size;
#pragma unroll
  for (int n = 0; n < M; ++n) {
    if (n == m || n >= modalities) continue;
    if (in) {
      store(partial + pair_index(p.m, m, n) * 2 * p.d + k, as_first[n]);
      store(partial + (pair_index(p.m, n, m) * 2 + 1) * p.d + k, as_second[n]);
    }
    if (k == 0) partial[p.m * (p.m - 1) * 2 * p.d + pair_index(p.m, m, n)] = bias[n];
  }
}

}  // namespace

#define AMUSE_KERNEL(name, T, V, M, kind)                                                                          \
  extern "C" __global__ void __launch_bounds__(32 * warps) name(const __grid_constant__ FusionWeightArguments a) { \
    partial_sums<T, V, M>(a);                                                                                      \
  }
AMUSE_FUSION_DTYPES(AMUSE_KERNEL, amuse_fusion_weight, gate)
#undef AMUSE_KERNEL

extern "C" __global__ void __launch_bounds__(256)
    amuse_fusion_weight_sum(const __grid_constant__ FusionWeightSumArguments a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= a.size) return;
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t block = 0; block < a.blocks; ++block) sum += a.partials[block * a.pitch + i];
  if (i < a.weights) {
    a.grad_weight[i] = sum;
  } else {
    a.grad_bias[i - a.weights] = sum;
  }
}

int64_t fusion_logits(const FusionParams& p) { return (p.n * p.m * p.m + 3) / 4 * 4; }

int64_t fusion_weight_partials(const FusionParams& p) {
  const Blocks blocks(p);
  return blocks.count * blocks.size;
}

void fusion_weight_plan(const FusionBackwardParams& p, const float* grad_logits, float* partials, CudaPlan& plan) {
  static const KernelEntry<FusionWeightArguments> entries[] = {
      AMUSE_FUSION_DTYPES(AMUSE_KERNEL_ENTRY, amuse_fusion_weight, gate)};
  const bool aligned = fusion_aligned(p, {p.descriptors, partials});
  const auto& entry = entries[fusion_variant(p, aligned)];
  const Blocks blocks(p);
  const int64_t columns = 32 * fusion_columns(p, aligned), tiles = (p.d + columns - 1) / columns;
  plan.add(entry, (blocks.count * p.m * tiles + warps - 1) / warps, 32 * warps, 0,
           FusionWeightArguments{p, grad_logits, partials, blocks.count, blocks.rows, blocks.size});
  const int64_t weights = p.m * (p.m - 1) * 2 * p.d, size = weights + p.m * (p.m - 1);
  plan.add(KernelEntry<FusionWeightSumArguments>{"amuse_fusion_weight_sum", amuse_fusion_weight_sum},
           (size + 255) / 256, 256, 0,
           FusionWeightSumArguments{partials, static_cast<float*>(p.grad_pair_weight),
                                    static_cast<float*>(p.grad_pair_bias), blocks.count, blocks.size, size, weights});
}

}  // namespace amuse
