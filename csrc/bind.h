// Shared by the binding files: checks, and reading tensors through the DLPack C exchange API (DLPack 1.3, in torch
// since 2.10), which takes 0.1 us per tensor instead of 2 us for attributes read through Python, and needs no torch.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "dtype.h"

namespace amuse {

// The C structures of dlpack.h that are needed here; that header is the authority on their layout.
struct DLDataType {
  uint8_t code, bits;
  uint16_t lanes;
  bool operator==(const DLDataType& other) const {
    return code == other.code && bits == other.bits && lanes == other.lanes;
  }
};

struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  DLDataType dtype;
  int64_t *shape, *strides;  // strides in elements
  uint64_t byte_offset;
};

struct DLPackExchangeApi {
  uint32_t major_version, minor_version;
  void *previous, *allocate, *to_managed, *from_managed;
  int (*read)(void* object, DLTensor* out);  // 0, or -1 with a Python exception set
  void* current_stream;
};

constexpr DLDataType dl_int64{0, 64, 1}, dl_int32{0, 32, 1}, dl_float32{2, 32, 1}, dl_float64{2, 64, 1},
    dl_float16{2, 16, 1}, dl_bfloat16{4, 16, 1}, dl_bool{6, 8, 1};
constexpr DLDataType dl_types[] = {dl_float32, dl_float64, dl_float16, dl_bfloat16};  // by Dtype

[[noreturn]] inline void invalid(const std::string& name, const std::string& expected, const std::string& got) {
  throw std::invalid_argument(name + ": expected " + expected + ", got " + got);
}
[[noreturn]] inline void invalid(const std::string& name, const std::string& expected, int64_t got) {
  invalid(name, expected, std::to_string(got));
}

inline void check_threads(int num_threads) {
  if (num_threads < 0) invalid("num_threads", "0 (OpenMP's default) or more", num_threads);
}

inline Dtype dtype_of(const char* name, const DLTensor& tensor) {
  for (int code = 0; code < 4; ++code) {
    if (tensor.dtype == dl_types[code]) return static_cast<Dtype>(code);
  }
  invalid(name, "a floating dtype", "another");
}

inline DLDataType accumulator(Dtype dtype) { return dtype == Dtype::float64 ? dl_float64 : dl_float32; }

enum class Device { cpu, of_first_tensor };

// Reads the tensors of one call. The results live as long as the Python tensors.
class TensorReader {
 public:
  // `tensor`: any of them, since all come from one library.
  TensorReader(pybind11::handle tensor, Device device) {
    const pybind11::object capsule = pybind11::type::handle_of(tensor).attr("__dlpack_c_exchange_api__");
    api_ = static_cast<const DLPackExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (api_ == nullptr) throw pybind11::error_already_set();
    if (api_->major_version != 1) invalid("DLPack", "version 1", api_->major_version);
    if (device == Device::of_first_tensor) {
      DLTensor t;
      if (api_->read(tensor.ptr(), &t) != 0) throw pybind11::error_already_set();
      device_type_ = t.device_type, device_id_ = t.device_id;
    }
  }

  DLTensor read(const char* name, pybind11::handle tensor) const {
    DLTensor t;
    if (api_->read(tensor.ptr(), &t) != 0) throw pybind11::error_already_set();
    if (t.device_type != device_type_ || t.device_id != device_id_) {
      invalid(
          name, "a tensor on DLPack device " + device(device_type_, device_id_), device(t.device_type, t.device_id));
    }
    t.data = static_cast<char*>(t.data) + t.byte_offset;
    if (reinterpret_cast<uintptr_t>(t.data) % (t.dtype.bits / 8u) != 0)
      invalid(name, "aligned memory", "a stray pointer");
    return t;
  }

  DLTensor read(const char* name, pybind11::handle tensor, DLDataType dtype,
                std::initializer_list<int64_t> shape) const {
    const DLTensor t = read(name, tensor);
    if (!(t.dtype == dtype)) invalid(name, "DLPack dtype " + text(dtype), text(t.dtype));
    if (t.ndim != static_cast<int32_t>(shape.size())) {
      invalid(name, std::to_string(shape.size()) + " dimensions", t.ndim);
    }
    const int64_t* size = t.shape;
    for (int64_t expected : shape) {
      if (*size++ != expected) invalid(name, "a size of " + std::to_string(expected), size[-1]);
    }
    return t;
  }

  // The memory of a contiguous tensor.
  void* dense(const char* name, pybind11::handle tensor, DLDataType dtype, std::initializer_list<int64_t> shape) const {
    const DLTensor t = read(name, tensor, dtype, shape);
    int64_t stride = 1;
    bool contiguous = true;
    for (int32_t i = t.ndim - 1; i >= 0; --i) {
      contiguous = contiguous && (t.shape[i] == 1 || t.strides[i] == stride);
      stride *= t.shape[i];
    }
    if (!contiguous && stride != 0) invalid(name, "a contiguous tensor", "another");
    return t.data;
  }

 private:
  static std::string text(DLDataType dtype) {
    return std::to_string(dtype.code) + " of " + std::to_string(dtype.bits) + " bits";
  }

  static std::string device(int32_t type, int32_t id) { return std::to_string(type) + ":" + std::to_string(id); }

  const DLPackExchangeApi* api_;
  int32_t device_type_ = 1, device_id_ = 0;  // the CPU
};

void bind_attention(pybind11::module_& module);  // bind_attention.cpp
void bind_fusion(pybind11::module_& module);     // bind_fusion.cpp
void bind_cuda(pybind11::module_& module);       // bind_cuda.cpp, where there is an nvcc

}  // namespace amuse
