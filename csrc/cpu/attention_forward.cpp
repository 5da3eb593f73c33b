// Peripheral-to-Central attention, forward: for each (b, h) the keys are packed in tiles, and blocks of queries go over
// them with an online softmax. Powers of two throughout: log2(e) is folded into the packed keys.
// Compiled once per instruction set.
#include "attention_keys.h"

namespace amuse {
namespace AMUSE_ISA {
namespace {

constexpr int64_t max_tile_keys = 256;  // their scores against a block of queries stay in the first-level cache
constexpr int64_t block_scores = 6 * 1024;  // of a block of queries and a tile
constexpr int64_t min_block_queries = 24, max_block_queries = 48;  // multiples of every block_rows
constexpr int64_t max_chunk_queries = 960;  // a multiple of every block; bounds a thread's running sums
inline float log_of(float x) { return __builtin_logf(x); }
inline double log_of(double x) { return __builtin_log(x); }

template <class A>
inline A max_lanes(Vector<A> v) {
  A largest = v[0];
#pragma GCC unroll 16
  for (int64_t j = 1; j < lanes<A>; ++j) largest = v[j] > largest ? v[j] : largest;
  return largest;
}

template <class A>
inline Vector<A> larger(Vector<A> a, Vector<A> b) {
  return a > b ? a : b;
}

template <class A>
A row_max(const A* scores, int64_t count) {
  Vector<A> even = load(scores), odd = even;
  int64_t j = lanes<A>;
  for (; j + 2 * lanes<A> <= count; j += 2 * lanes<A>) {
    even = larger<A>(load(scores + j), even);
    odd = larger<A>(load(scores + j + lanes<A>), odd);
  }
  if (j < count) even = larger<A>(load(scores + j), even);
  return max_lanes<A>(larger<A>(even, odd));
}

// scores = 2^(scores - pivot); returns their sum.
template <class A>
A row_exp(A* scores, int64_t count, A pivot) {
  Vector<A> even = {}, odd = {};
  int64_t j = 0;
  for (; j + 2 * lanes<A> <= count; j += 2 * lanes<A>) {
    const Vector<A> x = exp2<A>(load(scores + j) - pivot), y = exp2<A>(load(scores + j + lanes<A>) - pivot);
    store(scores + j, x);
    store(scores + j + lanes<A>, y);
    even += x;
    odd += y;
  }
  if (j < count) {
    const Vector<A> x = exp2<A>(load(scores + j) - pivot);
    store(scores + j, x);
    even += x;
  }
  return sum_lanes<A>(even + odd);
}

template <class T>
class Forward {
  using A = typename Accumulator<T>::type;

 public:
  Forward(const AttentionForwardParams& p, int threads)
      : p_(p),
        threads_(threads),
        lists_(p, threads),
        width_(round_up(p.d, lanes<A>)),
        direct_(sizeof(T) == sizeof(A) && width_ == p.d) {
    for (int64_t s = 0; s < p.sources; ++s) {
      const int64_t length = p.source[s].length;
      tile_keys_ = length > tile_keys_ ? length : tile_keys_;
    }
    tile_keys_ = round_up(tile_keys_ < max_tile_keys ? tile_keys_ : max_tile_keys, panel<A>);
    block_ = tile_keys_ * max_block_queries <= block_scores ? max_block_queries : min_block_queries;
    chunk_queries();
  }

  void run() {
    const int64_t chunk = chunk_;
    // per thread, in elements
    const int64_t keys = padded(tile_keys_ * p_.d), values = padded(tile_keys_ * round_up(p_.d, panel<A>));
    const int64_t scores = padded(block_ * tile_keys_), block = padded(block_ * p_.d);
    const int64_t rows = padded(lanes<A> * p_.d), sums = padded(chunk * width_), state = padded(chunk);
    const int64_t per_thread = keys + values + scores + block + rows + 2 * sums + 3 * state +
                               2 * padded(block_) + 3 * padded(tile_keys_);
    const Scratch scratch(threads_ * per_thread * static_cast<int64_t>(sizeof(A)));
    parallel_tasks(threads_, p_.b * p_.h * chunks_, [&](int thread, int64_t task) {
      Task t;
      t.b = task / chunks_ / p_.h, t.h = task / chunks_ % p_.h;
      t.first = task % chunks_ * chunk;
      t.end = t.first + chunk < p_.lq ? t.first + chunk : p_.lq;
      A* memory = scratch.at<A>(thread * per_thread);
      const auto take = [&](int64_t size) {
        A* taken = memory;
        memory += size;
        return taken;
      };
      t.keys = take(keys), t.values = take(values), t.scores = take(scores), t.block = take(block);
      t.rows = take(rows), t.out = take(sums), t.part = take(sums);
      t.pivot = take(state), t.total = take(state), t.started = take(state);
      t.alpha = take(padded(block_)), t.beta = take(padded(block_));
      t.position = take(padded(tile_keys_)), t.group = take(padded(tile_keys_)), t.keep = take(padded(tile_keys_));
      chunk_of(t);
    });
  }

 private:
  struct Task {
    int64_t b, h, first, end;  // queries first .. end
    A *keys, *values, *scores, *block, *rows, *position, *group, *keep;
    A *out, *part;             // running sums, all sources and this source
    A *pivot, *total;          // running maximum and sum of a row
    A* started;                // per block of queries: which sums hold something
    A *alpha, *beta;
    int64_t out_stride;
  };

  // Cuts the queries where there are fewer (b, h) than threads. A row's result does not depend on its chunk.
  void chunk_queries() {
    const int64_t heads = p_.b * p_.h, blocks = (p_.lq + block_ - 1) / block_;
    int64_t cuts = 1;
    while (cuts < blocks && heads * cuts < 4 * threads_ && heads * cuts % threads_ != 0) ++cuts;
    const int64_t blocks_of_chunk = blocks == 0 ? 1 : (blocks + cuts - 1) / cuts;
    const int64_t limit = max_chunk_queries / block_;
    chunk_ = (blocks_of_chunk < limit ? blocks_of_chunk : limit) * block_;
    chunks_ = (p_.lq + chunk_ - 1) / chunk_;
  }

  void chunk_of(Task& t) const {
    const int64_t count = t.end - t.first;
    t.out_stride = width_;
    if constexpr (sizeof(T) == sizeof(A)) {
      if (direct_) {
        t.out = slice_of<T>(p_.out, t.b, t.h) + t.first * p_.out.stride_l;
        t.out_stride = p_.out.stride_l;
      }
    }
    const int64_t blocks = (count + block_ - 1) / block_;
    zero(t.started, blocks);
    reset_rows(t, count);
    for (int64_t s = 0; s < p_.sources; ++s) {
      const A g = gate_of<A>(p_, t.b, t.h, s);
      if (p_.joint && g == 0) continue;  // a closed source must not set the pivot
      attend(t, s, g);
      if (!p_.joint) {
        store_lse(t, count, p_.sources, s);
        reset_rows(t, count);
      }
    }
    if (p_.joint) store_lse(t, count, 1, 0);
    finish(t, count);
  }

  void reset_rows(Task& t, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) t.pivot[i] = A(-__builtin_inff()), t.total[i] = 0;
  }

  void store_lse(Task& t, int64_t count, int64_t stride, int64_t offset) const {
    A* lse = static_cast<A*>(p_.lse) + ((t.b * p_.h + t.h) * p_.lq + t.first) * stride + offset;
    for (int64_t i = 0; i < count; ++i) {
      lse[i * stride] = t.total[i] == 0 ? A(-__builtin_inff()) : t.pivot[i] * A(ln_2) + log_of(t.total[i]);
    }
  }

  void attend(Task& t, int64_t s, A g) const {
    const KeyList& list = lists_.list(t.b, s);
    const AttentionSource& source = p_.source[s];
    const int64_t tiles = (list.count + max_tile_keys - 1) / max_tile_keys;
    if (tiles == 0) return;
    const int64_t tile = round_up((list.count + tiles - 1) / tiles, panel<A>);
    const bool split = !p_.joint && list.count > tile;
    const RowList<T> keys = list.rows<T>(source.key, t.b, t.h), values = list.rows<T>(source.value, t.b, t.h);
    const A factor = static_cast<A>(p_.softmax_scale * log2_e);
    PairMask<A> pairs{t.position, t.group, source.causal, source.relation, lists_.query_groups(t.b)};
    const bool paired = source.causal || source.relation != Relation::any;

    for (int64_t start = 0; start < list.count; start += tile) {
      const int64_t count = start + tile < list.count ? tile : list.count - start;
      pack_transposed(keys.from(start), count, p_.d, factor, t.keys, t.rows);
      const Panels<A> value = value_panels(values.from(start), count, t);
      if (paired) pairs.load_tile(list, start, count, round_up(count, lanes<A>));
      for (int64_t i = t.first; i < t.end; i += block_) {
        const int64_t queries = i + block_ < t.end ? block_ : t.end - i;
        int64_t seen = count;
        if (source.causal) {
          seen = list.count_to(i + queries - 1) - start;
          if (seen <= 0) continue;
          seen = seen < count ? seen : count;
        }
        const Step step{s, start, seen, i, queries, g, split};
        scores_of(t, step);
        softmax(t, step, paired ? &pairs : nullptr, list);
        add_values(t, step, value);
      }
    }
    if (split) add_part(t, g);
  }

  struct Step {
    int64_t source, start, count;  // keys
    int64_t query, queries;
    A gate;
    bool split;
  };

  Panels<A> value_panels(const RowList<T>& rows, int64_t count, Task& t) const {
    if constexpr (sizeof(T) == sizeof(A)) {
      if (direct_ && rows.index == nullptr && t.end - t.first < 32) return {rows[0], rows.stride, panel<A>};
    }
    return pack_rows(rows, count, p_.d, t.values, t.rows);
  }

  void scores_of(Task& t, const Step& step) const {
    const RowList<T> queries = rows_of<T>(p_.query, t.b, t.h, step.query);
    const LeftRows<A> left = left_rows(queries, step.queries, p_.d, t.block);
    multiply<false>(left.data, left.stride, Panels<A>{t.keys, panel<A>, panel<A> * p_.d}, t.scores, tile_keys_,
                    step.queries, round_up(step.count, lanes<A>), p_.d);
  }

  // Turns scores into unnormalised weights and leaves in alpha and beta what add_values multiplies new and old sums by.
  void softmax(Task& t, const Step& step, const PairMask<A>* pairs, const KeyList& list) const {
    const int64_t padded_count = round_up(step.count, lanes<A>);
    const A drop_factor = p_.dropout_p > 0 ? A(1 / (1 - p_.dropout_p)) : A(1);
    for (int64_t r = 0; r < step.queries; ++r) {
      const int64_t i = step.query - t.first + r;
      A* scores = t.scores + r * tile_keys_;
      hide_tail(scores, step.count, padded_count);
      if (pairs != nullptr) pairs->apply(scores, padded_count, step.query + r);
      const A largest = row_max(scores, padded_count), old = t.pivot[i];
      const A pivot = largest > old ? largest : old;
      const A finite = pivot == A(-__builtin_inff()) ? A(0) : pivot;
      const A sum = row_exp(scores, padded_count, finite);
      const A shrink = exp2_of<A>(old - finite);
      t.pivot[i] = finite == pivot ? pivot : old;
      t.total[i] = t.total[i] * shrink + (p_.joint ? step.gate * sum : sum);
      t.alpha[r] = p_.joint ? step.gate * drop_factor : drop_factor;
      t.beta[r] = shrink;
      if (!p_.joint && !step.split) {
        t.alpha[r] = t.total[i] == 0 ? A(0) : step.gate * drop_factor / t.total[i];
        t.beta[r] = 1;
      }
      if (p_.dropout_p > 0) {
        const Dropout dropout{p_.seed, p_.drop_threshold};
        dropout.fill(t.keep, list, step.start, step.count, step.query + r, t.b * p_.h + t.h, step.source, A(1));
        for (int64_t j = 0; j < step.count; ++j) scores[j] *= t.keep[j];
      }
    }
  }

  // bits of Task::started
  static constexpr int out_started = 1, part_started = 2;

  void add_values(Task& t, const Step& step, const Panels<A>& value) const {
    const int64_t row = step.query - t.first;
    A& flag = t.started[row / block_];
    const int started = static_cast<int>(flag), own = step.split ? part_started : out_started;
    A* sums = step.split ? t.part + row * width_ : t.out + row * t.out_stride;
    const Factors<A> factors{t.alpha, (started & own) != 0 ? t.beta : nullptr, 1};
    multiply<false>(t.scores, tile_keys_, value, sums, step.split ? width_ : t.out_stride, step.queries, width_,
                    step.count, factors);
    flag = static_cast<A>(started | own);
  }

  // out += gate / total * part, for a source whose keys fill several tiles.
  void add_part(Task& t, A g) const {
    for (int64_t i = 0; i < t.end - t.first; ++i) {
      A& flag = t.started[i / block_];
      const int started = static_cast<int>(flag);
      const bool last = i % block_ == block_ - 1 || i == t.end - t.first - 1;
      if ((started & part_started) != 0) {
        const A factor = t.total[i] == 0 ? A(0) : g / t.total[i];
        A *out = t.out + i * t.out_stride, *part = t.part + i * width_;
        for (int64_t k = 0; k < width_; k += lanes<A>) {
          const Vector<A> sum = factor * load(part + k);
          store(out + k, (started & out_started) != 0 ? load(out + k) + sum : sum);
        }
        if (last) flag = static_cast<A>(out_started);
      }
    }
  }

  void finish(Task& t, int64_t count) const {
    T* out = slice_of<T>(p_.out, t.b, t.h) + t.first * p_.out.stride_l;
    for (int64_t i = 0; i < count; ++i) {
      if (t.started[i / block_] == 0) {
        zero(out + i * p_.out.stride_l, p_.d);
        continue;
      }
      A* sums = t.out + i * t.out_stride;
      if (p_.joint) {
        const A factor = t.total[i] == 0 ? A(0) : 1 / t.total[i];
        for (int64_t k = 0; k < width_; k += lanes<A>) store(sums + k, factor * load(sums + k));
      }
      if (direct_) continue;
      if constexpr (sizeof(T) == sizeof(A)) {
        __builtin_memcpy(out + i * p_.out.stride_l, sums, static_cast<size_t>(p_.d) * sizeof(A));
      } else {
        narrow_row(sums, out + i * p_.out.stride_l, p_.d);
      }
    }
  }

  const AttentionForwardParams& p_;
  const int threads_;
  const KeyLists lists_;
  const int64_t width_;  // d rounded up to whole vectors
  const bool direct_;    // sums are kept in the output itself
  int64_t tile_keys_ = 0, block_ = 0, chunk_ = 0, chunks_ = 0;
};

}  // namespace

void attention_forward(const AttentionForwardParams& params, int threads) {
  switch (params.dtype) {
    case Dtype::float32: return Forward<float>(params, threads).run();
    case Dtype::float64: return Forward<double>(params, threads).run();
    case Dtype::float16: return Forward<Half>(params, threads).run();
    case Dtype::bfloat16: return Forward<BFloat16>(params, threads).run();
  }
}

}  // namespace AMUSE_ISA
}  // namespace amuse
