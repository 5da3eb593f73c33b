// Peripheral-to-Central attention, backward. With P the weights of a source without its gate, recomputed from lse,
// dP = dO V^T after dropout, and dlse the gradient of lse:
//   per_source   D_i = rowsum(P dP),     dS = P (g dP + dlse_i - g D_i),   d g = sum_i D_i
//   joint        D_i = <dO_i, O_i>,      dS = P g (dP + dlse_i - D_i),     d g = sum_ij P (dP + dlse_i - D_i)
//   dQ = scale dS K,   dK = scale dS^T Q,   dV = g P^T dO
// <dO_i, O_i> would carry the rounding of a 16-bit O: there it is summed from P dP, in a pass over all sources before.
// For each (b, h) and source, blocks of queries meet all visible keys at once. Where there are more threads than
// (b, h), a first pass over blocks of queries gives dQ and the constants of each row, a second pass over ranges of keys
// gives dK and dV; every sum is taken in the same order as in one pass, so the bits do not change.
// Compiled once per instruction set.
#include <cmath>

#include "attention_keys.h"

namespace amuse {
namespace AMUSE_ISA {
namespace {

constexpr int64_t max_block_queries = 48;
constexpr int64_t min_block_queries = 12;          // both multiples of every block_rows
constexpr int64_t block_elements = 48 * 1024;      // of the scores of a block of queries
constexpr int64_t range_keys = 192;                // of the second pass; a multiple of every panel and block_rows

template <class T>
class Backward {
  using A = typename Accumulator<T>::type;
  enum class Pass { all, queries, keys, dots };

 public:
  Backward(const AttentionBackwardParams& p, int threads)
      : p_(p),
        threads_(threads),
        lists_(p, threads),
        width_(round_up(p.d, lanes<A>)),
        direct_(sizeof(T) == sizeof(A) && width_ == p.d) {
    int64_t longest = 0;
    for (int64_t s = 0; s < p.sources; ++s) longest = p.source[s].length > longest ? p.source[s].length : longest;
    max_keys_ = round_up(longest, panel<A>);
    block_ = max_keys_ == 0 ? max_block_queries : block_elements / max_keys_ / min_block_queries * min_block_queries;
    block_ = block_ < min_block_queries ? min_block_queries : block_ > max_block_queries ? max_block_queries : block_;
    const int64_t blocks = (p.lq + block_ - 1) / block_;
    // 5 products in one pass, 7 in two
    const int64_t heads = p.b * p.h, rounds = (heads + threads - 1) / threads;
    two_passes_ = threads > 1 && heads > 0 && rounds * threads * 5 > heads * 7 && (blocks > 1 || max_keys_ > range_keys);
  }

  void run() {
    const int64_t heads = p_.b * p_.h, rows = p_.sources * p_.lq;
    // per row: the constant that dS adds to g dP, its share of the gate's gradient, whether it sees a single key
    const Scratch row_memory((2 * heads * rows + heads * p_.lq) * static_cast<int64_t>(sizeof(A)) +
                             heads * rows);
    constants_ = row_memory.at<A>(0);
    gate_rows_ = row_memory.at<A>(heads * rows);
    dots_ = row_memory.at<A>(2 * heads * rows);
    single_ = row_memory.at<uint8_t>((2 * heads * rows + heads * p_.lq) * static_cast<int64_t>(sizeof(A)));
    const int64_t per_thread = thread_elements();
    const Scratch scratch(threads_ * per_thread * static_cast<int64_t>(sizeof(A)));
    const auto task_of = [&](int thread, int64_t head) {
      Task t;
      t.b = head / p_.h, t.h = head % p_.h, t.head = head;
      carve(t, scratch.at<A>(thread * per_thread));
      return t;
    };
    if (!two_passes_) {
      parallel_tasks(threads_, heads, [&](int thread, int64_t i) {
        Task t = task_of(thread, i);
        sweep(t, Pass::all, 0, p_.lq);
      });
    } else {
      const int64_t blocks = (p_.lq + block_ - 1) / block_;
      parallel_tasks(threads_, heads * blocks, [&](int thread, int64_t i) {
        Task t = task_of(thread, i / blocks);
        const int64_t first = i % blocks * block_;
        sweep(t, Pass::queries, first, first + block_ < p_.lq ? first + block_ : p_.lq);
      });
      const int64_t ranges = (max_keys_ + range_keys - 1) / range_keys;
      parallel_tasks(threads_, heads * p_.sources * ranges, [&](int thread, int64_t i) {
        Task t = task_of(thread, i / (p_.sources * ranges));
        const int64_t source = i / ranges % p_.sources, start = i % ranges * range_keys;
        const int64_t count = lists_.list(t.b, source).count, end = start + range_keys;
        if (start == 0) zero_hidden(t, source);
        if (start < count) attend(t, Pass::keys, source, start, end < count ? end : count, 0, p_.lq);
      });
    }
    sum_gates();
  }

 private:
  struct Task {
    int64_t b, h, head;
    A *keys, *values;           // transposed, for S and dP
    A* key_rows;                // for dQ
    A *scores, *grad_scores, *keep;
    A *query, *query_panels, *grad, *grad_panels;  // a block of queries and of dO
    A *grad_query, *grad_key, *grad_value;
    A *rows, *position, *group;
    int64_t query_first;        // the row of grad_query[0]
  };
  // Keys start .. end of a list against queries first .. end.
  struct Step {
    Pass pass;
    int64_t source, start, end, query, queries;
    A gate;
    bool first_source, first_block;
  };

  int64_t lengths(int64_t (&size)[15]) const {
    const int64_t d = p_.d, wide = round_up(d, panel<A>), query_rows = two_passes_ ? block_ : p_.lq;
    const int64_t block = block_ * (max_keys_ == 0 ? 1 : max_keys_);
    const int64_t all[15] = {max_keys_ * d,  max_keys_ * d, max_keys_ * wide,         block,
                             block,          p_.dropout_p > 0 ? block : 0,             block_ * d,
                             block_ * wide,  block_ * d,    block_ * wide,             query_rows * width_,
                             max_keys_ * width_, max_keys_ * width_, lanes<A> * d,     2 * max_keys_};
    int64_t sum = 0;
    for (int i = 0; i < 15; ++i) sum += size[i] = padded(all[i]);
    return sum;
  }
  int64_t thread_elements() const {
    int64_t size[15];
    return lengths(size);
  }
  void carve(Task& t, A* memory) const {
    int64_t size[15];
    lengths(size);
    A** parts[15] = {&t.keys,  &t.values,       &t.key_rows, &t.scores,      &t.grad_scores,
                     &t.keep,  &t.query,        &t.query_panels, &t.grad,    &t.grad_panels,
                     &t.grad_query, &t.grad_key, &t.grad_value, &t.rows,     &t.position};
    for (int i = 0; i < 15; ++i) {
      *parts[i] = memory;
      memory += size[i];
    }
    t.group = t.position + max_keys_;
  }

  // All sources for queries first .. end of one (b, h).
  void sweep(Task& t, Pass pass, int64_t first, int64_t end) const {
    t.query_first = first;
    bool started = false;
    if (p_.joint) output_dots(t, first, end);
    for (int64_t s = 0; s < p_.sources; ++s) {
      const int64_t count = lists_.list(t.b, s).count;
      if (pass == Pass::all) zero_hidden(t, s);
      if (count == 0) {
        zero(gate_rows_ + (t.head * p_.sources + s) * p_.lq + first, end - first);
        continue;
      }
      attend(t, pass, s, 0, count, first, end, !started);
      started = true;
    }
    T* out = slice_of<T>(p_.grad_query, t.b, t.h);
    for (int64_t i = first; i < end; ++i) {
      T* row = out + i * p_.grad_query.stride_l;
      if (!started) {
        zero(row, p_.d);
      } else if (!direct_) {
        copy_row(t.grad_query + (i - first) * width_, row);
      }
    }
  }

  void copy_row(const A* from, T* to) const {
    if constexpr (sizeof(T) == sizeof(A)) {
      __builtin_memcpy(to, from, static_cast<size_t>(p_.d) * sizeof(A));
    } else {
      narrow_row(from, to, p_.d);
    }
  }

  void zero_hidden(const Task& t, int64_t s) const {
    const KeyList& list = lists_.list(t.b, s);
    T *key = slice_of<T>(p_.grad_key[s], t.b, t.h), *value = slice_of<T>(p_.grad_value[s], t.b, t.h);
    int64_t next = 0;
    for (int64_t i = 0; i <= list.count; ++i) {
      const int64_t position = i < list.count ? list.position(i) : p_.source[s].length;
      for (; next < position; ++next) {
        zero(key + next * p_.grad_key[s].stride_l, p_.d);
        zero(value + next * p_.grad_value[s].stride_l, p_.d);
      }
      next = position + 1;
    }
  }

  void attend(Task& t, Pass pass, int64_t s, int64_t start, int64_t end, int64_t first, int64_t last,
              bool first_source = false) const {
    const KeyList& list = lists_.list(t.b, s);
    const AttentionSource& source = p_.source[s];
    const int64_t count = end - start;
    const RowList<T> keys = list.rows<T>(source.key, t.b, t.h).from(start);
    const RowList<T> values = list.rows<T>(source.value, t.b, t.h).from(start);
    pack_transposed(keys, count, p_.d, static_cast<A>(p_.softmax_scale * log2_e), t.keys, t.rows);
    pack_transposed(values, count, p_.d, A(1), t.values, t.rows);
    Panels<A> key_rows{};
    if (pass == Pass::all || pass == Pass::queries) key_rows = panels_of(keys, count, t.key_rows, t.rows);
    PairMask<A> pairs{t.position, t.group, source.causal, source.relation, lists_.query_groups(t.b)};
    const bool paired = source.causal || source.relation != Relation::any;
    if (paired) pairs.load_tile(list, start, count, round_up(count, lanes<A>));

    // Sums over queries end in the gradients themselves where they can.
    A *grad_key = t.grad_key, *grad_value = t.grad_value;
    int64_t key_stride = width_, value_stride = width_;
    const bool in_place = direct_ && list.index == nullptr;
    if constexpr (sizeof(T) == sizeof(A)) {
      if (in_place) {
        key_stride = p_.grad_key[s].stride_l, value_stride = p_.grad_value[s].stride_l;
        grad_key = slice_of<T>(p_.grad_key[s], t.b, t.h) + (list.first + start) * key_stride;
        grad_value = slice_of<T>(p_.grad_value[s], t.b, t.h) + (list.first + start) * value_stride;
      }
    }

    const A scale = static_cast<A>(p_.softmax_scale), one = 1;
    const A gate = gate_of<A>(p_, t.b, t.h, s);
    for (int64_t i = first; i < last; i += block_) {
      const int64_t queries = i + block_ < last ? block_ : last - i;
      const Step step{pass, s, start, end, i, queries, gate, first_source, i == first};
      const RowList<T> query = rows_of<T>(p_.query, t.b, t.h, i), grad = rows_of<T>(p_.grad_out, t.b, t.h, i);
      const LeftRows<A> query_left = left_rows(query, queries, p_.d, t.query);
      const LeftRows<A> grad_left = left_rows(grad, queries, p_.d, t.grad);
      const int64_t columns = round_up(count, lanes<A>);
      multiply<false>(query_left.data, query_left.stride, Panels<A>{t.keys, panel<A>, panel<A> * p_.d}, t.scores,
                      max_keys_, queries, columns, p_.d);
      multiply<false>(grad_left.data, grad_left.stride, Panels<A>{t.values, panel<A>, panel<A> * p_.d}, t.grad_scores,
                      max_keys_, queries, columns, p_.d);
      differentiate(t, step, paired ? &pairs : nullptr, list);
      if (pass == Pass::dots) continue;
      if (pass != Pass::keys) {
        A* out = t.grad_query + (i - t.query_first) * width_;
        int64_t stride = width_;
        if constexpr (sizeof(T) == sizeof(A)) {
          if (direct_) {
            stride = p_.grad_query.stride_l;
            out = slice_of<T>(p_.grad_query, t.b, t.h) + i * stride;
          }
        }
        multiply<false>(t.grad_scores, max_keys_, key_rows, out, stride, queries, width_, count,
                        Factors<A>{&scale, first_source ? nullptr : &one, 0});
      }
      if (pass != Pass::queries) {
        const Panels<A> query_panels = panels_of(query, queries, t.query_panels, t.rows);
        const Panels<A> grad_panels = panels_of(grad, queries, t.grad_panels, t.rows);
        const A* beta = step.first_block ? nullptr : &one;
        multiply<true>(t.scores, max_keys_, grad_panels, grad_value, value_stride, count, width_, queries,
                       Factors<A>{&gate, beta, 0});
        multiply<true>(t.grad_scores, max_keys_, query_panels, grad_key, key_stride, count, width_, queries,
                       Factors<A>{&scale, beta, 0});
      }
    }
    if (pass == Pass::queries || pass == Pass::dots || in_place) return;
    T *key_out = slice_of<T>(p_.grad_key[s], t.b, t.h), *value_out = slice_of<T>(p_.grad_value[s], t.b, t.h);
    for (int64_t j = 0; j < count; ++j) {
      const int64_t position = list.position(start + j);
      copy_row(grad_key + j * width_, key_out + position * p_.grad_key[s].stride_l);
      copy_row(grad_value + j * width_, value_out + position * p_.grad_value[s].stride_l);
    }
  }

  Panels<A> panels_of(const RowList<T>& rows, int64_t count, A* memory, A* buffer) const {
    if constexpr (sizeof(T) == sizeof(A)) {
      if (direct_ && rows.index == nullptr) return {rows[0], rows.stride, panel<A>};
    }
    return pack_rows(rows, count, p_.d, memory, buffer);
  }

  // From S and dP to the weights, after dropout but without gate, and dS.
  void differentiate(Task& t, const Step& step, const PairMask<A>* pairs, const KeyList& list) const {
    const int64_t count = step.end - step.start, columns = round_up(count, lanes<A>);
    const bool drops = p_.dropout_p > 0;
    for (int64_t r = 0; r < step.queries; ++r) {
      const int64_t i = step.query + r;
      A *scores = t.scores + r * max_keys_, *grads = t.grad_scores + r * max_keys_;
      A* keep = t.keep + (drops ? r * max_keys_ : 0);
      hide_tail(scores, count, columns);
      const int64_t seen = pairs != nullptr ? pairs->apply(scores, columns, i) : count;
      if (drops) {
        const Dropout dropout{p_.seed, p_.drop_threshold};
        dropout.fill(keep, list, step.start, count, i, t.head, step.source, A(1 / (1 - p_.dropout_p)));
        for (int64_t j = 0; j < count; ++j) grads[j] *= keep[j];
      }

      const int64_t row = (t.head * p_.sources + step.source) * p_.lq + i;
      const int64_t lse_row = p_.joint ? t.head * p_.lq + i : (t.head * p_.lq + i) * p_.sources + step.source;
      const A lse = static_cast<const A*>(p_.lse)[lse_row];
      const bool empty = lse == A(-__builtin_inff());
      const A pivot = empty ? A(__builtin_inff()) : lse * A(log2_e);
      // The only key of a source has weight 1 and no gradient, exactly, whatever lse was rounded to.
      if (step.pass != Pass::keys) single_[row] = !p_.joint && seen == 1;
      const bool single = single_[row] != 0;
      // A weight is at most 1, without a joint gate applied at most 1 / gate, but scores so large that they are recomputed
      // with another rounding error than lse would overflow. Unbounded is a source whose gate is 0: there the clamp keeps
      // the gate's gradient finite.
      const A most = !p_.joint ? A(0) : step.gate > 0 ? -std::log2(step.gate) : A(80 * log2_e);
      const A limit = most < A(80 * log2_e) ? most : A(80 * log2_e);
      const Vector<A> hidden = broadcast<A>(A(-__builtin_inff()));
      Vector<A> products = {}, weights = {};
      for (int64_t j = 0; j < columns; j += lanes<A>) {
        const Vector<A> x = load(scores + j) - pivot;
        Vector<A> weight = exp2<A>(limit < x ? broadcast<A>(limit) : x);
        if (single) weight = load(scores + j) == hidden ? Vector<A>{} : load(scores + j) * 0 + 1;
        store(scores + j, weight);
        products += weight * load(grads + j);
        weights += weight;
      }
      if (step.pass == Pass::dots) {
        dots_[t.head * p_.lq + i] += step.gate * sum_lanes<A>(products);
        continue;
      }
      if (step.pass != Pass::keys) {
        const A upstream = p_.grad_lse == nullptr || empty ? A(0) : static_cast<const A*>(p_.grad_lse)[lse_row];
        const A product = sum_lanes<A>(products);
        if (p_.joint) {
          const A shift = empty ? A(0) : upstream - dots_[t.head * p_.lq + i];
          constants_[row] = step.gate * shift;
          gate_rows_[row] = product + shift * sum_lanes<A>(weights);
        } else {
          constants_[row] = upstream - step.gate * product;
          gate_rows_[row] = product;
        }
      }
      const A constant = constants_[row];
      for (int64_t j = 0; j < columns; j += lanes<A>) {
        store(grads + j, load(scores + j) * (step.gate * load(grads + j) + constant));
      }
      for (int64_t j = 0; drops && j < count; ++j) scores[j] *= keep[j];
    }
  }

  // <dO_i, O_i> of every row
  void output_dots(Task& t, int64_t first, int64_t end) const {
    A* dots = dots_ + t.head * p_.lq;
    if constexpr (sizeof(T) == sizeof(A)) {
      for (int64_t i = first; i < end; ++i) {
        const A* out = rows_of<T>(p_.out, t.b, t.h)[i];
        dot_rows<1>(rows_of<T>(p_.grad_out, t.b, t.h)[i], &out, p_.d, dots + i);
      }
    } else {
      zero(dots + first, end - first);
      for (int64_t s = 0; s < p_.sources; ++s) {
        const int64_t count = lists_.list(t.b, s).count;
        if (count > 0) attend(t, Pass::dots, s, 0, count, first, end);
      }
    }
  }

  void sum_gates() const {
    if (p_.grad_gates == nullptr) return;
    for (int64_t i = 0; i < p_.b * p_.h * p_.sources; ++i) {
      A sum = 0;
      for (int64_t r = 0; r < p_.lq; ++r) sum += gate_rows_[i * p_.lq + r];
      static_cast<A*>(p_.grad_gates)[i] = sum;
    }
  }

  const AttentionBackwardParams& p_;
  const int threads_;
  const KeyLists lists_;
  const int64_t width_;  // d rounded up to whole vectors
  const bool direct_;    // gradients are summed in place
  bool two_passes_ = false;
  int64_t max_keys_ = 0, block_ = 0;
  A *constants_ = nullptr, *gate_rows_ = nullptr, *dots_ = nullptr;
  uint8_t* single_ = nullptr;
};

}  // namespace

void attention_backward(const AttentionBackwardParams& params, int threads) {
  switch (params.dtype) {
    case Dtype::float32: return Backward<float>(params, threads).run();
    case Dtype::float64: return Backward<double>(params, threads).run();
    case Dtype::float16: return Backward<Half>(params, threads).run();
    case Dtype::bfloat16: return Backward<BFloat16>(params, threads).run();
  }
}

}  // namespace AMUSE_ISA
}  // namespace amuse
