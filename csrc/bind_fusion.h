// Makes the parameters of fusion.h from the tensors that Python passes. Shared by the bindings of the CPU and the CUDA
// kernels.
#pragma once

#include <cstdint>
#include <string>

#include "bind.h"
#include "fusion.h"

namespace amuse {

// Reads the arguments of both directions first, then tensors of the same shapes.
class FusionReader {
 public:
  FusionReader(FusionParams& p, Device device, const pybind11::object& descriptors, const pybind11::object& alpha,
               const pybind11::object& pair_weight, const pybind11::object& pair_bias, const pybind11::object& present)
      : p_(p), reader_(descriptors, device) {
    const DLTensor rows = reader_.read("descriptors", descriptors);
    p.dtype = dtype_of("descriptors", rows);
    if (rows.ndim != 3) invalid("descriptors", "3 dimensions", rows.ndim);
    p.n = rows.shape[0], p.m = rows.shape[1], p.d = rows.shape[2];
    if (p.m < 1 || p.m > max_modalities) {
      invalid("descriptors", "1 to " + std::to_string(max_modalities) + " modalities", p.m);
    }
    if (p.d < 1) invalid("descriptors", "a width of at least 1", p.d);
    if (p.n > 0 && p.d > 1 && rows.strides[2] != 1) {
      invalid("descriptors", "a stride of 1 in the last dimension", rows.strides[2]);
    }
    p.descriptors = rows.data, p.stride_n = rows.strides[0], p.stride_m = rows.strides[1];
    if (!present.is_none()) {
      p.present = static_cast<const uint8_t*>(reader_.dense("present", present, dl_bool, {p.n, p.m}));
    }
    if (alpha.is_none()) {
      p.alpha_kind = AlphaKind::gate;
      p.pair_weight = weight("pair_weight", pair_weight), p.pair_bias = bias("pair_bias", pair_bias);
    } else {
      const bool elementwise = reader_.read("alpha", alpha).ndim == 4;
      p.alpha_kind = elementwise ? AlphaKind::elementwise : AlphaKind::scalar;
      p.alpha = coefficients("alpha", alpha);
    }
  }

  // (n, m, d)
  void* vectors(const char* name, const pybind11::object& tensor) const {
    return reader_.dense(name, tensor, dtype(), {p_.n, p_.m, p_.d});
  }
  // (n, m, m), elementwise (n, m, m, d)
  void* coefficients(const char* name, const pybind11::object& tensor) const {
    if (p_.alpha_kind == AlphaKind::elementwise) return reader_.dense(name, tensor, dtype(), {p_.n, p_.m, p_.m, p_.d});
    return reader_.dense(name, tensor, dtype(), {p_.n, p_.m, p_.m});
  }
  // (pairs, 2, d) and (pairs), in the accumulation type
  void* weight(const char* name, const pybind11::object& tensor) const {
    return reader_.dense(name, tensor, accumulator(p_.dtype), {pairs(), 2, p_.d});
  }
  void* bias(const char* name, const pybind11::object& tensor) const {
    return reader_.dense(name, tensor, accumulator(p_.dtype), {pairs()});
  }

 private:
  DLDataType dtype() const { return dl_types[static_cast<int>(p_.dtype)]; }
  int64_t pairs() const { return p_.m * (p_.m - 1); }

  const FusionParams& p_;
  const TensorReader reader_;
};

inline FusionForwardParams fusion_forward_params(Device device, const pybind11::object& descriptors,
                                                 const pybind11::object& alpha, const pybind11::object& pair_weight,
                                                 const pybind11::object& pair_bias, const pybind11::object& present,
                                                 const pybind11::object& fused, const pybind11::object& alpha_out) {
  FusionForwardParams p{};
  const FusionReader reader(p, device, descriptors, alpha, pair_weight, pair_bias, present);
  p.fused = reader.vectors("fused", fused);
  p.alpha_out = reader.coefficients("alpha_out", alpha_out);
  return p;
}

// Gradients of an absent argument, alpha or the gate's parameters, are not read.
inline FusionBackwardParams fusion_backward_params(
    Device device, const pybind11::object& grad_fused, const pybind11::object& grad_alpha,
    const pybind11::object& descriptors, const pybind11::object& alpha, const pybind11::object& pair_weight,
    const pybind11::object& pair_bias, const pybind11::object& present, const pybind11::object& grad_descriptors,
    const pybind11::object& grad_alpha_in, const pybind11::object& grad_pair_weight,
    const pybind11::object& grad_pair_bias) {
  FusionBackwardParams p{};
  const FusionReader reader(p, device, descriptors, alpha, pair_weight, pair_bias, present);
  p.grad_fused = reader.vectors("grad_fused", grad_fused);
  if (!grad_alpha.is_none()) p.grad_alpha = reader.coefficients("grad_alpha", grad_alpha);
  p.grad_descriptors = reader.vectors("grad_descriptors", grad_descriptors);
  if (p.alpha_kind == AlphaKind::gate) {
    p.grad_pair_weight = reader.weight("grad_pair_weight", grad_pair_weight);
    p.grad_pair_bias = reader.bias("grad_pair_bias", grad_pair_bias);
  } else {
    p.grad_alpha_in = reader.coefficients("grad_alpha_in", grad_alpha_in);
  }
  return p;
}

// Reads tensors (n, d) of one dtype; the first decides shape and dtype.
template <class Params>
class InterpolationReader {
 public:
  InterpolationReader(Params& p, Device device, const pybind11::object& a, double epsilon) : p_(p), reader_(a, device) {
    const DLTensor rows = reader_.read("a", a);
    p.dtype = dtype_of("a", rows);
    if (rows.ndim != 2) invalid("a", "2 dimensions", rows.ndim);
    p.n = rows.shape[0], p.d = rows.shape[1], p.epsilon = epsilon;
    if (p.d < 1) invalid("a", "a width of at least 1", p.d);
  }

  void* operator()(const char* name, const pybind11::object& tensor) const {
    return reader_.dense(name, tensor, dl_types[static_cast<int>(p_.dtype)], {p_.n, p_.d});
  }

 private:
  const Params& p_;
  const TensorReader reader_;
};

inline InterpolationForwardParams interpolation_forward_params(Device device, const pybind11::object& a,
                                                               const pybind11::object& b,
                                                               const pybind11::object& grad_b,
                                                               const pybind11::object& out, double epsilon) {
  InterpolationForwardParams p{};
  const InterpolationReader read(p, device, a, epsilon);
  p.a = read("a", a), p.b = read("b", b), p.grad = read("grad_b", grad_b), p.out = read("out", out);
  return p;
}

inline InterpolationBackwardParams interpolation_backward_params(
    Device device, const pybind11::object& grad_out, const pybind11::object& a, const pybind11::object& b,
    const pybind11::object& grad_b, const pybind11::object& out_grad_a, const pybind11::object& out_grad_b,
    const pybind11::object& out_grad_grad_b, double epsilon) {
  InterpolationBackwardParams p{};
  const InterpolationReader read(p, device, a, epsilon);
  p.grad_out = read("grad_out", grad_out), p.a = read("a", a), p.b = read("b", b), p.grad = read("grad_b", grad_b);
  p.grad_a = read("out_grad_a", out_grad_a), p.grad_b = read("out_grad_b", out_grad_b);
  p.grad_grad = read("out_grad_grad_b", out_grad_grad_b);
  return p;
}

}  // namespace amuse
