// Peripheral-to-Central attention, backward. With P the weights of a source without its gate, dP = dO V^T after
// dropout, and dlse the gradient of lse:
//   per_source   D_i = rowsum(P dP),     dS = P (g (dP - D_i) + dlse_i),     d g = sum_i D_i
//   joint        D_i = <dO_i, O_i>,      dS = P g (dP - D_i + dlse_i),       d g = sum_ij P (dP - D_i + dlse_i)
//   dQ = scale dS K,   dK = scale dS^T Q,   dV = g P^T dO
// P is recomputed from a rounded lse; it would not add up to 1 where that is large, and is divided by its sum.
// <dO_i, O_i> would carry the rounding of a 16-bit O, and does not give that sum: in 16 bits, and in rows of large
// scores, a pass over all sources beforehand gives both.
// For each (b, h) and source, blocks of queries meet all visible keys at once. P and dS are kept transposed, (keys x
// queries), as in the forward. Where (b, h) are too few or too uneven for the threads, a first pass over blocks of
// queries gives dQ and the shift and sum of each row, a second pass over ranges of keys gives dK and dV; every sum is
// taken in the same order as in one pass, so the bits do not change. Compiled once per instruction set.
#include "attention_keys.h"
#include "attention_scores.h"

namespace amuse {
namespace AMUSE_ISA {
namespace {

constexpr int64_t max_block_queries = 48;
constexpr int64_t min_block_queries = 16;      // both multiples of every vector length
constexpr int64_t block_elements = 48 * 1024;  // scores of a block of queries
constexpr int64_t range_keys = 192;            // keys of a task of the second pass

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
        direct_(sizeof(T) == sizeof(A) && width_ == p.d),
        rows_(p.b) {
    for (int64_t s = 0; s < p.sources; ++s) {
      max_keys_ = p.source[s].length > max_keys_ ? p.source[s].length : max_keys_;
    }
    int64_t limit = block_elements / (max_keys_ == 0 ? 1 : max_keys_) / min_block_queries * min_block_queries;
    limit = limit < min_block_queries ? min_block_queries : limit > max_block_queries ? max_block_queries : limit;
    const int64_t longest = round_up(p.lq, lanes<A>);
    block_ = longest < limit ? longest : limit;
    for (int64_t b = 0; b < p.b; ++b) rows_.add(b, round_up(queries_of(p, b).count, lanes<A>));
    // 5 products in one pass, 7 in two; in one pass the largest samples decide when the last thread is done
    const Work work(p);
    const int64_t largest = work.largest == 0 ? 1 : work.largest, heads = p.h * work.total / largest;
    const int64_t rounds = (heads + threads - 1) / threads;
    const bool divisible = p.lq > block_ || max_keys_ > range_keys;
    two_passes_ = threads > 1 && rounds * threads * 5 > heads * 7 && divisible;
  }

  void run() {
    const int64_t heads = p_.b * p_.h, rows = p_.h * rows_.total();
    // per row of a source: the offset subtracted from dP, its share of the gate's gradient, whether it sees a single
    // key, 1 / the sum of its recomputed weights (joint that of all sources, at source 0); per row: <dO, O>
    const Scratch row_memory((4 * p_.sources + 1) * rows * static_cast<int64_t>(sizeof(A)));
    shifts_ = row_memory.at<A>(0);
    gate_rows_ = row_memory.at<A>(p_.sources * rows);
    single_ = row_memory.at<A>(2 * p_.sources * rows);
    inverses_ = row_memory.at<A>(3 * p_.sources * rows);
    dots_ = row_memory.at<A>(4 * p_.sources * rows);
    const int64_t per_thread = carve(nullptr, nullptr);
    const Scratch scratch(threads_ * per_thread * static_cast<int64_t>(sizeof(A)));
    const auto task_of = [&](int thread, int64_t b, int64_t h) {
      Task t;
      t.tokens = queries_of(p_, b), t.h = h, t.head = b * p_.h + h;
      carve(&t, scratch.at<A>(thread * per_thread));
      return t;
    };
    if (!two_passes_) {
      parallel_tasks(threads_, heads, [&](int thread, int64_t i) {
        Task t = task_of(thread, i / p_.h, i % p_.h);
        sweep(t, Pass::all, 0, t.tokens.count);
      });
    } else {
      Pieces blocks(p_.b), ranges(p_.b);
      for (int64_t b = 0; b < p_.b; ++b) {
        blocks.add(b, p_.h * ((queries_of(p_, b).count + block_ - 1) / block_));
        int64_t count = 0;
        for (int64_t s = 0; s < p_.sources; ++s) count += ranges_of(b, s);
        ranges.add(b, p_.h * count);
      }
      parallel_tasks(threads_, blocks.total(), [&](int thread, int64_t i) {
        const int64_t b = blocks.sample_of(i), piece = i - blocks.start(b);
        Task t = task_of(thread, b, piece % p_.h);
        const int64_t first = piece / p_.h * block_;
        sweep(t, Pass::queries, first, first + block_ < t.tokens.count ? first + block_ : t.tokens.count);
      });
      parallel_tasks(threads_, ranges.total(), [&](int thread, int64_t i) {
        const int64_t b = ranges.sample_of(i), piece = i - ranges.start(b);
        Task t = task_of(thread, b, piece % p_.h);
        int64_t source = 0, range = piece / p_.h;
        for (; range >= ranges_of(b, source); ++source) range -= ranges_of(b, source);
        const int64_t start = range * range_keys, end = start + range_keys;
        const int64_t count = lists_.list(b, source).count;
        if (start == 0) zero_hidden(t, source);
        if (start < count) attend(t, Pass::keys, source, start, end < count ? end : count, 0, t.tokens.count);
      });
    }
    sum_gates();
  }

 private:
  struct Task {
    Tokens tokens;  // all queries of the sample
    int64_t h, head;
    A *key, *value, *query, *grad, *rows;  // copies, where they are needed
    A *packed_query, *packed_grad;         // of a block, (d x block)
    A *scores, *grad_scores, *keep;        // (keys x block)
    A *grad_query, *grad_key, *grad_value;
    A *position, *group;  // of the queries of a block
    A *lse, *grad_lse;    // of the queries of a block, lse in powers of two
    A* blind;             // 1 for those that see no key of the step
    int64_t query_first;  // the row of grad_query[0]
  };
  // Keys start .. end of a list against queries first .. end.
  struct Step {
    Pass pass;
    int64_t source, start, end, query, queries;
    A gate;
  };

  // Divides a thread's memory into the buffers of a task; returns how many elements they take.
  int64_t carve(Task* t, A* memory) const {
    const int64_t d = p_.d, query_rows = two_passes_ ? block_ : p_.lq, tile = max_keys_ * block_;
    int64_t taken = 0;
    const auto take = [&](int64_t size) {
      A* part = memory == nullptr ? nullptr : memory + taken;
      taken += padded(size);
      return part;
    };
    Task unused;
    Task& task = t == nullptr ? unused : *t;
    task.key = take(max_keys_ * width_), task.value = take(max_keys_ * d), task.rows = take(lanes<A> * d);
    task.query = take(block_ * width_), task.grad = take(block_ * width_);
    task.packed_query = take(d * block_), task.packed_grad = take(d * block_);
    task.scores = take(tile), task.grad_scores = take(tile), task.keep = take(p_.dropout_p > 0 ? tile : 0);
    task.grad_query = take(query_rows * width_);
    task.grad_key = take(max_keys_ * width_), task.grad_value = take(max_keys_ * width_);
    task.position = take(block_), task.group = take(block_), task.lse = take(block_), task.grad_lse = take(block_);
    task.blind = take(block_);
    return taken;
  }

  // Ranges of keys of a source, one for those that no query sees.
  int64_t ranges_of(int64_t b, int64_t source) const {
    const int64_t count = lists_.list(b, source).count;
    return count == 0 ? 1 : (count + range_keys - 1) / range_keys;
  }

  // The rows of a sample are padded to whole vectors.
  A* row_of(A* rows, const Task& t, int64_t source) const { return row_of(rows, t.tokens.b, t.h, source); }
  A* row_of(A* rows, int64_t b, int64_t h, int64_t source) const {
    const int64_t start = rows_.start(b), count = rows_.start(b + 1) - start;
    return rows + start * p_.h * p_.sources + (h * p_.sources + source) * count;
  }
  A* dots_of(const Task& t) const {
    const int64_t start = rows_.start(t.tokens.b), count = rows_.start(t.tokens.b + 1) - start;
    return dots_ + start * p_.h + t.h * count;
  }

  // All sources for queries first .. end of one (b, h).
  void sweep(Task& t, Pass pass, int64_t first, int64_t end) const {
    t.query_first = first;
    bool started = false;
    if (p_.joint) output_dots(t, first, end);
    for (int64_t s = 0; s < p_.sources; ++s) {
      const int64_t count = lists_.list(t.tokens.b, s).count;
      if (pass == Pass::all) zero_hidden(t, s);
      if (count == 0) {
        zero(row_of(gate_rows_, t, s) + first, end - first);
        continue;
      }
      attend(t, pass, s, 0, count, first, end, !started);
      started = true;
    }
    T* out = slice_of<T>(p_.grad_query, t.tokens, t.h);
    for (int64_t i = first; i < end; ++i) {
      T* row = out + i * p_.grad_query.stride_l;
      if (!started) {
        zero(row, p_.d);
      } else if (!direct_) {
        copy_row(t.grad_query + (i - first) * width_, row, p_.d);
      }
    }
  }

  void zero_hidden(const Task& t, int64_t s) const {
    const KeyList& list = lists_.list(t.tokens.b, s);
    const AttentionTensor grads[] = {p_.grad_key[s], p_.grad_value[s]};
    for (const AttentionTensor& grad : grads) {
      T* rows = slice_of<T>(grad, list.tokens, t.h);
      int64_t next = 0;
      for (int64_t i = 0; i <= list.count; ++i) {
        const int64_t position = i < list.count ? list.position(i) : list.tokens.count;
        for (; next < position; ++next) zero(rows + next * grad.stride_l, p_.d);
        next = position + 1;
      }
    }
  }

  // A gradient of keys start .. of a list while it is summed: in the tensor itself where that is such a matrix.
  struct Sums {
    A* data;
    int64_t stride;
    bool in_place;
  };
  Sums sums_of(const AttentionTensor& tensor, const Task& t, const KeyList& list, int64_t start, A* buffer) const {
    if constexpr (sizeof(T) == sizeof(A)) {
      if (direct_ && list.index == nullptr) {
        return {slice_of<T>(tensor, list.tokens, t.h) + (list.first + start) * tensor.stride_l, tensor.stride_l, true};
      }
    }
    return {buffer, width_, false};
  }
  void finish_sums(const Sums& sums, const AttentionTensor& tensor, const Task& t, const KeyList& list, int64_t start,
                   int64_t count) const {
    if (sums.in_place) return;
    T* out = slice_of<T>(tensor, list.tokens, t.h);
    for (int64_t j = 0; j < count; ++j) {
      copy_row(sums.data + j * width_, out + list.position(start + j) * tensor.stride_l, p_.d);
    }
  }

  void attend(Task& t, Pass pass, int64_t s, int64_t start, int64_t end, int64_t first, int64_t last,
              bool first_source = false) const {
    const KeyList& list = lists_.list(t.tokens.b, s);
    const AttentionSource& source = p_.source[s];
    const int64_t count = end - start;
    const Matrix<A> key = matrix_of(list.rows<T>(source.key, t.h).from(start), count, p_.d, width_, t.key);
    const Matrix<A> value = matrix_of(list.rows<T>(source.value, t.h).from(start), count, p_.d, p_.d, t.value);
    const PairMask<A> pairs{source.relation, source.causal, t.position, t.group};
    const bool wants_query = pass == Pass::all || pass == Pass::queries;
    const bool wants_keys = pass == Pass::all || pass == Pass::keys;
    const Sums grad_key = sums_of(p_.grad_key[s], t, list, start, t.grad_key);
    const Sums grad_value = sums_of(p_.grad_value[s], t, list, start, t.grad_value);

    const A gate = gate_of<A>(p_, t.tokens.b, t.h, s);
    for (int64_t i = first; i < last; i += block_) {
      const int64_t queries = i + block_ < last ? block_ : last - i, columns = round_up(queries, lanes<A>);
      const Step step{pass, s, start, end, i, queries, gate};
      const A query_factor = static_cast<A>(p_.softmax_scale * log2_e);
      const RowList<T> query_rows = rows_of<T>(p_.query, t.tokens, t.h, i),
                       grad_rows = rows_of<T>(p_.grad_out, t.tokens, t.h, i);
      pack_transposed(query_rows, queries, p_.d, query_factor, t.packed_query, block_, t.rows);
      pack_transposed(grad_rows, queries, p_.d, A(1), t.packed_grad, block_, t.rows);
      multiply<false>(key, Matrix<A>{t.packed_query, block_}, t.scores, block_, count, columns, p_.d);
      multiply<false>(value, Matrix<A>{t.packed_grad, block_}, t.grad_scores, block_, count, columns, p_.d);
      if (pairs.needed()) pairs.load_queries(lists_.query_groups(t.tokens.b), i, queries, block_);
      const bool any_blind = differentiate(t, step, pairs, list, key);
      if (wants_query) {
        A* out = t.grad_query + (i - t.query_first) * width_;
        int64_t stride = width_;
        if constexpr (sizeof(T) == sizeof(A)) {
          if (direct_) {
            stride = p_.grad_query.stride_l;
            out = slice_of<T>(p_.grad_query, t.tokens, t.h) + i * stride;
          }
        }
        multiply<true>(Matrix<A>{t.grad_scores, block_}, key, out, stride, queries, width_, count,
                       Into<A>{nullptr, !first_source});
      }
      if (wants_keys) {
        Matrix<A> query = matrix_of(query_rows, queries, p_.d, width_, t.query);
        Matrix<A> grad = matrix_of(grad_rows, queries, p_.d, width_, t.grad);
        if (any_blind) {
          query = without_blind(t, query, queries, t.query);
          grad = without_blind(t, grad, queries, t.grad);
        }
        multiply<false>(Matrix<A>{t.scores, block_}, grad, grad_value.data, grad_value.stride, count, width_, queries,
                        Into<A>{nullptr, i > first});
        multiply<false>(Matrix<A>{t.grad_scores, block_}, query, grad_key.data, grad_key.stride, count, width_, queries,
                        Into<A>{nullptr, i > first});
      }
    }
    if (!wants_keys) return;
    finish_sums(grad_key, p_.grad_key[s], t, list, start, count);
    finish_sums(grad_value, p_.grad_value[s], t, list, start, count);
  }

  // Rows with zeros for those that see no key: they are multiplied by weights of 0, and may hold NaN.
  Matrix<A> without_blind(const Task& t, Matrix<A> rows, int64_t queries, A* buffer) const {
    for (int64_t r = 0; r < queries; ++r) {
      A* row = buffer + r * width_;
      if (t.blind[r] != 0) {
        zero(row, width_);
      } else if (rows.data != buffer) {
        __builtin_memcpy(row, rows.data + r * rows.stride, static_cast<size_t>(width_) * sizeof(A));
      }
    }
    return {buffer, width_};
  }

  // lse (in powers of two) and its gradient for a block of queries. Rows that see no key, and those that pad the block,
  // get an infinite lse, which makes their weights 0.
  void load_rows(const Task& t, const Step& step) const {
    const int64_t stride = p_.joint ? 1 : p_.sources;
    const int64_t row = (query_row(p_, t.tokens, t.h) + step.query) * stride + (p_.joint ? 0 : step.source);
    const A* lse = static_cast<const A*>(p_.lse) + row;
    const A* grad = p_.grad_lse == nullptr ? nullptr : static_cast<const A*>(p_.grad_lse) + row;
    for (int64_t r = 0; r < block_; ++r) {
      const bool empty = r >= step.queries || lse[r * stride] == A(-__builtin_inff());
      t.lse[r] = empty ? A(__builtin_inff()) : lse[r * stride] * A(log2_e);
      t.grad_lse[r] = empty || grad == nullptr ? A(0) : grad[r * stride];
    }
  }

  // Turns S and dP into the factors of the products: g P after dropout, and scale dS; a vector of queries at a time.
  // Every factor is in them, so that a product is only stored or added: of two multiplications around a sum the
  // compiler may fuse either, and not the same one in every register block. Returns whether a query sees no key of the
  // step.
  bool differentiate(Task& t, const Step& step, const PairMask<A>& pairs, const KeyList& list, Matrix<A> key) const {
    load_rows(t, step);
    const Vector<A> zeros = {}, hidden = broadcast<A>(A(-__builtin_inff()));
    const int64_t count = step.end - step.start;
    const bool drops = p_.dropout_p > 0;
    // A weight is at most 1, without a joint gate applied at most 1 / gate, but scores so large that they are
    // recomputed with another rounding error than lse would overflow. Unbounded is a source whose gate is 0: there the
    // clamp keeps the gate's gradient finite.
    const A unbounded = A(80 * log2_e);
    const A most = !p_.joint ? A(0) : step.gate > 0 ? A(-__builtin_log2(double(step.gate))) : unbounded;
    bool any_blind = false;
    for (int64_t q = 0; q < step.queries; q += lanes<A>) {
      A *scores = t.scores + q, *grads = t.grad_scores + q, *keep = t.keep + q;
      const Vector<A> pivot = load(t.lse + q);
      if (any_is_large<T, A>(pivot)) {
        refine_scores<T, A>(key, t.packed_query + q, block_, p_.d, scores, count, pivot);
      }
      // Seen by each query; all keys are here unless it is the second pass.
      Vector<A> seen = zeros + static_cast<A>(list.count);
      if (pairs.needed()) seen = pairs.apply(scores, block_, list, step.start, count, q);
      if (drops) {
        const Dropout dropout{p_.seed, p_.drop_threshold};
        const A factor = A(1 / (1 - p_.dropout_p));
        dropout.fill(keep, block_, list, step.start, count, step.query + q, t.head, step.source, factor);
        for (int64_t j = 0; j < count; ++j) {
          store(grads + j * block_, load(grads + j * block_) * load(keep + j * block_));
        }
      }

      const Vector<A> blind = seen == zeros ? zeros + 1 : pivot == -hidden ? zeros + 1 : zeros;
      store(t.blind + q, blind);
      bool has_blind = false;
      for (int64_t r = q; r < step.queries && r < q + lanes<A>; ++r) has_blind |= t.blind[r] != 0;
      any_blind |= has_blind;
      if (has_blind) clear(grads, count, blind);

      A* single_row = row_of(single_, t, step.source) + step.query + q;
      if (step.pass != Pass::keys) store(single_row, !p_.joint ? (seen == zeros + 1 ? zeros + 1 : zeros) : zeros);
      const Vector<A> single = load(single_row);
      const bool any_single = sum_lanes<A>(single) != 0;
      const Vector<A> limit = broadcast<A>(most < unbounded ? most : unbounded);
      Vector<A> products = {}, weights = {};
      for (int64_t j = 0; j < count; ++j) {
        const Vector<A> score = load(scores + j * block_), x = score - pivot;
        Vector<A> weight = exp2<A>(limit < x ? limit : x);
        // The only key of a source has weight 1 and no gradient, exactly, whatever lse was rounded to.
        if (any_single) weight = single == zeros ? weight : score == hidden ? zeros : score * 0 + 1;
        store(scores + j * block_, weight);
        products += weight * load(grads + j * block_);
        weights += weight;
      }
      A* dots = dots_of(t) + step.query + q;
      A* inverses = row_of(inverses_, t, p_.joint ? 0 : step.source) + step.query + q;
      if (step.pass == Pass::dots) {
        store(dots, load(dots) + step.gate * products);
        store(inverses, load(inverses) + step.gate * weights);
        continue;
      }
      A* shifts = row_of(shifts_, t, step.source) + step.query + q;
      const Vector<A> upstream = load(t.grad_lse + q);
      if (step.pass != Pass::keys) {
        if (!p_.joint) store(inverses, weights == zeros ? zeros : 1 / weights);
        const Vector<A> inverse = load(inverses);
        const Vector<A> shift = !p_.joint ? inverse * products : pivot == -hidden ? zeros : load(dots) - upstream;
        store(shifts, shift);
        A* gate_rows = row_of(gate_rows_, t, step.source) + step.query + q;
        const Vector<A> of_gate = p_.joint ? inverse * (products - shift * weights) : shift;
        store(gate_rows, blind == zeros ? of_gate : zeros);
      }
      const A scale = static_cast<A>(p_.softmax_scale);
      const Vector<A> shift = load(shifts), inverse = load(inverses), gate = step.gate * inverse;
      const Vector<A> factor = scale * gate, rest = p_.joint ? zeros : scale * upstream * inverse;
      for (int64_t j = 0; j < count; ++j) {
        A *weight = scores + j * block_, *grad = grads + j * block_;
        const Vector<A> gated = gate * load(weight);
        store(grad, load(weight) * (factor * (load(grad) - shift) + rest));
        store(weight, drops ? gated * load(keep + j * block_) : gated);
      }
      if (has_blind) clear(grads, count, blind), clear(scores, count, blind);
    }
    return any_blind;
  }

  // Zeros in the columns of a vector of queries whose entry in `blind` is not 0.
  void clear(A* columns, int64_t count, Vector<A> blind) const {
    const Vector<A> zeros = {};
    for (int64_t j = 0; j < count; ++j) {
      store(columns + j * block_, blind == zeros ? load(columns + j * block_) : zeros);
    }
  }

  // For every row, <dO_i, O_i> and 1 / the sum of the weights that are recomputed from its lse.
  void output_dots(Task& t, int64_t first, int64_t end) const {
    constexpr bool exact_output = sizeof(T) == sizeof(A);
    A *dots = dots_of(t), *inverses = row_of(inverses_, t, 0);
    zero(dots + first, round_up(end, lanes<A>) - first);
    zero(inverses + first, round_up(end, lanes<A>) - first);
    const A* lse = static_cast<const A*>(p_.lse) + query_row(p_, t.tokens, t.h);
    const auto is_summed = [&](int64_t i) { return !exact_output || is_large<T>(lse[i] * A(log2_e)); };
    bool any_summed = false;
    for (int64_t i = first; i < end; ++i) any_summed = any_summed || is_summed(i);
    for (int64_t s = 0; any_summed && s < p_.sources; ++s) {
      const int64_t count = lists_.list(t.tokens.b, s).count;
      if (count > 0) attend(t, Pass::dots, s, 0, count, first, end);
    }
    for (int64_t i = first; i < end; ++i) {
      if (is_summed(i)) {
        inverses[i] = inverses[i] == 0 ? A(0) : 1 / inverses[i];
        dots[i] *= inverses[i];
      } else if constexpr (exact_output) {
        const A* out = rows_of<T>(p_.out, t.tokens, t.h)[i];
        dot_rows<1>(rows_of<T>(p_.grad_out, t.tokens, t.h)[i], &out, p_.d, dots + i);
        inverses[i] = 1;
      }
    }
  }

  void sum_gates() const {
    if (p_.grad_gates == nullptr) return;
    A* out = static_cast<A*>(p_.grad_gates);
    for (int64_t b = 0; b < p_.b; ++b) {
      const int64_t queries = queries_of(p_, b).count;
      for (int64_t i = 0; i < p_.h * p_.sources; ++i) {
        const A* rows = row_of(gate_rows_, b, i / p_.sources, i % p_.sources);
        A sum = 0;
        for (int64_t r = 0; r < queries; ++r) sum += rows[r];
        *out++ = sum;
      }
    }
  }

  const AttentionBackwardParams& p_;
  const int threads_;
  const KeyLists lists_;
  const int64_t width_;  // d rounded up to whole vectors
  const bool direct_;    // gradients are summed in place
  Pieces rows_;          // queries of a sample, rounded up to whole vectors
  bool two_passes_ = false;
  int64_t max_keys_ = 0, block_ = 0;
  A *shifts_ = nullptr, *gate_rows_ = nullptr, *dots_ = nullptr, *single_ = nullptr, *inverses_ = nullptr;
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
