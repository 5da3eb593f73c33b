#include "device.h"

#include <cuda_runtime.h>

namespace amuse {
namespace {

// Exists so that a device can be asked whether the library holds code for it.
__global__ void probe_kernel(int* architecture) {
#if defined(__CUDA_ARCH__)
  *architecture = __CUDA_ARCH__;
#endif
}

std::string describe(const char* call, cudaError_t code) {
  return std::string(call) + ": " + cudaGetErrorName(code) + " (" + cudaGetErrorString(code) + ")";
}

CudaDevice inspect(int index) {
  CudaDevice device;
  cudaDeviceProp properties{};
  cudaError_t code = cudaGetDeviceProperties(&properties, index);
  if (code != cudaSuccess) {
    device.error = describe("cudaGetDeviceProperties", code);
    return device;
  }
  device.name = properties.name;
  device.compute_capability = 10 * properties.major + properties.minor;
  code = cudaSetDevice(index);
  if (code != cudaSuccess) {
    device.error = describe("cudaSetDevice", code);
    return device;
  }
  cudaFuncAttributes attributes{};
  code = cudaFuncGetAttributes(&attributes, probe_kernel);
  if (code != cudaSuccess) device.error = describe("no kernel image for this device, cudaFuncGetAttributes", code);
  return device;
}

}  // namespace

CudaReport cuda_report() {
  CudaReport report;
  cudaError_t code = cudaRuntimeGetVersion(&report.runtime_version);
  if (code != cudaSuccess) report.error = describe("cudaRuntimeGetVersion", code);
  code = cudaDriverGetVersion(&report.driver_version);
  if (code != cudaSuccess) report.error = describe("cudaDriverGetVersion", code);

  int count = 0;
  code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess) {
    report.error = describe("cudaGetDeviceCount", code);
    (void)cudaGetLastError();  // the error stays pending otherwise and would be blamed on the next call
    return report;
  }
  if (count == 0) {
    report.error = "the driver reports no device";
    return report;
  }
  int current = 0;
  const cudaError_t have_current = cudaGetDevice(&current);
  for (int index = 0; index < count; ++index) report.devices.push_back(inspect(index));
  if (have_current == cudaSuccess) {
    code = cudaSetDevice(current);
    if (code != cudaSuccess) report.error = describe("cudaSetDevice", code);
  } else {
    report.error = describe("cudaGetDevice", have_current);
  }
  (void)cudaGetLastError();
  return report;
}

}  // namespace amuse
