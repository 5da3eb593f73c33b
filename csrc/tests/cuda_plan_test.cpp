// Plans of the CUDA kernels and their errors. Needs no GPU: nothing here may depend on whether there is one.
#include "../cuda/fusion_plan.h"

#include <climits>
#include <string>
#include <vector>

#include "check.h"

using namespace amuse;

namespace {

constexpr int64_t address = 1 << 20;     // address of every tensor; never read
constexpr int shared_limit = 48 * 1024;  // without opting in to more

FusionBackwardParams problem(Dtype dtype, AlphaKind kind, int64_t n, int64_t m, int64_t d, int64_t offset = 0) {
  FusionBackwardParams p{};
  p.dtype = dtype, p.alpha_kind = kind;
  p.n = n, p.m = m, p.d = d, p.stride_n = m * d, p.stride_m = d;
  void* const tensor = reinterpret_cast<void*>(address + offset);
  p.descriptors = p.alpha = p.pair_weight = p.pair_bias = p.grad_fused = p.grad_alpha = tensor;
  p.grad_descriptors = p.grad_alpha_in = p.grad_pair_weight = p.grad_pair_bias = tensor;
  return p;
}

FusionForwardParams forward_of(const FusionBackwardParams& p) {
  FusionForwardParams forward{};
  static_cast<FusionParams&>(forward) = p;
  forward.fused = forward.alpha_out = p.grad_descriptors;
  return forward;
}

void* workspace() { return reinterpret_cast<void*>(address); }

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

void check_launches(const CudaPlan& plan, size_t count) {
  CHECK(plan.error == cudaSuccess);
  CHECK(plan.launches.size() == count);
  for (const CudaLaunch& launch : plan.launches) {
    CHECK(launch.kernel != nullptr);
    CHECK(launch.entry.rfind("amuse_", 0) == 0);
    CHECK(launch.block % 32 == 0 && launch.block >= 128 && launch.block <= 256);
    CHECK(launch.shared_bytes >= 0 && launch.shared_bytes <= shared_limit);
    CHECK(!launch.parameters.empty());
  }
}

void every_shape_has_a_plan() {
  for (Dtype dtype : {Dtype::float32, Dtype::float16, Dtype::bfloat16}) {
    for (AlphaKind kind : {AlphaKind::scalar, AlphaKind::elementwise, AlphaKind::gate}) {
      for (int64_t m = 1; m <= max_modalities; ++m) {
        for (int64_t d : {1, 8, 17, 64, 256, 1000, 4096}) {
          const FusionBackwardParams p = problem(dtype, kind, 1000, m, d);
          check_launches(fusion_forward_plan(forward_of(p)), 1);
          check_launches(fusion_backward_plan(p, workspace()), kind == AlphaKind::gate ? 3 : 1);
        }
      }
    }
  }
}

void alignment_chooses_the_width_of_accesses() {
  const auto entry = [](int64_t m, int64_t d, int64_t offset) {
    const FusionBackwardParams p = problem(Dtype::float16, AlphaKind::scalar, 4, m, d, offset);
    return fusion_forward_plan(forward_of(p)).launches[0].entry;
  };
  CHECK(ends_with(entry(3, 64, 0), "_m4"));
  CHECK(ends_with(entry(5, 64, 0), "_m8"));
  CHECK(ends_with(entry(3, 64, 2), "_plain"));
  CHECK(ends_with(entry(3, 63, 0), "_plain"));
}

void no_rows_launch_nothing() {
  CHECK(fusion_forward_plan(forward_of(problem(Dtype::float32, AlphaKind::scalar, 0, 3, 8))).launches[0].grid == 0);
  // The gate's gradients are sums of nothing and still have to be written.
  const CudaPlan plan = fusion_backward_plan(problem(Dtype::float32, AlphaKind::gate, 0, 3, 8), workspace());
  CHECK(plan.launches[0].grid == 0 && plan.launches[1].grid == 0 && plan.launches[2].grid > 0);
}

void what_the_kernels_do_not_take_is_an_error() {
  const auto code = [](Dtype dtype, int64_t n, int64_t m, int64_t d) {
    const FusionForwardParams p = forward_of(problem(dtype, AlphaKind::scalar, n, m, d));
    return amuse_cuda_fusion_forward(&p, 0, nullptr);
  };
  CHECK(code(Dtype::float64, 4, 3, 8) == cudaErrorInvalidValue);
  CHECK(code(Dtype::float32, 4, 9, 8) == cudaErrorInvalidValue);
  CHECK(code(Dtype::float32, 4, 3, 0) == cudaErrorInvalidValue);
  CHECK(code(Dtype::float32, 4, 3, int64_t{1} << 27) == cudaErrorInvalidValue);
  CHECK(code(Dtype::float32, int64_t{INT_MAX} * 128, 3, 8) == cudaErrorInvalidConfiguration);
  InterpolationForwardParams p{};
  p.dtype = Dtype::float64, p.n = 1, p.d = 1;
  CHECK(amuse_cuda_interpolation_forward(&p, 0, nullptr) == cudaErrorInvalidValue);
}

void a_failing_call_says_so_and_leaves_no_error_behind() {
  const FusionForwardParams p = forward_of(problem(Dtype::float32, AlphaKind::scalar, 4, 3, 8));
  const int no_such_device = 12345;
  CHECK(amuse_cuda_fusion_forward(&p, no_such_device, nullptr) != cudaSuccess);
  // Without a driver every call of the runtime fails, this one too.
  int devices = 0;
  if (cudaGetDeviceCount(&devices) == cudaSuccess) CHECK(cudaPeekAtLastError() == cudaSuccess);
}

void workspace_is_for_the_gate_only() {
  const FusionBackwardParams scalar = problem(Dtype::float16, AlphaKind::scalar, 100, 3, 64);
  const FusionBackwardParams gate = problem(Dtype::float16, AlphaKind::gate, 100, 3, 64);
  CHECK(amuse_cuda_fusion_backward_workspace(&scalar) == 0);
  // logits, and partial sums of 7 blocks of 16 rows
  CHECK(amuse_cuda_fusion_backward_workspace(&gate) == 4 * (100 * 9 + 7 * (6 * (2 * 64 + 1) + 2)));
}

}  // namespace

int main() {
  every_shape_has_a_plan();
  alignment_chooses_the_width_of_accesses();
  no_rows_launch_nothing();
  what_the_kernels_do_not_take_is_an_error();
  a_failing_call_says_so_and_leaves_no_error_behind();
  workspace_is_for_the_gate_only();
  return 0;
}
