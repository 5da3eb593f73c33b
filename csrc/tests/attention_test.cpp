// Peripheral-to-Central attention against Eq. 1 and its derivatives written naively in double.
#include "../attention.h"

#include <algorithm>

#include "check.h"

using namespace amuse;
using namespace amuse::tests;

namespace {

struct Case {
  Dtype dtype;
  int64_t b, h, lq, d;
  std::vector<int64_t> lengths;
  bool joint, masked, gated, related, causal;
  double dropout_p;
};

struct Strided {
  int64_t length;
  int64_t stride_b, stride_h, stride_l;
  int64_t at(int64_t b, int64_t h, int64_t l) const { return b * stride_b + h * stride_h + l * stride_l; }
  AttentionTensor tensor(Data& data) const { return {data.data(), stride_b, stride_h, stride_l}; }
};

// (B, L, H, D) in memory, with a gap after each row.
Strided strided(const Case& c, int64_t length) { return {length, length * c.h * (c.d + 2), c.d + 2, c.h * (c.d + 2)}; }
size_t elements(const Case& c, int64_t length) { return static_cast<size_t>(c.b * length * c.h * (c.d + 2)); }

struct Problem {
  Case c;
  Strided q;
  std::vector<Strided> k;
  Data query, grad_out, gates, grad_lse;
  std::vector<Data> keys, values;
  std::vector<std::vector<uint8_t>> masks;
  std::vector<int64_t> query_groups;
  std::vector<std::vector<int64_t>> key_groups;
  std::vector<std::vector<double>> keep;  // [p][((b h) lq + i) lp + j]

  Relation relation(size_t p) const { return c.related ? static_cast<Relation>((p + 1) % 3) : Relation::any; }
  bool causal(size_t p) const { return c.causal && c.lengths[p] == c.lq; }
  bool visible(int64_t b, int64_t i, size_t p, int64_t j) const {
    if (c.masked && masks[p][b * c.lengths[p] + j] == 0) return false;
    if (causal(p) && j > i) return false;
    const bool same = query_groups[b * c.lq + i] == key_groups[p][b * c.lengths[p] + j];
    return relation(p) == Relation::any || same == (relation(p) == Relation::same);
  }
  size_t lse_size() const { return static_cast<size_t>(c.b * c.h * c.lq) * (c.joint ? 1 : c.lengths.size()); }

  Problem(const Case& given, std::mt19937& random)
      : c(given),
        q(strided(c, c.lq)),
        query(uniform_data(c.dtype, elements(c, c.lq), random, -2, 2)),
        grad_out(uniform_data(c.dtype, elements(c, c.lq), random)),
        gates(uniform_data(accumulator(c.dtype), c.b * c.h * c.lengths.size(), random, 0.1, 1)),
        grad_lse(uniform_data(accumulator(c.dtype), lse_size(), random)) {
    for (int64_t i = 0; i < c.b * c.lq; ++i) query_groups.push_back(static_cast<int64_t>(random() % 3) << 33);
    for (size_t p = 0; p < c.lengths.size(); ++p) {
      const int64_t length = c.lengths[p];
      k.push_back(strided(c, length));
      keys.push_back(uniform_data(c.dtype, elements(c, length), random, -2, 2));
      values.push_back(uniform_data(c.dtype, elements(c, length), random));
      masks.emplace_back(c.b * length);
      key_groups.emplace_back(c.b * length);
      const bool ragged = p % 2 == 0;  // prefixes, and scattered keys
      for (int64_t b = 0; b < c.b; ++b) {
        const int64_t kept = static_cast<int64_t>(random() % (length + 1));
        for (int64_t j = 0; j < length; ++j) {
          masks[p][b * length + j] = ragged ? j < kept : random() % 3 != 0;
          key_groups[p][b * length + j] = static_cast<int64_t>(random() % 4) << 33;
        }
      }
    }
    for (size_t p = 0; p < c.lengths.size(); ++p) {
      for (int64_t b = 0; b < c.b; ++b) {
        for (int64_t j = 0; j < c.lengths[p]; ++j) {
          bool seen = false;
          for (int64_t i = 0; i < c.lq; ++i) seen = seen || visible(b, i, p, j);
          for (int64_t h = 0; h < c.h && !seen; ++h) {  // NaN wherever the value must not matter
            keys[p].set(k[p].at(b, h, j), NAN), values[p].set(k[p].at(b, h, j) + 1, NAN);
          }
        }
      }
    }
    drop();
  }

  static void philox(uint32_t (&counter)[4], uint64_t seed) {
    uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
    for (int round = 0; round < 10; ++round) {
      const uint64_t a = uint64_t{0xD2511F53} * counter[0], b = uint64_t{0xCD9E8D57} * counter[2];
      const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
                                static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
      std::copy(next, next + 4, counter);
      key[0] += 0x9E3779B9, key[1] += 0xBB67AE85;
    }
  }
  static constexpr uint64_t seed = 0x123456789abcdefULL;
  uint32_t threshold() const { return static_cast<uint32_t>(c.dropout_p * 4294967296.0); }

  void drop() {
    for (size_t p = 0; p < c.lengths.size(); ++p) {
      keep.emplace_back();
      for (int64_t row = 0; row < c.b * c.h * c.lq; ++row) {
        for (int64_t j = 0; j < c.lengths[p]; ++j) {
          uint32_t counter[4] = {static_cast<uint32_t>(j / 4), static_cast<uint32_t>(row % c.lq),
                                 static_cast<uint32_t>(row / c.lq), static_cast<uint32_t>(p)};
          philox(counter, seed);
          keep[p].push_back(counter[j % 4] < threshold() ? 0 : 1 / (1 - c.dropout_p));
        }
      }
    }
  }
};

struct Result {
  Data out, lse, grad_query, grad_gates;
  std::vector<Data> grad_keys, grad_values;
  explicit Result(const Problem& p)
      : out(p.c.dtype, p.query.size()),
        lse(accumulator(p.c.dtype), p.lse_size()),
        grad_query(p.c.dtype, p.query.size()),
        grad_gates(accumulator(p.c.dtype), p.gates.size()) {
    for (const Data& key : p.keys) grad_keys.emplace_back(p.c.dtype, key.size());
    for (const Data& key : p.keys) grad_values.emplace_back(p.c.dtype, key.size());
  }
  bool operator==(const Result& o) const {
    bool equal = out.bytes == o.out.bytes && lse.bytes == o.lse.bytes && grad_query.bytes == o.grad_query.bytes &&
                 grad_gates.bytes == o.grad_gates.bytes;
    for (size_t p = 0; p < grad_keys.size(); ++p) {
      equal = equal && grad_keys[p].bytes == o.grad_keys[p].bytes && grad_values[p].bytes == o.grad_values[p].bytes;
    }
    return equal;
  }
};

constexpr double scale = 0.3;

void fill(AttentionParams& a, Problem& p) {
  const Case& c = p.c;
  a.dtype = c.dtype, a.joint = c.joint, a.b = c.b, a.h = c.h, a.lq = c.lq, a.d = c.d;
  a.sources = static_cast<int64_t>(c.lengths.size());
  a.softmax_scale = scale, a.dropout_p = c.dropout_p, a.drop_threshold = p.threshold(), a.seed = Problem::seed;
  a.query = p.q.tensor(p.query);
  a.query_groups = c.related ? p.query_groups.data() : nullptr;
  for (size_t s = 0; s < c.lengths.size(); ++s) {
    a.source[s] = {p.k[s].tensor(p.keys[s]),
                   p.k[s].tensor(p.values[s]),
                   c.lengths[s],
                   c.masked ? p.masks[s].data() : nullptr,
                   c.related ? p.key_groups[s].data() : nullptr,
                   p.relation(s),
                   p.causal(s),
                   nullptr};
  }
  if (!c.gated) return;
  a.gates = p.gates.data();
  a.gate_stride_b = c.h * a.sources, a.gate_stride_h = a.sources, a.gate_stride_p = 1;
}

Result run(Problem& p, int threads) {
  Result r(p);
  AttentionForwardParams forward{};
  fill(forward, p);
  forward.out = p.q.tensor(r.out), forward.lse = r.lse.data();
  attention_forward(forward, threads);
  AttentionBackwardParams backward{};
  fill(backward, p);
  backward.grad_out = p.q.tensor(p.grad_out), backward.out = p.q.tensor(r.out);
  backward.lse = r.lse.data(), backward.grad_lse = p.grad_lse.data();
  backward.grad_query = p.q.tensor(r.grad_query), backward.grad_gates = r.grad_gates.data();
  for (size_t s = 0; s < p.c.lengths.size(); ++s) {
    backward.grad_key[s] = p.k[s].tensor(r.grad_keys[s]), backward.grad_value[s] = p.k[s].tensor(r.grad_values[s]);
  }
  attention_backward(backward, threads);
  return r;
}

struct Expected {
  std::vector<double> out, lse, grad_query, grad_gates;
  std::vector<std::vector<double>> grad_keys, grad_values;
};

Expected naive(const Problem& p) {
  const Case& c = p.c;
  const size_t sources = c.lengths.size();
  Expected e{std::vector<double>(p.query.size()),
             std::vector<double>(p.lse_size()),
             std::vector<double>(p.query.size()),
             std::vector<double>(p.gates.size()),
             {},
             {}};
  for (const Data& key : p.keys) e.grad_keys.emplace_back(key.size()), e.grad_values.emplace_back(key.size());
  for (int64_t row = 0; row < c.b * c.h * c.lq; ++row) {
    const int64_t b = row / c.lq / c.h, h = row / c.lq % c.h, i = row % c.lq, q = p.q.at(b, h, i);
    std::vector<std::vector<double>> w(sources), dp(sources);
    std::vector<double> g(sources, 1), sum(sources), dot(sources);
    double total = 0;
    for (size_t s = 0; s < sources; ++s) {
      if (c.gated) g[s] = p.gates.get((b * c.h + h) * sources + s);
      for (int64_t j = 0; j < c.lengths[s]; ++j) {
        double score = 0, grad = 0;
        const int64_t k = p.k[s].at(b, h, j);
        if (p.visible(b, i, s, j)) {
          for (int64_t x = 0; x < c.d; ++x) score += p.query.get(q + x) * p.keys[s].get(k + x);
          for (int64_t x = 0; x < c.d; ++x) grad += p.grad_out.get(q + x) * p.values[s].get(k + x);
        }
        w[s].push_back(p.visible(b, i, s, j) ? std::exp(scale * score) : 0);
        dp[s].push_back(grad * p.keep[s][row * c.lengths[s] + j]);
        sum[s] += w[s].back();
      }
      total += g[s] * sum[s];
      if (!c.joint) e.lse[row * sources + s] = std::log(sum[s]);
    }
    if (c.joint) e.lse[row] = std::log(total);
    double all = 0;
    for (size_t s = 0; s < sources; ++s) {
      const double mass = c.joint ? total : sum[s];
      for (size_t j = 0; j < w[s].size(); ++j) w[s][j] = mass > 0 ? w[s][j] / mass : 0, dot[s] += w[s][j] * dp[s][j];
      all += g[s] * dot[s];
    }
    for (size_t s = 0; s < sources; ++s) {
      const double dlse = p.grad_lse.get(c.joint ? row : row * sources + s);
      double& gate = e.grad_gates[(b * c.h + h) * sources + s];
      if (!c.joint) gate += dot[s];
      for (int64_t j = 0; j < c.lengths[s]; ++j) {
        if (w[s][j] == 0) continue;
        const int64_t k = p.k[s].at(b, h, j);
        if (c.joint) gate += w[s][j] * (dp[s][j] + dlse - all);
        const double ds =
            scale * w[s][j] * (c.joint ? g[s] * (dp[s][j] + dlse - all) : g[s] * (dp[s][j] - dot[s]) + dlse);
        const double kept = g[s] * w[s][j] * p.keep[s][row * c.lengths[s] + j];
        for (int64_t x = 0; x < c.d; ++x) {
          e.out[q + x] += kept * p.values[s].get(k + x);
          e.grad_values[s][k + x] += kept * p.grad_out.get(q + x);
          e.grad_query[q + x] += ds * p.keys[s].get(k + x);
          e.grad_keys[s][k + x] += ds * p.query.get(q + x);
        }
      }
    }
  }
  return e;
}

// Rows of a strided tensor as one dense array; the gaps must be as they were.
void check_rows(const char* what, const Case& c, const Strided& layout, const Data& got,
                const std::vector<double>& expected) {
  Data dense(c.dtype, static_cast<size_t>(c.b * c.h * layout.length * c.d));
  std::vector<double> wanted;
  for (int64_t row = 0; row < c.b * c.h * layout.length; ++row) {
    const int64_t at = layout.at(row / layout.length / c.h, row / layout.length % c.h, row % layout.length);
    for (int64_t x = 0; x < c.d; ++x) {
      dense.set(wanted.size(), got.get(at + x));
      wanted.push_back(expected[at + x]);
    }
    CHECK(std::isnan(got.get(at + c.d)) && std::isnan(got.get(at + c.d + 1)));
  }
  check_close(what, dense, wanted, c.dtype);
}

void check_case(const Case& c) {
  std::mt19937 random(static_cast<unsigned>(c.lq * 1000 + c.d + c.joint * 10 + c.masked));
  Problem p(c, random);
  const Result one = run(p, 1);
  const Expected e = naive(p);
  check_rows("out", c, p.q, one.out, e.out);
  for (size_t i = 0; i < e.lse.size(); ++i) {
    const double got = one.lse.get(i), tolerated = 10 * tolerance(accumulator(c.dtype));
    CHECK(std::isinf(e.lse[i]) ? got == e.lse[i] : std::fabs(got - e.lse[i]) <= tolerated);
  }
  check_rows("grad_query", c, p.q, one.grad_query, e.grad_query);
  check_close("grad_gates", one.grad_gates, e.grad_gates, c.dtype == Dtype::float64 ? c.dtype : Dtype::float16);
  for (size_t s = 0; s < c.lengths.size(); ++s) {
    check_rows("grad_key", c, p.k[s], one.grad_keys[s], e.grad_keys[s]);
    check_rows("grad_value", c, p.k[s], one.grad_values[s], e.grad_values[s]);
  }
  for (int threads : {2, 3, 7}) CHECK(run(p, threads) == one);
}

}  // namespace

int main(int count, char** arguments) {
  choose_isa(count, arguments);
  const Case sizes[] = {
      {{}, 0, 2, 3, 8, {4}, {}, {}, {}, {}, {}, {}},         {{}, 2, 1, 0, 8, {4}, {}, {}, {}, {}, {}, {}},
      {{}, 2, 2, 1, 8, {1, 0}, {}, {}, {}, {}, {}, {}},      {{}, 2, 2, 17, 24, {17, 33}, {}, {}, {}, {}, {}, {}},
      {{}, 1, 1, 63, 64, {63, 300}, {}, {}, {}, {}, {}, {}}, {{}, 1, 2, 50, 40, {50, 7, 20}, {}, {}, {}, {}, {}, {}},
  };
  for (Dtype dtype : dtypes) {
    for (const Case& size : sizes) {
      for (int bits = 0; bits < 16; ++bits) {
        Case c = size;
        c.dtype = dtype;
        c.joint = bits & 1, c.masked = bits & 2, c.related = bits & 4, c.causal = bits & 8;
        c.gated = bits % 3 != 0;
        c.dropout_p = bits % 5 == 4 ? 0.25 : 0;
        check_case(c);
      }
    }
  }
  return 0;
}
