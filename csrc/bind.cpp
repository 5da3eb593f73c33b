// The Python module amuse_kernels._C; attention is in bind_attention.cpp, CUDA in bind_cuda.cpp. The GIL is released
// around the work. Callers own every buffer and have checked shapes, devices and dtypes; what can be checked here is
// checked again, since a mistake would be a wild pointer.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "bind.h"
#include "bind_fusion.h"
#include "cpu/runtime.h"

namespace py = pybind11;

namespace amuse {
namespace {

// What Python calls: the parameters' arguments, then the number of threads.
template <class Params, class... Arguments>
auto on_cpu(Params (*read)(Arguments...), void (*kernel)(const Params&, int)) {
  return [=](Arguments... arguments, int num_threads) {
    const Params params = read(arguments...);
    check_threads(num_threads);
    const py::gil_scoped_release released;
    kernel(params, num_threads);
  };
}

constexpr Isa isas[] = {Isa::baseline, Isa::avx2, Isa::avx512};

void set_isa_by_name(const std::string& name) {
  for (Isa isa : isas) {
    if (name == isa_name(isa)) return set_isa(isa);
  }
  throw std::invalid_argument("isa: expected baseline, avx2 or avx512, got " + name);
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = AMUSE_CXX_COMPILER;
  info["openmp"] = openmp_version();
  info["isa"] = isa_name(current_isa());
  py::list available, compiled;
  compiled.append("baseline");
#if defined(AMUSE_HAS_AVX2)
  compiled.append("avx2");
#endif
#if defined(AMUSE_HAS_AVX512)
  compiled.append("avx512");
#endif
  for (Isa isa : isas) {
    if (isa_available(isa)) available.append(isa_name(isa));
  }
  info["isas_compiled"] = compiled;
  info["isas_available"] = available;
#if defined(AMUSE_WITH_CUDA)
  info["cuda"] = true;
  info["nvcc"] = AMUSE_NVCC_VERSION;
  info["cuda_architectures"] = AMUSE_CUDA_ARCHITECTURES;
#else
  info["cuda"] = false;
#endif
  return info;
}

}  // namespace
}  // namespace amuse

PYBIND11_MODULE(_C, module) {
  using namespace amuse;
  using py::arg;
  module.doc() =
      "Native kernels of amuse_kernels. Attention takes tensors; elsewhere pointers are integers (tensor.data_ptr(), 0 "
      "for "
      "none), sizes and strides are in "
      "elements, dtypes are codes of DTYPES. A stands for the accumulation type: float64 for float64, float32 "
      "otherwise.";

  py::dict dtypes;
  dtypes["float32"] = static_cast<int>(Dtype::float32);
  dtypes["float64"] = static_cast<int>(Dtype::float64);
  dtypes["float16"] = static_cast<int>(Dtype::float16);
  dtypes["bfloat16"] = static_cast<int>(Dtype::bfloat16);
  module.attr("DTYPES") = dtypes;
  module.attr("ALPHA_SCALAR") = static_cast<int>(AlphaKind::scalar);
  module.attr("ALPHA_ELEMENTWISE") = static_cast<int>(AlphaKind::elementwise);
  module.attr("ALPHA_GATE") = static_cast<int>(AlphaKind::gate);
  module.attr("MAX_MODALITIES") = max_modalities;

  bind_attention(module);
  module.def("adaptive_fusion_forward", on_cpu(&fusion_forward_params, &fusion_forward), arg("descriptors"),
             arg("alpha"), arg("pair_weight"), arg("pair_bias"), arg("present"), arg("fused"), arg("alpha_out"),
             arg("n"), arg("m"), arg("d"), arg("stride_n"), arg("stride_m"), arg("dtype"), arg("alpha_kind"),
             arg("num_threads") = 0,
             R"(Adaptive fusion (paper Eq. 2) on the CPU.

descriptors (n, m, d) has strides (stride_n, stride_m, 1); everything else is contiguous. By alpha_kind, alpha is
(n, m, m) or (n, m, m, d) in the descriptors' dtype, or 0 with a gate: pair_weight (m * (m - 1), 2, d) and pair_bias
(m * (m - 1)) in A. present is bool (n, m) or 0. Writes fused (n, m, d) and alpha_out (alpha's shape; (n, m, m) from a
gate). num_threads 0 is OpenMP's default.)");
  module.def("adaptive_fusion_backward", on_cpu(&fusion_backward_params, &fusion_backward), arg("grad_fused"),
             arg("grad_alpha"), arg("descriptors"), arg("alpha"), arg("pair_weight"), arg("pair_bias"), arg("present"),
             arg("grad_descriptors"), arg("grad_alpha_in"), arg("grad_pair_weight"), arg("grad_pair_bias"), arg("n"),
             arg("m"), arg("d"), arg("stride_n"), arg("stride_m"), arg("dtype"), arg("alpha_kind"),
             arg("num_threads") = 0,
             R"(Gradients of adaptive_fusion_forward, whose inputs come again.

grad_fused (n, m, d) and grad_alpha (alpha_out's shape, or 0) are contiguous in the descriptors' dtype. Writes
grad_descriptors (n, m, d) and either grad_alpha_in (alpha's shape) or, with a gate, grad_pair_weight and
grad_pair_bias in A; the pointers of the other choice are ignored. Bitwise the same for every number of threads.)");
  module.def("interpolation_coefficients_forward", on_cpu(&interpolation_forward_params, &interpolation_forward),
             arg("a"), arg("b"), arg("grad_b"), arg("out"), arg("n"), arg("d"), arg("epsilon"), arg("dtype"),
             arg("num_threads") = 0,
             R"(Closed-form interpolation coefficients (paper Eq. 6) on the CPU.

a, b, grad_b and out are (n, d), contiguous, of one dtype.)");
  module.def("interpolation_coefficients_backward", on_cpu(&interpolation_backward_params, &interpolation_backward),
             arg("grad_out"), arg("a"), arg("b"), arg("grad_b"), arg("out_grad_a"), arg("out_grad_b"),
             arg("out_grad_grad_b"), arg("n"), arg("d"), arg("epsilon"), arg("dtype"), arg("num_threads") = 0,
             R"(Gradients of interpolation_coefficients_forward for a, b and grad_b, each (n, d), contiguous.

Like torch.clamp, a gradient flows where the unclipped value is in [0, 1], bounds included, and nowhere else.)");

  module.def("build_info", &build_info, "What was compiled in, and which instruction set is in use.");
  module.def("team_size", &team_size, arg("requested"), arg("elements"),
             "Threads that a kernel touching this many elements would use.");
  module.def("set_isa", &set_isa_by_name, arg("name"),
             "Chooses the instruction set: baseline, avx2 or avx512. For tests and measurements.");
#if defined(AMUSE_WITH_CUDA)
  bind_cuda(module);
#endif
}
