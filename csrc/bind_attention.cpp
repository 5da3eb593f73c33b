// The binding of p2c_attention: tensors in, parameters of attention.h out.
#include "bind_attention.h"

namespace py = pybind11;

namespace amuse {
namespace {

void forward(const AttentionInputs& in, const py::object& out, const py::object& lse) {
  const AttentionForwardParams p = attention_forward_params(in, Device::cpu, out, lse);
  const py::gil_scoped_release released;
  attention_forward(p, in.num_threads);
}

void backward(const AttentionInputs& in, const py::object& grad_out, const py::object& out, const py::object& lse,
              const py::object& grad_lse, const py::object& grad_query, const std::vector<py::object>& grad_keys,
              const std::vector<py::object>& grad_values, const py::object& grad_gates) {
  const AttentionBackwardParams p = attention_backward_params(
      in, Device::cpu, grad_out, out, lse, grad_lse, grad_query, grad_keys, grad_values, grad_gates);
  const py::gil_scoped_release released;
  attention_backward(p, in.num_threads);
}

}  // namespace

void bind_attention(py::module_& module) {
  py::class_<AttentionInputs>(module, "AttentionInputs",
                              R"(Inputs of both directions of p2c_attention, tensors on the CPU.

query (B, H, Lq, D), keys and values P tensors (B, H, Lp, D), their last dim contiguous; gates (B, H, P) in A or None;
key_masks bool (B, Lp) or None, groups int64 (B, Lq) and (B, Lp), or None, all contiguous; relations 0 any, 1 same, 2
different. num_threads 0 is OpenMP's default. Packed samples: a batch of 1, offsets cu_seq_q and cu_seq_k, int32 (B + 1)
each, and the longest sequences; see attention.h.)")
      .def(py::init([](py::object query, std::vector<py::object> keys, std::vector<py::object> values, py::object gates,
                       std::vector<py::object> key_masks, py::object query_groups, std::vector<py::object> key_groups,
                       std::vector<int> relations, std::vector<bool> causal, bool joint, double softmax_scale,
                       double dropout_p, uint32_t drop_threshold, uint64_t seed, int num_threads, py::object cu_seq_q,
                       std::vector<py::object> cu_seq_k, int64_t max_q, std::vector<int64_t> max_k) {
        return AttentionInputs{query,       keys,     values,   gates,         key_masks, query_groups,   key_groups,
                               relations,   causal,   joint,    softmax_scale, dropout_p, drop_threshold, seed,
                               num_threads, cu_seq_q, cu_seq_k, max_q,         max_k};
      }));
  module.def("p2c_attention_forward", &forward, py::arg("inputs"), py::arg("out"), py::arg("lse"),
             R"(Peripheral-to-Central attention (paper Eq. 1) on the CPU.

Writes out, which has the shape of the query, and lse in A, contiguous: (B, H, Lq, P), or joint (B, H, Lq).)");
  module.def("p2c_attention_backward", &backward, py::arg("inputs"), py::arg("grad_out"), py::arg("out"),
             py::arg("lse"), py::arg("grad_lse"), py::arg("grad_query"), py::arg("grad_keys"), py::arg("grad_values"),
             py::arg("grad_gates"),
             R"(Gradients of p2c_attention_forward; out is read for joint only, grad_lse may be None.

Writes grad_query, grad_keys, grad_values and, unless it is None, grad_gates (B, H, P) in A, contiguous. Bitwise the
same for every number of threads.)");
}

}  // namespace amuse
