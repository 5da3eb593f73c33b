// Adaptive fusion against Eq. 2 written naively in double.
#include "../fusion.h"

#include "check.h"

using namespace amuse;
using namespace amuse::tests;

namespace {

struct Case {
  Dtype dtype;
  AlphaKind kind;
  int64_t n, m, d;
  bool masked;
};

struct Problem {
  Case c;
  int64_t pairs, stride_n, stride_m, alphas;
  Data f, alpha, weight, bias, grad_fused, grad_alpha;
  std::vector<uint8_t> present;
  bool valid(int64_t i, int64_t m, int64_t n) const { return m != n && here(i, m) && here(i, n); }
  bool here(int64_t i, int64_t m) const { return !c.masked || present[i * c.m + m] != 0; }

  explicit Problem(const Case& given, std::mt19937& random)
      : c(given),
        pairs(c.m * (c.m - 1)),
        stride_n(c.m * (c.d + 1) + 2),
        stride_m(c.d + 1),
        alphas(c.kind == AlphaKind::elementwise ? c.d : 1),
        f(uniform_data(c.dtype, c.n * stride_n, random)),
        alpha(uniform_data(c.dtype, c.n * c.m * c.m * alphas, random, 0, 1)),
        weight(uniform_data(accumulator(c.dtype), pairs * 2 * c.d, random)),
        bias(uniform_data(accumulator(c.dtype), pairs, random)),
        grad_fused(uniform_data(c.dtype, c.n * c.m * c.d, random)),
        grad_alpha(uniform_data(c.dtype, c.n * c.m * c.m * alphas, random)),
        present(c.n * c.m) {
    for (auto& p : present) p = random() % 3 != 0;
    // NaN wherever the value must not matter.
    for (int64_t i = 0; i < c.n; ++i) {
      for (int64_t m = 0; m < c.m; ++m) {
        for (int64_t k = 0; k < c.d && !here(i, m); ++k) {
          f.set(i * stride_n + m * stride_m + k, NAN);
          grad_fused.set((i * c.m + m) * c.d + k, NAN);
        }
        for (int64_t n = 0; n < c.m; ++n) {
          for (int64_t k = 0; k < alphas && !valid(i, m, n); ++k) {
            alpha.set(((i * c.m + m) * c.m + n) * alphas + k, NAN);
            grad_alpha.set(((i * c.m + m) * c.m + n) * alphas + k, NAN);
          }
        }
      }
    }
  }
};

struct Result {
  Data fused, alpha_out, grad_f, grad_alpha, grad_weight, grad_bias;
  explicit Result(const Problem& p)
      : fused(p.c.dtype, p.c.n * p.c.m * p.c.d),
        alpha_out(p.c.dtype, p.alpha.size()),
        grad_f(p.c.dtype, fused.size()),
        grad_alpha(p.c.dtype, p.alpha.size()),
        grad_weight(accumulator(p.c.dtype), p.weight.size()),
        grad_bias(accumulator(p.c.dtype), p.bias.size()) {}
};

void fill(FusionParams& params, Problem& p) {
  params.dtype = p.c.dtype, params.alpha_kind = p.c.kind;
  params.n = p.c.n, params.m = p.c.m, params.d = p.c.d;
  params.stride_n = p.stride_n, params.stride_m = p.stride_m;
  params.descriptors = p.f.data();
  params.alpha = p.alpha.data();
  params.pair_weight = p.weight.data(), params.pair_bias = p.bias.data();
  params.present = p.c.masked ? p.present.data() : nullptr;
}

Result run(Problem& p, int threads) {
  Result r(p);
  FusionForwardParams forward{};
  fill(forward, p);
  forward.fused = r.fused.data(), forward.alpha_out = r.alpha_out.data();
  fusion_forward(forward, threads);
  FusionBackwardParams backward{};
  fill(backward, p);
  backward.grad_fused = p.grad_fused.data(), backward.grad_alpha = p.grad_alpha.data();
  backward.grad_descriptors = r.grad_f.data(), backward.grad_alpha_in = r.grad_alpha.data();
  backward.grad_pair_weight = r.grad_weight.data(), backward.grad_pair_bias = r.grad_bias.data();
  fusion_backward(backward, threads);
  return r;
}

struct Expected {
  std::vector<double> fused, alpha, grad_f, grad_alpha, grad_weight, grad_bias;
};

Expected naive(const Problem& p) {
  const Case& c = p.c;
  Expected e{std::vector<double>(c.n * c.m * c.d), std::vector<double>(p.alpha.size()),
             std::vector<double>(c.n * c.m * c.d), std::vector<double>(p.alpha.size()),
             std::vector<double>(p.weight.size()), std::vector<double>(p.bias.size())};
  const auto f = [&](int64_t i, int64_t m, int64_t k) { return p.f.get(i * p.stride_n + m * p.stride_m + k); };
  for (int64_t i = 0; i < c.n; ++i) {
    int64_t size = 0;
    for (int64_t m = 0; m < c.m; ++m) size += p.here(i, m);
    for (int64_t m = 0; m < c.m; ++m) {
      const int64_t row = (i * c.m + m) * c.d;
      if (size == 1 && p.here(i, m)) {
        for (int64_t k = 0; k < c.d; ++k) e.fused[row + k] = f(i, m, k), e.grad_f[row + k] = p.grad_fused.get(row + k);
      }
      for (int64_t n = 0; n < c.m; ++n) {
        if (!p.valid(i, m, n)) continue;
        const int64_t pair = m * (c.m - 1) + (n < m ? n : n - 1), other = (i * c.m + n) * c.d;
        const int64_t entry = (i * c.m + m) * c.m + n;
        double logit = c.kind == AlphaKind::gate ? p.bias.get(pair) : 0;
        for (int64_t k = 0; k < c.d && c.kind == AlphaKind::gate; ++k) {
          logit += p.weight.get(pair * 2 * c.d + k) * f(i, m, k) + p.weight.get((pair * 2 + 1) * c.d + k) * f(i, n, k);
        }
        const double gate = 1 / (1 + std::exp(-logit));
        double grad_alpha = c.kind == AlphaKind::elementwise ? 0 : p.grad_alpha.get(entry);
        for (int64_t k = 0; k < c.d; ++k) {
          const int64_t a = c.kind == AlphaKind::elementwise ? entry * c.d + k : entry;
          const double alpha = c.kind == AlphaKind::gate ? gate : p.alpha.get(a);
          const double g = p.grad_fused.get(row + k) / size, difference = f(i, n, k) - f(i, m, k);
          e.alpha[a] = alpha;
          e.fused[row + k] += (alpha * f(i, n, k) + (1 - alpha) * f(i, m, k)) / size;
          e.grad_f[row + k] += g * (1 - alpha);
          e.grad_f[other + k] += g * alpha;
          grad_alpha += g * difference;
          if (c.kind == AlphaKind::elementwise) e.grad_alpha[a] = g * difference + p.grad_alpha.get(a);
        }
        if (c.kind == AlphaKind::scalar) e.grad_alpha[entry] = grad_alpha;
        if (c.kind != AlphaKind::gate) continue;
        const double grad_logit = grad_alpha * gate * (1 - gate);
        e.grad_bias[pair] += grad_logit;
        for (int64_t k = 0; k < c.d; ++k) {
          const int64_t left = pair * 2 * c.d + k, right = left + c.d;
          e.grad_f[row + k] += grad_logit * p.weight.get(left);
          e.grad_f[other + k] += grad_logit * p.weight.get(right);
          e.grad_weight[left] += grad_logit * f(i, m, k);
          e.grad_weight[right] += grad_logit * f(i, n, k);
        }
      }
    }
  }
  return e;
}

void check_case(const Case& c) {
  std::mt19937 random(static_cast<unsigned>(c.n * 1000 + c.m * 100 + c.d));
  Problem p(c, random);
  const Result one = run(p, 1);
  const Expected e = naive(p);
  check_close("fused", one.fused, e.fused, c.dtype);
  check_close("alpha", one.alpha_out, e.alpha, c.dtype);
  check_close("grad_descriptors", one.grad_f, e.grad_f, c.dtype);
  if (c.kind == AlphaKind::gate) {
    check_close("grad_pair_weight", one.grad_weight, e.grad_weight, c.dtype);
    check_close("grad_pair_bias", one.grad_bias, e.grad_bias, c.dtype);
  } else {
    check_close("grad_alpha", one.grad_alpha, e.grad_alpha, c.dtype);
  }
  for (int threads : {2, 3, 7}) {
    const Result many = run(p, threads);
    CHECK(one.fused.bytes == many.fused.bytes);
    CHECK(one.alpha_out.bytes == many.alpha_out.bytes);
    CHECK(one.grad_f.bytes == many.grad_f.bytes);
    CHECK(one.grad_alpha.bytes == many.grad_alpha.bytes);
    CHECK(one.grad_weight.bytes == many.grad_weight.bytes);
    CHECK(one.grad_bias.bytes == many.grad_bias.bytes);
  }
}

}  // namespace

int main(int count, char** arguments) {
  choose_isa(count, arguments);
  const int64_t sizes[][3] = {{0, 3, 8}, {1, 1, 1}, {5, 1, 17}, {33, 2, 16}, {9, 3, 63}, {7, 8, 33}, {400, 3, 65}};
  for (Dtype dtype : dtypes) {
    for (AlphaKind kind : {AlphaKind::scalar, AlphaKind::elementwise, AlphaKind::gate}) {
      for (const auto& size : sizes) {
        for (bool masked : {false, true}) check_case({dtype, kind, size[0], size[1], size[2], masked});
      }
    }
  }
  return 0;
}
