// Shared by the C++ tests: choosing the instruction set, comparing with a tolerance, storing test data in a dtype.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../cpu/runtime.h"
#include "../dtype.h"

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                \
    }                                                                              \
  } while (false)

namespace amuse::tests {

constexpr Dtype dtypes[] = {Dtype::float32, Dtype::float64, Dtype::float16, Dtype::bfloat16};

inline void choose_isa(int count, char** arguments) {
  const std::string wanted = count > 1 ? arguments[1] : "baseline";
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (wanted != isa_name(isa)) continue;
    if (!isa_available(isa)) std::exit(77);
    set_isa(isa);
    return;
  }
  std::fprintf(stderr, "unknown instruction set %s\n", wanted.c_str());
  std::exit(1);
}

inline size_t item_size(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }
inline Dtype accumulator(Dtype dtype) { return dtype == Dtype::float64 ? Dtype::float64 : Dtype::float32; }

// Conversions written the slow and obvious way, independent of csrc/cpu/half.h.
inline double decode16(uint16_t bits, int exponent_bits, int mantissa_bits) {
  const double sign = bits & 0x8000 ? -1 : 1;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits & 0x7fff) >> mantissa_bits;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  if (exponent == (1 << exponent_bits) - 1) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}
inline double decode(Dtype dtype, uint16_t bits) {
  return dtype == Dtype::float16 ? decode16(bits, 5, 10) : decode16(bits, 8, 7);
}

// Nearest 16-bit number to a finite value, by bisection over the ordered positive codes; ties go to the even code.
inline uint16_t encode(Dtype dtype, double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return 0x7fff;
  const double magnitude = std::fabs(value);
  int low = 0, high = dtype == Dtype::float16 ? 0x7bff : 0x7f7f;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    (decode(dtype, static_cast<uint16_t>(middle)) <= magnitude ? low : high) =
        decode(dtype, static_cast<uint16_t>(middle)) <= magnitude ? middle : middle - 1;
  }
  const double below = decode(dtype, static_cast<uint16_t>(low));
  // Beyond the largest finite number, values count as if there were a larger exponent, then round to infinity.
  const double step = below - decode(dtype, static_cast<uint16_t>(low - (low > 0)));
  const int limit = dtype == Dtype::float16 ? 0x7bff : 0x7f7f;
  const double above = low == limit ? below + step : decode(dtype, static_cast<uint16_t>(low + 1));
  const double to_below = magnitude - below, to_above = above - magnitude;
  const bool up = to_above < to_below || (to_above == to_below && (low & 1));
  return static_cast<uint16_t>(sign | (low + (up ? 1 : 0)));
}

// A tensor: values in double for the reference, the same values stored in the dtype for the kernel.
struct Data {
  Dtype dtype;
  std::vector<unsigned char> bytes;

  Data(Dtype type, size_t count) : dtype(type), bytes(count * amuse::tests::item_size(type), 0xff) {}  // all NaN

  void* data() { return bytes.data(); }
  size_t size() const { return bytes.size() / item_size(dtype); }

  double get(size_t i) const {
    if (dtype == Dtype::float64) return read<double>(i);
    if (dtype == Dtype::float32) return read<float>(i);
    return decode(dtype, read<uint16_t>(i));
  }
  void set(size_t i, double value) {
    if (dtype == Dtype::float64) return write(i, value);
    if (dtype == Dtype::float32) return write(i, static_cast<float>(value));
    write(i, encode(dtype, value));
  }
  std::vector<double> values() const {
    std::vector<double> result(size());
    for (size_t i = 0; i < result.size(); ++i) result[i] = get(i);
    return result;
  }

 private:
  template <class T>
  T read(size_t i) const {
    T value;
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
    return value;
  }
  template <class T>
  void write(size_t i, T value) {
    std::memcpy(bytes.data() + i * sizeof(T), &value, sizeof(T));
  }
};

inline Data uniform_data(Dtype dtype, size_t count, std::mt19937& random, double low = -1, double high = 1) {
  std::uniform_real_distribution<double> uniform(low, high);
  Data data(dtype, count);
  for (size_t i = 0; i < count; ++i) data.set(i, uniform(random));
  return data;
}

inline double tolerance(Dtype dtype) {
  switch (dtype) {
    case Dtype::float64: return 1e-13;
    case Dtype::float32: return 2e-5;
    case Dtype::float16: return 2e-3;
    default: return 1.6e-2;
  }
}

inline void check_close(const char* what, const Data& got, const std::vector<double>& expected, Dtype precision) {
  CHECK(got.size() == expected.size());
  double scale = 1;
  for (double value : expected) scale = std::fmax(scale, std::fabs(value));
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!(std::fabs(got.get(i) - expected[i]) <= tolerance(precision) * scale)) {
      std::fprintf(stderr, "%s[%zu], dtype %d: got %.9g, expected %.9g\n", what, i, static_cast<int>(precision),
                   got.get(i), expected[i]);
      std::exit(1);
    }
  }
}

}  // namespace amuse::tests
