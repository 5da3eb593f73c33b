#include "launch.h"

namespace amuse {
namespace {

cudaError_t run(const CudaLaunch& launch, cudaStream_t stream) {
  if (launch.grid == 0) return cudaSuccess;
  // 48 KiB need no opt-in, but they include the kernel's static shared memory: every dynamic byte is opted in to.
  if (launch.shared_bytes > 0) {
    const cudaError_t code =
        cudaFuncSetAttribute(launch.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, launch.shared_bytes);
    if (code != cudaSuccess) return code;
  }
  void* arguments[] = {const_cast<unsigned char*>(launch.parameters.data())};
  return cudaLaunchKernel(launch.kernel, dim3(static_cast<unsigned>(launch.grid)),
                          dim3(static_cast<unsigned>(launch.block)), arguments,
                          static_cast<size_t>(launch.shared_bytes), stream);
}

}  // namespace

cudaError_t run(const CudaPlan& plan, int device, cudaStream_t stream, const char** failed) {
  if (failed != nullptr) *failed = nullptr;
  if (plan.error != cudaSuccess) return plan.error;
  int current = 0;
  cudaError_t code = cudaGetDevice(&current);
  if (code == cudaSuccess && current != device) code = cudaSetDevice(device);
  if (code == cudaSuccess) {
    for (const CudaLaunch& launch : plan.launches) {
      code = run(launch, stream);
      if (code == cudaSuccess) continue;
      if (failed != nullptr) *failed = launch.entry.c_str();
      break;
    }
    if (current != device) {
      const cudaError_t restored = cudaSetDevice(current);
      if (code == cudaSuccess) code = restored;
    }
  }
  if (code != cudaSuccess) (void)cudaGetLastError();  // else it would be blamed on the next call
  return code;
}

}  // namespace amuse
