// Makes the parameters of attention.h from tensors. Shared by the bindings of the CPU and the CUDA kernels.
#pragma once

#include <pybind11/stl.h>

#include <vector>

#include "attention.h"
#include "bind.h"

namespace amuse {

struct AttentionInputs {
  pybind11::object query;
  std::vector<pybind11::object> keys, values;
  pybind11::object gates;
  std::vector<pybind11::object> key_masks;
  pybind11::object query_groups;
  std::vector<pybind11::object> key_groups;
  std::vector<int> relations;
  std::vector<bool> causal;
  bool joint;
  double softmax_scale, dropout_p;
  uint32_t drop_threshold;
  uint64_t seed;
  int num_threads;
  pybind11::object cu_seq_q;  // None unless samples are packed
  std::vector<pybind11::object> cu_seq_k;
  int64_t max_q;
  std::vector<int64_t> max_k;
};

inline void check_count(const char* name, size_t count, size_t sources) {
  if (count != sources) invalid(name, std::to_string(sources) + " entries", static_cast<int64_t>(count));
}

class AttentionReader {
 public:
  AttentionReader(const AttentionInputs& in, AttentionParams& p, Device device)
      : in_(in), p_(p), on_cpu_(device == Device::cpu), packed_(!in.cu_seq_q.is_none()), reader_(in.query, device) {
    check_threads(in.num_threads);
    const DLTensor query = reader_.read("query", in.query);
    p.dtype = dtype_of("query", query);
    if (query.ndim != 4) invalid("query", "4 dimensions", query.ndim);
    p.b = query.shape[0], p.h = query.shape[1], p.lq = query.shape[2], p.d = query.shape[3];
    if (p.d < 8 || p.d > 256 || p.d % 8 != 0) invalid("query", "a head dim that is a multiple of 8 from 8 to 256", p.d);
    tokens_q_ = p.lq;
    if (packed_) {
      const DLTensor cu_seq = reader_.read("cu_seq_q", in.cu_seq_q);
      if (p.b != 1 || cu_seq.ndim != 1 || cu_seq.shape[0] < 1) invalid("cu_seq_q", "(B + 1,) offsets", "others");
      p.b = cu_seq.shape[0] - 1, p.lq = in.max_q, p.tokens_q = tokens_q_;
      p.cu_seq_q = offsets("cu_seq_q", in.cu_seq_q, tokens_q_, p.lq);
    }
    p.query = query_rows("query", in.query);
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
    if (packed_) {
      check_count("cu_seq_k", in.cu_seq_k.size(), sources);
      check_count("max_k", in.max_k.size(), sources);
    }
    for (size_t s = 0; s < sources; ++s) read_source(s);
    if (!in.gates.is_none()) {
      const DLTensor gates = reader_.read("gates", in.gates, accumulator(p.dtype), {p.b, p.h, p.sources});
      p.gates = gates.data;
      p.gate_stride_b = gates.strides[0], p.gate_stride_h = gates.strides[1], p.gate_stride_p = gates.strides[2];
    }
  }

  // (B, H, tokens, D) with the tokens of the queries or of source s.
  AttentionTensor query_rows(const char* name, const pybind11::object& tensor) const {
    return rows(name, tensor, tokens_q_);
  }
  AttentionTensor key_rows(const char* name, const pybind11::object& tensor, size_t s) const {
    return rows(name, tensor, tokens_k_[s]);
  }

  // In the accumulation type: (B, H, P), contiguous.
  void* gates(const char* name, const pybind11::object& tensor) const {
    return reader_.dense(name, tensor, accumulator(p_.dtype), {p_.b, p_.h, p_.sources});
  }

  // In the accumulation type: (B, H, Lq, P), or (B, H, Lq) for joint.
  void* lse(const char* name, const pybind11::object& tensor) const {
    const DLDataType dtype = accumulator(p_.dtype);
    return p_.joint ? reader_.dense(name, tensor, dtype, {batch(), p_.h, tokens_q_})
                    : reader_.dense(name, tensor, dtype, {batch(), p_.h, tokens_q_, p_.sources});
  }

 private:
  int64_t batch() const { return packed_ ? 1 : p_.b; }

  AttentionTensor rows(const char* name, const pybind11::object& tensor, int64_t tokens) const {
    const DLTensor t = reader_.read(name, tensor, dl_types[static_cast<int>(p_.dtype)], {batch(), p_.h, tokens, p_.d});
    const bool empty = p_.b == 0 || p_.h == 0 || tokens == 0;
    if (!empty && t.strides[3] != 1) invalid(name, "a stride of 1 in the last dimension", t.strides[3]);
    return {t.data, packed_ ? 0 : t.strides[0], t.strides[1], t.strides[2]};
  }

  // Offsets of B samples. On the CPU, where this may be the first check, those outside of the tensor are refused.
  const int32_t* offsets(const char* name, const pybind11::object& tensor, int64_t tokens, int64_t longest) const {
    const auto* cu_seq = static_cast<const int32_t*>(reader_.dense(name, tensor, dl_int32, {p_.b + 1}));
    if (longest < 0) invalid(name, "a maximum of 0 or more", longest);
    if (!on_cpu_) return cu_seq;
    bool fits = cu_seq[0] == 0 && cu_seq[p_.b] == tokens;
    for (int64_t b = 0; b < p_.b; ++b) {
      const int64_t length = int64_t{cu_seq[b + 1]} - cu_seq[b];
      fits = fits && length >= 0 && length <= longest;
    }
    if (!fits) {
      invalid(name, "offsets that rise from 0 to " + std::to_string(tokens) + " by at most " + std::to_string(longest),
              "others");
    }
    return cu_seq;
  }

  void read_source(size_t s) {
    AttentionSource& source = p_.source[s];
    const DLTensor key = reader_.read("keys", in_.keys[s]);
    const int64_t tokens = key.ndim == 4 ? key.shape[2] : 0;
    if (tokens >= INT32_MAX) invalid("keys", "fewer than 2^31 - 1", tokens);
    tokens_k_[s] = source.length = tokens;
    if (packed_) {
      source.length = in_.max_k[s];
      source.cu_seq = offsets("cu_seq_k", in_.cu_seq_k[s], tokens, source.length);
    }
    source.key = key_rows("keys", in_.keys[s], s);
    source.value = key_rows("values", in_.values[s], s);
    if (!in_.key_masks[s].is_none()) {
      if (packed_) invalid("key_masks", "None where samples are packed", "a mask");
      source.mask = static_cast<const uint8_t*>(reader_.dense("key_masks", in_.key_masks[s], dl_bool, {p_.b, tokens}));
    }
    if (in_.relations[s] < 0 || in_.relations[s] > 2) invalid("relations", "0, 1 or 2", in_.relations[s]);
    source.relation = static_cast<Relation>(in_.relations[s]);
    source.causal = in_.causal[s];
    if (source.relation != Relation::any) {
      p_.query_groups =
          static_cast<const int64_t*>(reader_.dense("query_groups", in_.query_groups, dl_int64, {batch(), tokens_q_}));
      source.groups =
          static_cast<const int64_t*>(reader_.dense("key_groups", in_.key_groups[s], dl_int64, {batch(), tokens}));
    }
  }

  const AttentionInputs& in_;
  AttentionParams& p_;
  const bool on_cpu_, packed_;
  const TensorReader reader_;
  int64_t tokens_q_ = 0, tokens_k_[max_sources] = {};  // tokens of each batch entry
};

inline AttentionForwardParams attention_forward_params(const AttentionInputs& in, Device device,
                                                       const pybind11::object& out, const pybind11::object& lse) {
  AttentionForwardParams p{};
  const AttentionReader reader(in, p, device);
  p.out = reader.query_rows("out", out);
  p.lse = reader.lse("lse", lse);
  return p;
}

inline AttentionBackwardParams attention_backward_params(const AttentionInputs& in, Device device,
                                                         const pybind11::object& grad_out, const pybind11::object& out,
                                                         const pybind11::object& lse, const pybind11::object& grad_lse,
                                                         const pybind11::object& grad_query,
                                                         const std::vector<pybind11::object>& grad_keys,
                                                         const std::vector<pybind11::object>& grad_values,
                                                         const pybind11::object& grad_gates) {
  AttentionBackwardParams p{};
  const AttentionReader reader(in, p, device);
  p.grad_out = reader.query_rows("grad_out", grad_out);
  if (p.joint) p.out = reader.query_rows("out", out);
  p.lse = reader.lse("lse", lse);
  if (!grad_lse.is_none()) p.grad_lse = reader.lse("grad_lse", grad_lse);
  p.grad_query = reader.query_rows("grad_query", grad_query);
  check_count("grad_keys", grad_keys.size(), in.keys.size());
  check_count("grad_values", grad_values.size(), in.keys.size());
  for (size_t s = 0; s < in.keys.size(); ++s) {
    p.grad_key[s] = reader.key_rows("grad_keys", grad_keys[s], s);
    p.grad_value[s] = reader.key_rows("grad_values", grad_values[s], s);
  }
  if (!grad_gates.is_none()) {
    p.grad_gates = reader.gates("grad_gates", grad_gates);
  }
  return p;
}

}  // namespace amuse
