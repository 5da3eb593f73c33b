// 16-bit storage, observed through the fusion kernel: every code, ties, subnormals and overflow.
#include "../fusion.h"
#include "check.h"

using namespace amuse;
using namespace amuse::tests;

namespace {

// A lone modality passes unchanged, so each code is widened and narrowed once.
void test_every_code_survives(Dtype dtype) {
  constexpr int64_t codes = 65536, d = 16;
  Data in(dtype, codes), out(dtype, codes), alpha_in(dtype, codes / d), alpha(dtype, codes / d);
  for (int64_t i = 0; i < codes; ++i) {
    const uint16_t code = static_cast<uint16_t>(i);
    std::memcpy(in.bytes.data() + 2 * i, &code, 2);
  }
  FusionForwardParams p{};
  p.dtype = dtype, p.alpha_kind = AlphaKind::scalar;
  p.n = codes / d, p.m = 1, p.d = d, p.stride_n = d, p.stride_m = d;
  p.descriptors = in.data(), p.alpha = alpha_in.data(), p.fused = out.data(), p.alpha_out = alpha.data();
  fusion_forward(p, 1);
  for (int64_t i = 0; i < codes; ++i) {
    if (std::isnan(decode(dtype, static_cast<uint16_t>(i)))) {
      CHECK(std::isnan(out.get(i)));
    } else {
      CHECK(std::memcmp(in.bytes.data() + 2 * i, out.bytes.data() + 2 * i, 2) == 0);
    }
  }
}

// With alpha 1/2 and two modalities, fused_0 is a quarter of their sum: for neighbouring codes it is often a tie.
void test_rounding_to_nearest_even(Dtype dtype) {
  std::mt19937 random(3);
  constexpr int64_t n = 4096, d = 16;
  Data x(dtype, n * 2 * d), fused(dtype, n * 2 * d), given(dtype, n * 4), alpha(dtype, n * 4);
  const int largest = dtype == Dtype::float16 ? 0x7bff : 0x7f7f;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < d; ++k) {
      const int code = static_cast<int>(random() % static_cast<unsigned>(largest));
      const int other = code + (random() % 2 ? 1 : 0);
      const uint16_t first = static_cast<uint16_t>(code | (random() % 2 ? 0x8000 : 0));
      const uint16_t second = static_cast<uint16_t>((first & 0x8000) | other);
      std::memcpy(x.bytes.data() + 2 * ((i * 2 + 0) * d + k), &first, 2);
      std::memcpy(x.bytes.data() + 2 * ((i * 2 + 1) * d + k), &second, 2);
    }
    for (int64_t j = 0; j < 4; ++j) given.set(i * 4 + j, 0.5);
  }
  FusionForwardParams p{};
  p.dtype = dtype, p.alpha_kind = AlphaKind::scalar;
  p.n = n, p.m = 2, p.d = d, p.stride_n = 2 * d, p.stride_m = d;
  p.descriptors = x.data(), p.alpha = given.data(), p.fused = fused.data(), p.alpha_out = alpha.data();
  fusion_forward(p, 1);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < d; ++k) {
      const double mean = 0.25 * x.get(i * 2 * d + k) + 0.25 * x.get((i * 2 + 1) * d + k);
      const float exact = static_cast<float>(mean);
      if (static_cast<double>(exact) != mean) continue;  // below float's subnormals
      const uint16_t expected = encode(dtype, mean);
      CHECK(std::memcmp(fused.bytes.data() + 2 * (i * 2 * d + k), &expected, 2) == 0);
    }
  }
}

// Sums beyond the largest finite number become infinity, not NaN and not the largest number.
void test_overflow_is_infinity(Dtype dtype) {
  const double largest = decode(dtype, dtype == Dtype::float16 ? 0x7bff : 0x7f7f);
  Data x(dtype, 3 * 16), given(dtype, 9), fused(dtype, 3 * 16), alpha(dtype, 9);
  for (int64_t k = 0; k < 3 * 16; ++k) x.set(k, k < 16 ? largest : -largest);
  // alpha outside [0, 1] is the caller's business; here it amplifies.
  for (int64_t j = 0; j < 9; ++j) given.set(j, -2);
  FusionForwardParams p{};
  p.dtype = dtype, p.alpha_kind = AlphaKind::scalar;
  p.n = 1, p.m = 3, p.d = 16, p.stride_n = 48, p.stride_m = 16;
  p.descriptors = x.data(), p.alpha = given.data(), p.fused = fused.data(), p.alpha_out = alpha.data();
  fusion_forward(p, 1);
  CHECK(std::isinf(fused.get(0)) && fused.get(0) > 0);
  CHECK(std::isinf(fused.get(16)) && fused.get(16) < 0);
}

}  // namespace

int main(int count, char** arguments) {
  choose_isa(count, arguments);
  for (Dtype dtype : {Dtype::float16, Dtype::bfloat16}) {
    test_every_code_survives(dtype);
    test_rounding_to_nearest_even(dtype);
    test_overflow_is_infinity(dtype);
  }
  return 0;
}
