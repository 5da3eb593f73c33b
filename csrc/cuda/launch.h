// A kernel launch as a value: computed without a GPU, then run on one or handed to the PTX emulator. Every op has a
// function that makes its plan and an entry point that runs it, nothing else.
//
// Kernels take one parameter, a struct by value, and are extern "C", so that `entry` is their name in the PTX too.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

namespace amuse {

template <class Parameters>
struct KernelEntry {
  const char* name;
  void (*kernel)(Parameters);
};

struct CudaLaunch {
  std::string entry;                      // the kernel's name, in PTX too
  const void* kernel;                     // the host's handle of it
  int64_t grid;                           // blocks along x; 0: nothing to do
  int block;                              // threads along x
  int shared_bytes;                       // dynamic shared memory
  std::vector<unsigned char> parameters;  // the bytes of the struct
};

// Consecutive launches on one stream. `error` concerns the plan itself: a call that the kernels do not support.
struct CudaPlan {
  std::vector<CudaLaunch> launches;
  cudaError_t error = cudaSuccess;

  template <class Parameters>
  void add(const KernelEntry<Parameters>& of, int64_t grid, int block, int shared_bytes, const Parameters& parameters) {
    add(of.name, reinterpret_cast<const void*>(of.kernel), grid, block, shared_bytes, parameters);
  }

  template <class Parameters>
  void add(const char* entry, const void* kernel, int64_t grid, int block, int shared_bytes,
           const Parameters& parameters) {
    static_assert(std::is_trivially_copyable<Parameters>::value && sizeof(Parameters) <= 4096,
                  "a kernel parameter is copied as bytes and has at most 4 KB");
    if (grid < 0 || grid > INT_MAX) error = cudaErrorInvalidConfiguration;
    const auto* bytes = reinterpret_cast<const unsigned char*>(&parameters);
    launches.push_back({entry, kernel, grid, block, shared_bytes, {bytes, bytes + sizeof(Parameters)}});
  }
};

// Runs a plan on `device`, which is made current during the call. Returns the first error; none stays pending.
// `failed`, where given, becomes the entry that caused it, or null when the device or the plan did.
cudaError_t run(const CudaPlan& plan, int device, cudaStream_t stream, const char** failed = nullptr);

}  // namespace amuse
