// Closed-form interpolation coefficients (paper Eq. 6) and their derivative. Per row, with D = a - b:
//   x = epsilon ||D|| / ||g|| * g / D,  c = clip(x, 0, 1), 0 where D = 0 or ||g|| = 0.
// With h the upstream gradient where 0 <= x <= 1, else 0, and t = <h, x>:
//   d g = epsilon ||D|| / ||g|| * h / D - g t / ||g||^2,   d a = -h x / D + D t / ||D||^2,   d b = -d a.
// A row that its threads hold at once is read once, a longer one again for every sum.
#include "element.h"
#include "fusion_plan.h"
#include "rows.h"

namespace amuse {

struct InterpolationForwardArguments {
  InterpolationForwardParams p;
  int shift;  // of Rows
};

struct InterpolationBackwardArguments {
  InterpolationBackwardParams p;
  int shift;
};

namespace {

constexpr int max_warps = rows_block_max / 32;

// Sum over the threads of a row; each gets the same bits. All threads of a block call it.
__device__ float row_sum(const Rows& rows, float x) {
  __shared__ float sums[max_warps];
  x = rows.lanes_sum(x);
  if (rows.parts() == 1) return x;
  float* const of_row = sums + rows.row * rows.parts();
  __syncthreads();  // the last sum has been read
  if (rows.leads()) of_row[rows.part()] = x;
  __syncthreads();
  float total = 0.0f;
  for (int part = 0; part < rows.parts(); ++part) total += of_row[part];
  return total;
}

// V columns of a row; 0 beyond its end.
template <class T, int V>
struct Columns {
  float difference[V], gradient[V];

  template <class Params>
  __device__ void load_from(const Params& p, const Rows& rows, int64_t k) {
    float b[V] = {};
#pragma unroll
    for (int v = 0; v < V; ++v) difference[v] = gradient[v] = 0.0f;
    if (rows.index < p.n && k < p.d) {
      const int64_t offset = rows.index * p.d + k;
      load(static_cast<const T*>(p.a) + offset, difference);
      load(static_cast<const T*>(p.b) + offset, b);
      load(static_cast<const T*>(p.grad) + offset, gradient);
    }
#pragma unroll
    for (int v = 0; v < V; ++v) difference[v] -= b[v];
  }

  // Where x is defined; there, x.
  __device__ bool defined(int v, float length) const { return difference[v] != 0.0f && length != 0.0f; }
  __device__ float x(int v, float scale) const { return scale * gradient[v] / difference[v]; }
};

struct Norms {
  float distance, length;  // ||a - b||, ||g||
  __device__ float scale(double epsilon) const { return static_cast<float>(epsilon) * distance / length; }
};

// Leaves the row's first columns in `columns`.
template <class T, int V, class Params>
__device__ Norms norms(const Params& p, const Rows& rows, Columns<T, V>& columns) {
  float distance = 0.0f, length = 0.0f;
  columns.load_from(p, rows, rows.thread * V);
  for (int64_t k = rows.thread * V, begin = 0; begin < p.d; begin += V << rows.shift, k += V << rows.shift) {
    if (begin > 0) columns.load_from(p, rows, k);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      distance += columns.difference[v] * columns.difference[v];
      length += columns.gradient[v] * columns.gradient[v];
    }
  }
  return {sqrtf(row_sum(rows, distance)), sqrtf(row_sum(rows, length))};
}

template <class T, int V>
__device__ void forward(const InterpolationForwardArguments& arguments) {
  const InterpolationForwardParams& p = arguments.p;
  const Rows rows(arguments.shift);
  Columns<T, V> columns;
  const Norms norm = norms(p, rows, columns);
  if (rows.index >= p.n) return;
  const float scale = norm.scale(p.epsilon);
  const int pass = V << rows.shift;
  for (int64_t k = rows.thread * V; k < p.d; k += pass) {
    if (p.d > pass) columns.load_from(p, rows, k);
    float out[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float x = columns.x(v, scale);
      // Comparisons with NaN are false, so that NaN stays, as in torch.clamp.
      const float clipped = x < 0.0f ? 0.0f : x > 1.0f ? 1.0f : x;
      out[v] = columns.defined(v, norm.length) ? clipped : 0.0f;
    }
    store(static_cast<T*>(p.out) + rows.index * p.d + k, out);
  }
}

template <class T, int V>
__device__ void backward(const InterpolationBackwardArguments& arguments) {
  const InterpolationBackwardParams& p = arguments.p;
  const Rows rows(arguments.shift);
  Columns<T, V> columns;
  const Norms norm = norms(p, rows, columns);
  const float scale = norm.scale(p.epsilon);
  const int pass = V << rows.shift;
  const bool again = p.d > pass;

  float upstream[V], total = 0.0f;  // upstream: h / D
  const auto load_upstream = [&](int64_t k) {
    if (again) columns.load_from(p, rows, k);
#pragma unroll
    for (int v = 0; v < V; ++v) upstream[v] = 0.0f;
    if (rows.index < p.n && k < p.d) load(static_cast<const T*>(p.grad_out) + rows.index * p.d + k, upstream);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float x = columns.x(v, scale);
      const bool flows = columns.defined(v, norm.length) && x >= 0.0f && x <= 1.0f;
      upstream[v] = flows ? upstream[v] / columns.difference[v] : 0.0f;
    }
  };
  for (int64_t k = rows.thread * V, begin = 0; begin < p.d; begin += pass, k += pass) {
    load_upstream(k);
#pragma unroll
    for (int v = 0; v < V; ++v) total += upstream[v] * columns.gradient[v];
  }
  total = row_sum(rows, total);
  if (rows.index >= p.n) return;
  // t / ||D||^2 and t / ||g||^2, divided twice since a square may overflow
  total = norm.length == 0.0f ? 0.0f : total * scale;
  const float to_difference = norm.distance == 0.0f ? 0.0f : total / norm.distance / norm.distance;
  const float to_gradient = norm.length == 0.0f ? 0.0f : total / norm.length / norm.length;
  const float direct = norm.length == 0.0f ? 0.0f : scale;

  for (int64_t k = rows.thread * V; k < p.d; k += pass) {
    if (again) load_upstream(k);
    float grad_a[V], grad_b[V], grad_g[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float through = upstream[v] == 0.0f ? 0.0f : upstream[v] * columns.x(v, scale);
      grad_a[v] = to_difference * columns.difference[v] - through;
      grad_b[v] = -grad_a[v];
      grad_g[v] = direct * upstream[v] - to_gradient * columns.gradient[v];
    }
    const int64_t offset = rows.index * p.d + k;
    store(static_cast<T*>(p.grad_a) + offset, grad_a);
    store(static_cast<T*>(p.grad_b) + offset, grad_b);
    store(static_cast<T*>(p.grad_grad) + offset, grad_g);
  }
}

}  // namespace

#define AMUSE_VARIANTS(KERNEL, base) \
  KERNEL(base##_f32, float, 4)       \
  KERNEL(base##_f32_plain, float, 1) \
  KERNEL(base##_f16, Half, 8)        \
  KERNEL(base##_f16_plain, Half, 1)  \
  KERNEL(base##_bf16, BFloat16, 8)   \
  KERNEL(base##_bf16_plain, BFloat16, 1)

#define AMUSE_FORWARD(name, T, V)                                             \
  extern "C" __global__ void __launch_bounds__(rows_block_max)                \
      name(const __grid_constant__ InterpolationForwardArguments arguments) { \
    forward<T, V>(arguments);                                                 \
  }
#define AMUSE_BACKWARD(name, T, V)                                             \
  extern "C" __global__ void __launch_bounds__(rows_block_max)                 \
      name(const __grid_constant__ InterpolationBackwardArguments arguments) { \
    backward<T, V>(arguments);                                                 \
  }
AMUSE_VARIANTS(AMUSE_FORWARD, amuse_interpolation_forward)
AMUSE_VARIANTS(AMUSE_BACKWARD, amuse_interpolation_backward)

#define AMUSE_ENTRY(name, T, V) {#name, name},

namespace {

template <class Arguments, class Params>
CudaPlan plan_of(const KernelEntry<Arguments> (&entries)[6], const Params& p,
                 std::initializer_list<const void*> tensors) {
  CudaPlan plan;
  if (dtype_index(p.dtype) < 0 || p.n < 0 || p.d < 1 || p.d > rows_width_max) {
    plan.error = cudaErrorInvalidValue;
    return plan;
  }
  const int columns = elements_in_16_bytes(p.dtype);
  const bool aligned = p.d % columns == 0 && at_16_bytes(tensors);
  const RowsShape shape = rows_shape(p.n, p.d, aligned ? columns : 1);
  const auto& entry = entries[2 * dtype_index(p.dtype) + (aligned ? 0 : 1)];
  plan.add(entry, shape.grid, shape.block, 0, Arguments{p, shape.shift});
  return plan;
}

}  // namespace

CudaPlan interpolation_forward_plan(const InterpolationForwardParams& p) {
  static const KernelEntry<InterpolationForwardArguments> entries[] = {
      AMUSE_VARIANTS(AMUSE_ENTRY, amuse_interpolation_forward)};
  return plan_of(entries, p, {p.a, p.b, p.grad, p.out});
}

CudaPlan interpolation_backward_plan(const InterpolationBackwardParams& p) {
  static const KernelEntry<InterpolationBackwardArguments> entries[] = {
      AMUSE_VARIANTS(AMUSE_ENTRY, amuse_interpolation_backward)};
  return plan_of(entries, p, {p.grad_out, p.a, p.b, p.grad, p.grad_a, p.grad_b, p.grad_grad});
}

}  // namespace amuse

int amuse_cuda_interpolation_forward(const amuse::InterpolationForwardParams* params, int device, void* stream) {
  return amuse::run(amuse::interpolation_forward_plan(*params), device, static_cast<cudaStream_t>(stream));
}

int amuse_cuda_interpolation_backward(const amuse::InterpolationBackwardParams* params, int device, void* stream) {
  return amuse::run(amuse::interpolation_backward_plan(*params), device, static_cast<cudaStream_t>(stream));
}
