// The Python module amuse_kernels._C; attention is in bind_attention.cpp. The GIL is released around the work. Callers own every
// buffer and have checked shapes, devices and dtypes; what can be checked here is checked again, since a mistake would
// be a wild pointer.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "bind.h"
#include "cpu/runtime.h"
#include "fusion.h"
#if defined(AMUSE_WITH_CUDA)
#include "cuda/device.h"
#endif

namespace py = pybind11;

namespace amuse {
namespace {

Dtype checked_dtype(int code) {
  if (code < 0 || code > 3) invalid("dtype", "a code of DTYPES, 0 to 3", code);
  return static_cast<Dtype>(code);
}

int64_t item_size(Dtype dtype) {
  switch (dtype) {
    case Dtype::float32: return 4;
    case Dtype::float64: return 8;
    default: return 2;
  }
}

int64_t accumulator_size(Dtype dtype) { return dtype == Dtype::float64 ? 8 : 4; }

int64_t checked_product(std::initializer_list<int64_t> sizes) {
  int64_t product = 8;  // leaves room for the item size
  for (int64_t size : sizes) {
    if (__builtin_mul_overflow(product, size, &product)) invalid("sizes", "a tensor that fits into memory", size);
  }
  return product / 8;
}

// A pointer that must be there and aligned whenever its tensor has elements.
void* pointer(const char* name, uintptr_t address, int64_t elements, int64_t alignment) {
  if (elements > 0 && address == 0) throw std::invalid_argument(std::string(name) + ": expected a pointer, got null");
  if (address % static_cast<uintptr_t>(alignment) != 0) {
    throw std::invalid_argument(std::string(name) + ": the pointer is not aligned to " + std::to_string(alignment) +
                                " bytes");
  }
  return reinterpret_cast<void*>(address);
}

struct FusionSizes {
  int64_t descriptors, alpha, pairs, item, accumulator;
};

FusionSizes fill_fusion(FusionParams& p, uintptr_t descriptors, uintptr_t alpha, uintptr_t pair_weight,
                        uintptr_t pair_bias, uintptr_t present, int64_t n, int64_t m, int64_t d, int64_t stride_n,
                        int64_t stride_m, int dtype, int alpha_kind) {
  p.dtype = checked_dtype(dtype);
  if (alpha_kind < 0 || alpha_kind > 2) invalid("alpha_kind", "0 (scalar), 1 (elementwise) or 2 (gate)", alpha_kind);
  p.alpha_kind = static_cast<AlphaKind>(alpha_kind);
  if (n < 0) invalid("n", "0 or more samples", n);
  if (m < 1 || m > max_modalities) invalid("m", "1 to " + std::to_string(max_modalities) + " modalities", m);
  if (d < 1) invalid("d", "a width of at least 1", d);
  if (stride_n < 0) invalid("stride_n", "0 or more", stride_n);
  if (stride_m < 0) invalid("stride_m", "0 or more", stride_m);
  p.n = n, p.m = m, p.d = d, p.stride_n = stride_n, p.stride_m = stride_m;

  FusionSizes sizes{};
  sizes.item = item_size(p.dtype);
  sizes.accumulator = accumulator_size(p.dtype);
  sizes.descriptors = checked_product({n, m, d});
  sizes.alpha = checked_product({n, m, m, p.alpha_kind == AlphaKind::elementwise ? d : 1});
  sizes.pairs = m * (m - 1);
  p.descriptors = pointer("descriptors", descriptors, sizes.descriptors, sizes.item);
  p.present = static_cast<const uint8_t*>(pointer("present", present, 0, 1));
  const bool gate = p.alpha_kind == AlphaKind::gate;
  p.alpha = gate ? nullptr : pointer("alpha", alpha, sizes.alpha, sizes.item);
  p.pair_weight = gate ? pointer("pair_weight", pair_weight, checked_product({sizes.pairs, 2, d}), sizes.accumulator)
                       : nullptr;
  p.pair_bias = gate ? pointer("pair_bias", pair_bias, sizes.pairs, sizes.accumulator) : nullptr;
  return sizes;
}

void adaptive_fusion_forward(uintptr_t descriptors, uintptr_t alpha, uintptr_t pair_weight, uintptr_t pair_bias,
                             uintptr_t present, uintptr_t fused, uintptr_t alpha_out, int64_t n, int64_t m, int64_t d,
                             int64_t stride_n, int64_t stride_m, int dtype, int alpha_kind, int num_threads) {
  FusionForwardParams p{};
  const FusionSizes sizes = fill_fusion(p, descriptors, alpha, pair_weight, pair_bias, present, n, m, d, stride_n,
                                        stride_m, dtype, alpha_kind);
  check_threads(num_threads);
  p.fused = pointer("fused", fused, sizes.descriptors, sizes.item);
  p.alpha_out = pointer("alpha_out", alpha_out, sizes.alpha, sizes.item);
  const py::gil_scoped_release released;
  fusion_forward(p, num_threads);
}

void adaptive_fusion_backward(uintptr_t grad_fused, uintptr_t grad_alpha, uintptr_t descriptors, uintptr_t alpha,
                              uintptr_t pair_weight, uintptr_t pair_bias, uintptr_t present,
                              uintptr_t grad_descriptors, uintptr_t grad_alpha_in, uintptr_t grad_pair_weight,
                              uintptr_t grad_pair_bias, int64_t n, int64_t m, int64_t d, int64_t stride_n,
                              int64_t stride_m, int dtype, int alpha_kind, int num_threads) {
  FusionBackwardParams p{};
  const FusionSizes sizes = fill_fusion(p, descriptors, alpha, pair_weight, pair_bias, present, n, m, d, stride_n,
                                        stride_m, dtype, alpha_kind);
  check_threads(num_threads);
  p.grad_fused = pointer("grad_fused", grad_fused, sizes.descriptors, sizes.item);
  p.grad_alpha = pointer("grad_alpha", grad_alpha, 0, sizes.item);
  p.grad_descriptors = pointer("grad_descriptors", grad_descriptors, sizes.descriptors, sizes.item);
  if (p.alpha_kind == AlphaKind::gate) {
    p.grad_pair_weight =
        pointer("grad_pair_weight", grad_pair_weight, checked_product({sizes.pairs, 2, d}), sizes.accumulator);
    p.grad_pair_bias = pointer("grad_pair_bias", grad_pair_bias, sizes.pairs, sizes.accumulator);
  } else {
    p.grad_alpha_in = pointer("grad_alpha_in", grad_alpha_in, sizes.alpha, sizes.item);
  }
  const py::gil_scoped_release released;
  fusion_backward(p, num_threads);
}

template <class Params>
int64_t fill_interpolation(Params& p, int64_t n, int64_t d, double epsilon, int dtype, int num_threads) {
  p.dtype = checked_dtype(dtype);
  if (n < 0) invalid("n", "0 or more rows", n);
  if (d < 1) invalid("d", "a width of at least 1", d);
  check_threads(num_threads);
  p.n = n, p.d = d, p.epsilon = epsilon;
  return checked_product({n, d});
}

void interpolation_coefficients_forward(uintptr_t a, uintptr_t b, uintptr_t grad_b, uintptr_t out, int64_t n,
                                        int64_t d, double epsilon, int dtype, int num_threads) {
  InterpolationForwardParams p{};
  const int64_t elements = fill_interpolation(p, n, d, epsilon, dtype, num_threads);
  const int64_t item = item_size(p.dtype);
  p.a = pointer("a", a, elements, item);
  p.b = pointer("b", b, elements, item);
  p.grad = pointer("grad_b", grad_b, elements, item);
  p.out = pointer("out", out, elements, item);
  const py::gil_scoped_release released;
  interpolation_forward(p, num_threads);
}

void interpolation_coefficients_backward(uintptr_t grad_out, uintptr_t a, uintptr_t b, uintptr_t grad_b,
                                         uintptr_t out_grad_a, uintptr_t out_grad_b, uintptr_t out_grad_grad_b,
                                         int64_t n, int64_t d, double epsilon, int dtype, int num_threads) {
  InterpolationBackwardParams p{};
  const int64_t elements = fill_interpolation(p, n, d, epsilon, dtype, num_threads);
  const int64_t item = item_size(p.dtype);
  p.grad_out = pointer("grad_out", grad_out, elements, item);
  p.a = pointer("a", a, elements, item);
  p.b = pointer("b", b, elements, item);
  p.grad = pointer("grad_b", grad_b, elements, item);
  p.grad_a = pointer("out_grad_a", out_grad_a, elements, item);
  p.grad_b = pointer("out_grad_b", out_grad_b, elements, item);
  p.grad_grad = pointer("out_grad_grad_b", out_grad_grad_b, elements, item);
  const py::gil_scoped_release released;
  interpolation_backward(p, num_threads);
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

#if defined(AMUSE_WITH_CUDA)
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
#endif

}  // namespace
}  // namespace amuse

PYBIND11_MODULE(_C, module) {
  using namespace amuse;
  using py::arg;
  module.doc() =
      "Native kernels of amuse_kernels. Attention takes tensors; elsewhere pointers are integers (tensor.data_ptr(), 0 for "
      "none), sizes and strides are in "
      "elements, dtypes are codes of DTYPES. A stands for the accumulation type: float64 for float64, float32 otherwise.";

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
  module.def("adaptive_fusion_forward", &adaptive_fusion_forward, arg("descriptors"), arg("alpha"),
             arg("pair_weight"), arg("pair_bias"), arg("present"), arg("fused"), arg("alpha_out"), arg("n"), arg("m"),
             arg("d"), arg("stride_n"), arg("stride_m"), arg("dtype"), arg("alpha_kind"), arg("num_threads") = 0,
             R"(Adaptive fusion (paper Eq. 2) on the CPU.

descriptors (n, m, d) has strides (stride_n, stride_m, 1); everything else is contiguous. By alpha_kind, alpha is
(n, m, m) or (n, m, m, d) in the descriptors' dtype, or 0 with a gate: pair_weight (m * (m - 1), 2, d) and pair_bias
(m * (m - 1)) in A. present is bool (n, m) or 0. Writes fused (n, m, d) and alpha_out (alpha's shape; (n, m, m) from a
gate). num_threads 0 is OpenMP's default.)");
  module.def("adaptive_fusion_backward", &adaptive_fusion_backward, arg("grad_fused"), arg("grad_alpha"),
             arg("descriptors"), arg("alpha"), arg("pair_weight"), arg("pair_bias"), arg("present"),
             arg("grad_descriptors"), arg("grad_alpha_in"), arg("grad_pair_weight"), arg("grad_pair_bias"), arg("n"),
             arg("m"), arg("d"), arg("stride_n"), arg("stride_m"), arg("dtype"), arg("alpha_kind"),
             arg("num_threads") = 0,
             R"(Gradients of adaptive_fusion_forward, whose inputs come again.

grad_fused (n, m, d) and grad_alpha (alpha_out's shape, or 0) are contiguous in the descriptors' dtype. Writes
grad_descriptors (n, m, d) and either grad_alpha_in (alpha's shape) or, with a gate, grad_pair_weight and
grad_pair_bias in A; the pointers of the other choice are ignored. Bitwise the same for every number of threads.)");
  module.def("interpolation_coefficients_forward", &interpolation_coefficients_forward, arg("a"), arg("b"),
             arg("grad_b"), arg("out"), arg("n"), arg("d"), arg("epsilon"), arg("dtype"), arg("num_threads") = 0,
             R"(Closed-form interpolation coefficients (paper Eq. 6) on the CPU.

a, b, grad_b and out are (n, d), contiguous, of one dtype.)");
  module.def("interpolation_coefficients_backward", &interpolation_coefficients_backward, arg("grad_out"), arg("a"),
             arg("b"), arg("grad_b"), arg("out_grad_a"), arg("out_grad_b"), arg("out_grad_grad_b"), arg("n"), arg("d"),
             arg("epsilon"), arg("dtype"), arg("num_threads") = 0,
             R"(Gradients of interpolation_coefficients_forward for a, b and grad_b, each (n, d), contiguous.

Like torch.clamp, a gradient flows where the unclipped value is in [0, 1], bounds included, and nowhere else.)");

  module.def("build_info", &build_info, "What was compiled in, and which instruction set is in use.");
  module.def("team_size", &team_size, arg("requested"), arg("elements"),
             "Threads that a kernel touching this many elements would use.");
  module.def("set_isa", &set_isa_by_name, arg("name"),
             "Chooses the instruction set: baseline, avx2 or avx512. For tests and measurements.");
#if defined(AMUSE_WITH_CUDA)
  module.def("cuda_info", &cuda_info, "CUDA runtime and driver versions, devices, or the reason there are none.");
#endif
}
