// The Python module amuse_kernels._C; the ops are in bind_attention.cpp and bind_fusion.cpp, CUDA in bind_cuda.cpp. The
// GIL is released around the work. Callers own every buffer and have checked shapes, devices and dtypes; what can be
// checked here is checked again, since a mistake would be a wild pointer.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "bind.h"
#include "cpu/runtime.h"
#include "fusion.h"

namespace py = pybind11;

namespace amuse {
namespace {

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
      "Native kernels of amuse_kernels, called with tensors. A stands for the accumulation type: float64 for float64, "
      "float32 otherwise.";
  module.attr("MAX_MODALITIES") = max_modalities;

  bind_attention(module);
  bind_fusion(module);
  module.def("build_info", &build_info, "What was compiled in, and which instruction set is in use.");
  module.def("team_size", &team_size, arg("requested"), arg("elements"),
             "Threads that a kernel touching this many elements would use.");
  module.def("set_isa", &set_isa_by_name, arg("name"),
             "Chooses the instruction set: baseline, avx2 or avx512. For tests and measurements.");
#if defined(AMUSE_WITH_CUDA)
  bind_cuda(module);
#endif
}
