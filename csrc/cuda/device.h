// Facts about the CUDA part of the library and the machine. Plain C++, so that bind.cpp needs no CUDA
// headers. Nothing here throws or ends the process on a machine without a driver.
#pragma once

#include <string>
#include <vector>

namespace amuse {

struct CudaDevice {
  std::string name;
  int compute_capability = 0;  // 10 * major + minor
  std::string error;           // why kernels of this library cannot run there; empty when they can
};

struct CudaReport {
  int runtime_version = 0;  // 1000 * major + 10 * minor
  int driver_version = 0;   // same; 0 without a driver
  std::vector<CudaDevice> devices;
  std::string error;  // why there are no devices, in CUDA's words with the error code; empty when there are
};

CudaReport cuda_report();

}  // namespace amuse
