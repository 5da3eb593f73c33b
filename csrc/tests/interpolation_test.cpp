// The closed-form interpolation coefficients against Eq. 6 written naively in double, and their derivative against
// central differences of it.
#include "../fusion.h"
#include "check.h"

using namespace amuse;
using namespace amuse::tests;

namespace {

constexpr double epsilon = 0.3;

struct Row {
  std::vector<double> a, b, g;
};

std::vector<double> unclipped(const Row& r) {
  double distance = 0, length = 0;
  for (size_t k = 0; k < r.a.size(); ++k) {
    distance += (r.a[k] - r.b[k]) * (r.a[k] - r.b[k]);
    length += r.g[k] * r.g[k];
  }
  std::vector<double> x(r.a.size(), NAN);  // NaN where undefined
  for (size_t k = 0; k < x.size(); ++k) {
    if (r.a[k] != r.b[k] && length != 0) x[k] = epsilon * std::sqrt(distance / length) * r.g[k] / (r.a[k] - r.b[k]);
  }
  return x;
}

Row row_of(const Data& a, const Data& b, const Data& g, int64_t i, int64_t d) {
  Row r;
  for (int64_t k = i * d; k < (i + 1) * d; ++k)
    r.a.push_back(a.get(k)), r.b.push_back(b.get(k)), r.g.push_back(g.get(k));
  return r;
}

void check_case(Dtype dtype, int64_t n, int64_t d) {
  std::mt19937 random(static_cast<unsigned>(n + d));
  // Differences bounded away from 0, so that central differences in double are accurate.
  Data a = uniform_data(dtype, n * d, random, 1, 2), b = uniform_data(dtype, n * d, random, -1, 0.5);
  Data g = uniform_data(dtype, n * d, random), grad_out = uniform_data(dtype, n * d, random);
  for (int64_t k = 0; k < d && n > 2; ++k) {
    g.set(k, 0);                                         // row 0: no gradient at all
    b.set(d + k, a.get(d + k));                          // row 1: a equals b
    if (k % 2 == 0) b.set(2 * d + k, a.get(2 * d + k));  // row 2: in every other column
  }
  const auto run = [&](int threads) {
    std::vector<Data> out(4, Data(dtype, n * d));
    InterpolationForwardParams f{dtype, n, d, epsilon, a.data(), b.data(), g.data(), out[0].data()};
    interpolation_forward(f, threads);
    InterpolationBackwardParams q{dtype,        n,        d,        epsilon,       grad_out.data(),
                                  a.data(),     b.data(), g.data(), out[1].data(), out[2].data(),
                                  out[3].data()};
    interpolation_backward(q, threads);
    return out;
  };
  const std::vector<Data> one = run(1);
  std::vector<double> expected[4];
  for (auto& values : expected) values.resize(n * d);
  for (int64_t i = 0; i < n; ++i) {
    const Row r = row_of(a, b, g, i, d);
    const std::vector<double> x = unclipped(r);
    for (int64_t k = 0; k < d; ++k) expected[0][i * d + k] = std::isnan(x[k]) ? 0 : std::fmin(std::fmax(x[k], 0), 1);
    for (int64_t j = 0; j < d; ++j) {
      for (int which = 1; which <= 3; ++which) {
        Row plus = r, minus = r;
        constexpr double step = 1e-6;
        auto& up = which == 1 ? plus.a : which == 2 ? plus.b : plus.g;
        auto& down = which == 1 ? minus.a : which == 2 ? minus.b : minus.g;
        up[j] += step, down[j] -= step;
        const std::vector<double> high = unclipped(plus), low = unclipped(minus);
        double gradient = 0;
        for (int64_t k = 0; k < d; ++k) {
          const bool flows = x[k] >= 0 && x[k] <= 1;
          if (flows) gradient += grad_out.get(i * d + k) * (high[k] - low[k]) / (2 * step);
        }
        expected[which][i * d + j] = gradient;
      }
    }
  }
  const char* names[] = {"coefficients", "grad_a", "grad_b", "grad_g"};
  for (int which = 0; which < 4; ++which) {
    if (which > 0 && dtype == Dtype::float64) {
      double scale = 1;
      for (double value : expected[which]) scale = std::fmax(scale, std::fabs(value));
      for (int64_t k = 0; k < n * d; ++k) CHECK(std::fabs(one[which].get(k) - expected[which][k]) <= 1e-8 * scale);
    } else {
      check_close(names[which], one[which], expected[which], dtype);
    }
  }
  for (int threads : {2, 5}) {
    const std::vector<Data> many = run(threads);
    for (int which = 0; which < 4; ++which) CHECK(one[which].bytes == many[which].bytes);
  }
}

// torch.clamp passes the gradient at exactly 0 and 1.
void test_gradient_flows_at_the_bounds() {
  const double a[] = {1}, b[] = {0}, at_one[] = {1}, upstream[] = {1};
  double out, grad_a, grad_b, grad_g;
  InterpolationForwardParams f{Dtype::float64, 1, 1, 1.0, a, b, at_one, &out};
  interpolation_forward(f, 1);
  CHECK(out == 1);
  const double wide_a[] = {1, 2}, wide_b[] = {0, 0}, wide_g[] = {0, 1}, wide_up[] = {1, 0};
  double wide_grad[3][2];
  InterpolationBackwardParams q{
      Dtype::float64, 1, 2, 0.1, wide_up, wide_a, wide_b, wide_g, wide_grad[0], wide_grad[1], wide_grad[2]};
  interpolation_backward(q, 1);
  CHECK(std::fabs(wide_grad[2][0] - 0.1 * std::sqrt(5.0)) < 1e-12);  // x = 0 exactly
  InterpolationBackwardParams one{Dtype::float64, 1, 1, 1.0, upstream, a, b, at_one, &grad_a, &grad_b, &grad_g};
  interpolation_backward(one, 1);
  CHECK(std::isfinite(grad_a) && std::isfinite(grad_b) && std::isfinite(grad_g));
}

}  // namespace

int main(int count, char** arguments) {
  choose_isa(count, arguments);
  for (Dtype dtype : dtypes) {
    for (int64_t d : {1, 2, 17, 40}) {
      check_case(dtype, 0, d);
      check_case(dtype, 11, d);
    }
  }
  // Large enough for several threads.
  std::mt19937 random(1);
  Data a = uniform_data(Dtype::float32, 600 * 128, random), b = uniform_data(Dtype::float32, 600 * 128, random);
  Data one(Dtype::float32, 600 * 128), many(Dtype::float32, 600 * 128);
  InterpolationForwardParams p{Dtype::float32, 600, 128, epsilon, a.data(), b.data(), a.data(), one.data()};
  interpolation_forward(p, 1);
  p.out = many.data();
  interpolation_forward(p, 4);
  CHECK(one.bytes == many.bytes);
  test_gradient_flows_at_the_bounds();
  return 0;
}
