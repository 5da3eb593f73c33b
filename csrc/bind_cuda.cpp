// The CUDA kernels: every op has a function that makes its plan; Plan.run launches it. Built where there is an nvcc.
#include <pybind11/stl.h>

#include "bind.h"
#include "bind_attention.h"
#include "bind_fusion.h"
#include "cuda/attention_launch.h"
#include "cuda/device.h"
#include "cuda/fusion_plan.h"

namespace py = pybind11;

namespace amuse {
namespace {

// Every return code of CUDA ends up here.
[[noreturn]] void fail(cudaError_t code, const char* entry) {
  throw std::runtime_error(std::string(cudaGetErrorName(code)) + " (" + cudaGetErrorString(code) + ")" +
                           (entry == nullptr ? "" : std::string(" when launching ") + entry));
}

CudaPlan checked(CudaPlan plan) {
  if (plan.error != cudaSuccess) fail(plan.error, nullptr);
  return plan;
}

// `workspace`: a function from a number of bytes to the address of that much device memory.
void* allocated(const py::object& workspace, int64_t bytes) {
  return reinterpret_cast<void*>(workspace(bytes).cast<uintptr_t>());
}

// The function that Python calls for a plan: it takes the arguments of `read`.
template <class Params, class... Arguments>
auto planned(Params (*read)(Device, Arguments...), CudaPlan (*plan)(const Params&)) {
  return [=](Arguments... arguments) { return checked(plan(read(Device::of_first_tensor, arguments...))); };
}

// As fusion_backward_params; `workspace` as for attention.
CudaPlan plan_fusion_backward(const py::object& grad_fused, const py::object& grad_alpha, const py::object& descriptors,
                              const py::object& alpha, const py::object& pair_weight, const py::object& pair_bias,
                              const py::object& present, const py::object& grad_descriptors,
                              const py::object& grad_alpha_in, const py::object& grad_pair_weight,
                              const py::object& grad_pair_bias, const py::object& workspace) {
  const FusionBackwardParams p =
      fusion_backward_params(Device::of_first_tensor, grad_fused, grad_alpha, descriptors, alpha, pair_weight,
                             pair_bias, present, grad_descriptors, grad_alpha_in, grad_pair_weight, grad_pair_bias);
  return checked(fusion_backward_plan(p, allocated(workspace, amuse_cuda_fusion_backward_workspace(&p))));
}

// `seed`: the address of an int64 on the device, 0 without dropout.
CudaPlan plan_attention_forward(const AttentionInputs& in, const py::object& out, const py::object& lse, uintptr_t seed,
                                bool allow_tf32) {
  CudaAttentionOptions options{};
  options.seed = reinterpret_cast<const int64_t*>(seed), options.allow_tf32 = allow_tf32;
  return checked(attention_forward_plan(attention_forward_params(in, Device::of_first_tensor, out, lse), options));
}

CudaPlan plan_attention_backward(const AttentionInputs& in, const py::object& grad_out, const py::object& out,
                                 const py::object& lse, const py::object& grad_lse, const py::object& grad_query,
                                 const std::vector<py::object>& grad_keys, const std::vector<py::object>& grad_values,
                                 const py::object& grad_gates, uintptr_t seed, bool allow_tf32,
                                 const py::object& workspace) {
  const AttentionBackwardParams p = attention_backward_params(
      in, Device::of_first_tensor, grad_out, out, lse, grad_lse, grad_query, grad_keys, grad_values, grad_gates);
  CudaAttentionOptions options{};
  options.seed = reinterpret_cast<const int64_t*>(seed), options.allow_tf32 = allow_tf32;
  options.workspace = allocated(workspace, amuse_cuda_attention_workspace(&p));
  return checked(attention_backward_plan(p, options));
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
    result.append(py::make_tuple(
        launch.entry, launch.grid, launch.block, launch.shared_bytes, py::bytes(bytes, launch.parameters.size())));
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

  // Arguments as those of the functions for the CPU, without num_threads; tensors all on one device, in fp32, fp16 or
  // bf16. workspace(bytes) gives the address of device memory, aligned to 16 bytes.
  module.def("cuda_adaptive_fusion_forward", planned(&fusion_forward_params, &fusion_forward_plan));
  module.def("cuda_adaptive_fusion_backward", &plan_fusion_backward, "The last argument is workspace.");
  module.def(
      "cuda_interpolation_coefficients_forward", planned(&interpolation_forward_params, &interpolation_forward_plan));
  module.def("cuda_interpolation_coefficients_backward",
             planned(&interpolation_backward_params, &interpolation_backward_plan));

  module.def("cuda_p2c_attention_forward", &plan_attention_forward, arg("inputs"), arg("out"), arg("lse"), arg("seed"),
             arg("allow_tf32"), "The seed is an address on the device.");
  module.def("cuda_p2c_attention_backward", &plan_attention_backward, arg("inputs"), arg("grad_out"), arg("out"),
             arg("lse"), arg("grad_lse"), arg("grad_query"), arg("grad_keys"), arg("grad_values"), arg("grad_gates"),
             arg("seed"), arg("allow_tf32"), arg("workspace"));
}

}  // namespace amuse
