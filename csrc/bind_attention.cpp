// The binding of p2c_attention: tensors in, parameters of attention.h out.
#include "attention.h"

#include <pybind11/stl.h>

#include <vector>

#include "bind.h"

namespace py = pybind11;

namespace amuse {
namespace {

struct AttentionInputs {
  py::object query;
  std::vector<py::object> keys, values;
  py::object gates;
  std::vector<py::object> key_masks;
  py::object query_groups;
  std::vector<py::object> key_groups;
  std::vector<int> relations;
  std::vector<bool> causal;
  bool joint;
  double softmax_scale, dropout_p;
  uint32_t drop_threshold;
  uint64_t seed;
  int num_threads;
};

Dtype dtype_of(const DLTensor& query) {
  for (int code = 0; code < 4; ++code) {
    if (query.dtype == dl_types[code]) return static_cast<Dtype>(code);
  }
  invalid("query", "a floating dtype", "another");
}

DLDataType accumulator(Dtype dtype) { return dtype == Dtype::float64 ? dl_float64 : dl_float32; }

void check_count(const char* name, size_t count, size_t sources) {
  if (count != sources) invalid(name, std::to_string(sources) + " entries", static_cast<int64_t>(count));
}

class AttentionReader {
 public:
  AttentionReader(const AttentionInputs& in, AttentionParams& p) : in_(in), p_(p), reader_(in.query) {
    check_threads(in.num_threads);
    const DLTensor query = reader_.read("query", in.query);
    p.dtype = dtype_of(query);
    if (query.ndim != 4) invalid("query", "4 dimensions", query.ndim);
    p.b = query.shape[0], p.h = query.shape[1], p.lq = query.shape[2], p.d = query.shape[3];
    if (p.d < 8 || p.d > 256 || p.d % 8 != 0) invalid("query", "a head dim that is a multiple of 8 from 8 to 256", p.d);
    p.query = rows("query", in.query, p.lq);
    p.joint = in.joint, p.softmax_scale = in.softmax_scale;
    p.dropout_p = in.dropout_p, p.drop_threshold = in.drop_threshold, p.seed = in.seed;
    const size_t sources = in.keys.size();
    if (sources < 1 || sources > max_sources) invalid("keys", "1 to 8 sources", static_cast<int64_t>(sources));
    p.sources = static_cast<int64_t>(sources);
    check_count("values", in.values.size(), sources);
    check_count("key_masks", in.key_masks.size(), sources);
    check_count("key_groups", in.key_groups.size(), sources);
    check_count("relations", in.relations.size(), sources);
    check_count("causal", in.causal.size(), sources);
    for (size_t s = 0; s < sources; ++s) read_source(s);
    if (!in.gates.is_none()) {
      const DLTensor gates = reader_.read("gates", in.gates, accumulator(p.dtype), {p.b, p.h, p.sources});
      p.gates = gates.data;
      p.gate_stride_b = gates.strides[0], p.gate_stride_h = gates.strides[1], p.gate_stride_p = gates.strides[2];
    }
  }

  // (B, H, length, D)
  AttentionTensor rows(const char* name, const py::object& tensor, int64_t length) const {
    const DLTensor t = reader_.read(name, tensor, dl_types[static_cast<int>(p_.dtype)], {p_.b, p_.h, length, p_.d});
    const bool empty = p_.b == 0 || p_.h == 0 || length == 0;
    if (!empty && t.strides[3] != 1) invalid(name, "a stride of 1 in the last dimension", t.strides[3]);
    return {t.data, t.strides[0], t.strides[1], t.strides[2]};
  }

  void* dense(const char* name, const py::object& tensor, DLDataType dtype,
              std::initializer_list<int64_t> shape) const {
    const DLTensor t = reader_.read(name, tensor, dtype, shape);
    int64_t stride = 1;
    bool contiguous = true;
    for (int32_t i = t.ndim - 1; i >= 0; --i) {
      contiguous = contiguous && (t.shape[i] == 1 || t.strides[i] == stride);
      stride *= t.shape[i];
    }
    if (!contiguous && stride != 0) invalid(name, "a contiguous tensor", "another");
    return t.data;
  }

  // In the accumulation type: (B, H, Lq, P), or (B, H, Lq) for joint.
  void* lse(const char* name, const py::object& tensor) const {
    const DLDataType dtype = accumulator(p_.dtype);
    return p_.joint ? dense(name, tensor, dtype, {p_.b, p_.h, p_.lq})
                    : dense(name, tensor, dtype, {p_.b, p_.h, p_.lq, p_.sources});
  }

 private:
  void read_source(size_t s) {
    AttentionSource& source = p_.source[s];
    const DLTensor key = reader_.read("keys", in_.keys[s]);
    source.length = key.ndim == 4 ? key.shape[2] : 0;
    if (source.length >= INT32_MAX) invalid("keys", "fewer than 2^31 - 1", source.length);
    source.key = rows("keys", in_.keys[s], source.length);
    source.value = rows("values", in_.values[s], source.length);
    if (!in_.key_masks[s].is_none()) {
      source.mask = static_cast<const uint8_t*>(dense("key_masks", in_.key_masks[s], dl_bool, {p_.b, source.length}));
    }
    if (in_.relations[s] < 0 || in_.relations[s] > 2) invalid("relations", "0, 1 or 2", in_.relations[s]);
    source.relation = static_cast<Relation>(in_.relations[s]);
    source.causal = in_.causal[s];
    if (source.relation != Relation::any) {
      p_.query_groups = static_cast<const int64_t*>(dense("query_groups", in_.query_groups, dl_int64, {p_.b, p_.lq}));
      source.groups =
          static_cast<const int64_t*>(dense("key_groups", in_.key_groups[s], dl_int64, {p_.b, source.length}));
    }
  }

  const AttentionInputs& in_;
  AttentionParams& p_;
  const TensorReader reader_;
};

void forward(const AttentionInputs& in, const py::object& out, const py::object& lse) {
  AttentionForwardParams p{};
  const AttentionReader reader(in, p);
  p.out = reader.rows("out", out, p.lq);
  p.lse = reader.lse("lse", lse);
  const py::gil_scoped_release released;
  attention_forward(p, in.num_threads);
}

void backward(const AttentionInputs& in, const py::object& grad_out, const py::object& out, const py::object& lse,
              const py::object& grad_lse, const py::object& grad_query, const std::vector<py::object>& grad_keys,
              const std::vector<py::object>& grad_values, const py::object& grad_gates) {
  AttentionBackwardParams p{};
  const AttentionReader reader(in, p);
  p.grad_out = reader.rows("grad_out", grad_out, p.lq);
  if (p.joint) p.out = reader.rows("out", out, p.lq);
  p.lse = reader.lse("lse", lse);
  if (!grad_lse.is_none()) p.grad_lse = reader.lse("grad_lse", grad_lse);
  p.grad_query = reader.rows("grad_query", grad_query, p.lq);
  check_count("grad_keys", grad_keys.size(), in.keys.size());
  check_count("grad_values", grad_values.size(), in.keys.size());
  for (size_t s = 0; s < in.keys.size(); ++s) {
    p.grad_key[s] = reader.rows("grad_keys", grad_keys[s], p.source[s].length);
    p.grad_value[s] = reader.rows("grad_values", grad_values[s], p.source[s].length);
  }
  if (!grad_gates.is_none()) {
    p.grad_gates = reader.dense("grad_gates", grad_gates, accumulator(p.dtype), {p.b, p.h, p.sources});
  }
  const py::gil_scoped_release released;
  attention_backward(p, in.num_threads);
}

}  // namespace

void bind_attention(py::module_& module) {
  py::class_<AttentionInputs>(module, "AttentionInputs",
                              R"(Inputs of both directions of p2c_attention, tensors on the CPU.

query (B, H, Lq, D), keys and values P tensors (B, H, Lp, D), their last dim contiguous; gates (B, H, P) in A or None;
key_masks bool (B, Lp) or None, groups int64 (B, Lq) and (B, Lp), or None, all contiguous; relations 0 any, 1 same, 2
different. num_threads 0 is OpenMP's default.)")
      .def(py::init([](py::object query, std::vector<py::object> keys, std::vector<py::object> values, py::object gates,
                       std::vector<py::object> key_masks, py::object query_groups, std::vector<py::object> key_groups,
                       std::vector<int> relations, std::vector<bool> causal, bool joint, double softmax_scale,
                       double dropout_p, uint32_t drop_threshold, uint64_t seed, int num_threads) {
        return AttentionInputs{query, keys, values, gates, key_masks, query_groups, key_groups, relations, causal,
                               joint, softmax_scale, dropout_p, drop_threshold, seed, num_threads};
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
