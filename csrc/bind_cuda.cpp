// The CUDA kernels: every op has a function that makes its plan; Plan.run launches it. Built where there is an nvcc.
#include <pybind11/stl.h>

#include "bind.h"
#include "bind_fusion.h"
#include "cuda/device.h"
#include "cuda/fusion_plan.h"

namespace py = pybind11;

namespace amuse {
namespace {

template <class>
using Address = uintptr_t;

// Every return code of CUDA ends up here.
[[noreturn]] void fail(cudaError_t code, const char* entry) {
  throw std::runtime_error(std::string(cudaGetErrorName(code)) + " (" + cudaGetErrorString(code) + ")" +
                           (entry == nullptr ? "" : std::string(" when launching ") + entry));
}

// What Python calls to get a plan: the parameters' arguments, then what else the plan takes, as integers.
template <class Params, class... Arguments, class... Others>
auto planned(Params (*read)(Arguments...), CudaPlan (*plan)(const Params&, Others*...)) {
  return [=](Arguments... arguments, Address<Others>... others) {
    CudaPlan result = plan(read(arguments...), reinterpret_cast<Others*>(others)...);
    if (result.error != cudaSuccess) fail(result.error, nullptr);
    return result;
  };
}

int64_t fusion_workspace(int64_t n, int64_t m, int64_t d) {
  FusionBackwardParams p{};
  p.dtype = Dtype::float32, p.alpha_kind = AlphaKind::gate, p.n = n, p.m = m, p.d = d;
  return amuse_cuda_fusion_backward_workspace(&p);
}

void run_plan(const CudaPlan& plan, int device, uintptr_t stream) {
  const char* failed = nullptr;
  cudaError_t code;
  {
    const py::gil_scoped_release released;
    code = run(plan, device, reinterpret_cast<cudaStream_t>(stream), &failed);
  }
  if (code != cudaSuccess) fail(code, failed);
}

py::list launches(const CudaPlan& plan) {
  py::list result;
  for (const CudaLaunch& launch : plan.launches) {
    const char* bytes = reinterpret_cast<const char*>(launch.parameters.data());
    result.append(py::make_tuple(launch.entry, launch.grid, launch.block, launch.shared_bytes,
                                 py::bytes(bytes, launch.parameters.size())));
  }
  return result;
}

py::dict cuda_info() {
  CudaReport report;
  {
    const py::gil_scoped_release released;
    report = cuda_report();
  }
  py::dict info;
  info["runtime_version"] = report.runtime_version;
  info["driver_version"] = report.driver_version;
  info["error"] = report.error;
  py::list devices;
  for (const CudaDevice& device : report.devices) {
    py::dict entry;
    entry["name"] = device.name;
    entry["compute_capability"] = device.compute_capability;
    entry["error"] = device.error;
    devices.append(entry);
  }
  info["devices"] = devices;
  return info;
}

}  // namespace

void bind_cuda(py::module_& module) {
  using py::arg;
  module.def("cuda_info", &cuda_info, "CUDA runtime and driver versions, devices, or the reason there are none.");
  py::class_<CudaPlan>(module, "CudaPlan", "What one call launches, and in which order. Needs no GPU until it is run.")
      .def("run", &run_plan, arg("device"), arg("stream"),
           R"(Queues the launches on a stream (a cudaStream_t as an integer) of a device; waits for nothing.

RuntimeError with the name that CUDA gives its error, and the kernel, if there is one.)")
      .def_property_readonly("launches", &launches,
                             "(kernel, blocks, threads, bytes of dynamic shared memory, parameters as bytes) each.");

  // Arguments as those of the functions for the CPU, without num_threads; pointers to device memory, in fp32, fp16 or bf16.
  module.def("cuda_adaptive_fusion_forward", planned(&fusion_forward_params, &fusion_forward_plan));
  module.def("cuda_adaptive_fusion_workspace", &fusion_workspace, arg("n"), arg("m"), arg("d"),
             "Bytes of device memory, aligned to 16, that the backward pass with a gate works in.");
  module.def("cuda_adaptive_fusion_backward", planned(&fusion_backward_params, &fusion_backward_plan),
             "The last argument is the workspace; 0 without a gate.");
  module.def("cuda_interpolation_coefficients_forward",
             planned(&interpolation_forward_params, &interpolation_forward_plan));
  module.def("cuda_interpolation_coefficients_backward",
             planned(&interpolation_backward_params, &interpolation_backward_plan));
}

}  // namespace amuse
