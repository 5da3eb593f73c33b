// The C API on its own: adaptive fusion of three modalities on the first GPU. No torch, no Python; link amuse_cuda.
// Exits with 77 on a machine without a usable GPU.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../cuda/fusion.h"

namespace {

void check(int code) {
  const cudaError_t error = static_cast<cudaError_t>(code);
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s (%s)\n", cudaGetErrorName(error), cudaGetErrorString(error));
  std::exit(1);
}

float* on_device(const std::vector<float>& values) {
  float* pointer = nullptr;
  check(cudaMalloc(&pointer, values.size() * sizeof(float)));
  check(cudaMemcpy(pointer, values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice));
  return pointer;
}

}  // namespace

int main() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    std::printf("no GPU: %s\n", cudaGetErrorString(error));
    return 77;
  }

  constexpr int n = 2, m = 3, d = 4;
  amuse::FusionForwardParams params{};  // strides and sizes in elements
  params.dtype = amuse::Dtype::float32;
  params.alpha_kind = amuse::AlphaKind::scalar;
  params.n = n, params.m = m, params.d = d;
  params.stride_n = m * d, params.stride_m = d;
  params.descriptors = on_device(std::vector<float>(n * m * d, 1.0f));
  params.alpha = on_device(std::vector<float>(n * m * m, 0.5f));
  float* fused = on_device(std::vector<float>(n * m * d));
  params.fused = fused;
  params.alpha_out = on_device(std::vector<float>(n * m * m));

  const int device = 0;
  void* const stream = nullptr;  // the default stream
  check(amuse_cuda_fusion_forward(&params, device, stream));

  std::vector<float> result(n * m * d);
  check(cudaMemcpy(result.data(), fused, result.size() * sizeof(float), cudaMemcpyDeviceToHost));
  for (float value : result) std::printf("%g ", value);  // descriptors of ones give (m - 1) / m
  std::printf("\n");
  return 0;
}
