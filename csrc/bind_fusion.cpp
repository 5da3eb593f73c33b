// adaptive_fusion and interpolation_coefficients on the CPU.
#include "bind_fusion.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace amuse {
namespace {

// The function that Python calls: it takes the arguments of `read`, then the number of threads.
template <class Params, class... Arguments>
auto on_cpu(Params (*read)(Device, Arguments...), void (*kernel)(const Params&, int)) {
  return [=](Arguments... arguments, int num_threads) {
    const Params params = read(Device::cpu, arguments...);
    check_threads(num_threads);
    const py::gil_scoped_release released;
    kernel(params, num_threads);
  };
}

}  // namespace

void bind_fusion(py::module_& module) {
  using py::arg;
  module.def("adaptive_fusion_forward", on_cpu(&fusion_forward_params, &fusion_forward), arg("descriptors"),
             arg("alpha"), arg("pair_weight"), arg("pair_bias"), arg("present"), arg("fused"), arg("alpha_out"),
             arg("num_threads") = 0,
             R"(Adaptive fusion (paper Eq. 2) on the CPU.

descriptors (n, m, d), its last dim contiguous; everything else is contiguous. alpha is (n, m, m) or (n, m, m, d) in the
descriptors' dtype, or None with a gate: pair_weight (m * (m - 1), 2, d) and pair_bias (m * (m - 1)) in A. present is
bool (n, m) or None. Writes fused (n, m, d) and alpha_out (alpha's shape; (n, m, m) from a gate). num_threads 0 is
OpenMP's default.)");
  module.def("adaptive_fusion_backward", on_cpu(&fusion_backward_params, &fusion_backward), arg("grad_fused"),
             arg("grad_alpha"), arg("descriptors"), arg("alpha"), arg("pair_weight"), arg("pair_bias"), arg("present"),
             arg("grad_descriptors"), arg("grad_alpha_in"), arg("grad_pair_weight"), arg("grad_pair_bias"),
             arg("num_threads") = 0,
             R"(Gradients of adaptive_fusion_forward, whose inputs come again.

grad_fused (n, m, d) and grad_alpha (alpha_out's shape, or None) are contiguous in the descriptors' dtype. Writes
grad_descriptors (n, m, d) and either grad_alpha_in (alpha's shape) or, with a gate, grad_pair_weight and
grad_pair_bias in A; the tensors of the other choice are ignored. Bitwise the same for every number of threads.)");
  module.def("interpolation_coefficients_forward", on_cpu(&interpolation_forward_params, &interpolation_forward),
             arg("a"), arg("b"), arg("grad_b"), arg("out"), arg("epsilon"), arg("num_threads") = 0,
             R"(Closed-form interpolation coefficients (paper Eq. 6) on the CPU.

a, b, grad_b and out are (n, d), contiguous, of one dtype.)");
  module.def("interpolation_coefficients_backward", on_cpu(&interpolation_backward_params, &interpolation_backward),
             arg("grad_out"), arg("a"), arg("b"), arg("grad_b"), arg("out_grad_a"), arg("out_grad_b"),
             arg("out_grad_grad_b"), arg("epsilon"), arg("num_threads") = 0,
             R"(Gradients of interpolation_coefficients_forward for a, b and grad_b, each (n, d), contiguous.

Like torch.clamp, a gradient flows where the unclipped value is in [0, 1], bounds included, and nowhere else.)");
}

}  // namespace amuse
