// Peripheral-to-Central attention, forward. A block of queries meets one source after the other, keys in tiles, with an
// online softmax. Scores are kept transposed, (keys x queries): keys and values are then read where they lie, only the
// queries are packed, and a row's maximum and sum are taken down the lanes of a vector. Powers of two throughout:
// log2(e) is folded into the packed queries. Compiled once per instruction set.
#include "attention_keys.h"
#include "attention_scores.h"

namespace amuse {
namespace AMUSE_ISA {
namespace {

constexpr int64_t max_tile_keys = 128;     // their scores against a block of queries stay in the first-level cache
constexpr int64_t max_block_queries = 48;  // a multiple of every vector length

inline float log_of(float x) { return __builtin_logf(x); }
inline double log_of(double x) { return __builtin_log(x); }

template <class A>
inline Vector<A> larger(Vector<A> a, Vector<A> b) {
  return a > b ? a : b;
}

// Maximum of a column of vectors; NaN counts as smallest.
template <class A>
Vector<A> column_max(const A* scores, int64_t stride, int64_t count) {
  const Vector<A> hidden = broadcast<A>(A(-__builtin_inff()));
  Vector<A> even = hidden, odd = hidden;
  int64_t j = 0;
  for (; j + 2 <= count; j += 2) {
    even = larger<A>(load(scores + j * stride), even);
    odd = larger<A>(load(scores + (j + 1) * stride), odd);
  }
  if (j < count) even = larger<A>(load(scores + j * stride), even);
  return larger<A>(even, odd);
}

// scores = 2^(scores - pivot); returns their sum.
template <class A>
Vector<A> column_exp(A* scores, int64_t stride, int64_t count, Vector<A> pivot) {
  Vector<A> even = {}, odd = {};
  int64_t j = 0;
  for (; j + 2 <= count; j += 2) {
    A *first = scores + j * stride, *second = first + stride;
    const Vector<A> x = exp2<A>(load(first) - pivot), y = exp2<A>(load(second) - pivot);
    store(first, x);
    store(second, y);
    even += x;
    odd += y;
  }
  if (j < count) {
    const Vector<A> x = exp2<A>(load(scores + j * stride) - pivot);
    store(scores + j * stride, x);
    even += x;
  }
  return even + odd;
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
    tile_keys_ = tile_keys_ < max_tile_keys ? tile_keys_ : max_tile_keys;
  }

  // A task is a (b, h), or a block of its queries where a (b, h) is much of all work. A row does not depend on its
  // task.
  void run() {
    const Work work(p_);
    Pieces tasks(p_.b);
    for (int64_t b = 0; b < p_.b; ++b) {
      const int64_t queries = queries_of(p_, b).count;
      const bool divided = Work::of_sample(p_, b) * 4 * threads_ > work.total * p_.h;
      tasks.add(b, queries == 0 ? 0 : p_.h * (divided ? blocks_of(queries) : 1));
    }
    // per thread, in elements
    const int64_t rounded = round_up(p_.lq, lanes<A>),
                  longest = rounded < max_block_queries ? rounded : max_block_queries;
    const int64_t state = padded(longest);
    const int64_t query = padded(p_.d * longest), scores = padded(tile_keys_ * longest), rows = padded(lanes<A> * p_.d);
    const int64_t key = padded(tile_keys_ * width_), sums = padded(longest * width_);
    const int64_t per_thread = query + 2 * scores + rows + 2 * key + 2 * sums + 6 * state;
    const Scratch scratch(threads_ * per_thread * static_cast<int64_t>(sizeof(A)));
    parallel_tasks(threads_, tasks.total(), [&](int thread, int64_t task) {
      A* memory = scratch.at<A>(thread * per_thread);
      const auto take = [&](int64_t size) {
        A* taken = memory;
        memory += size;
        return taken;
      };
      Block t;
      const int64_t b = tasks.sample_of(task), piece = task - tasks.start(b);
      const int64_t tasks_of_head = (tasks.start(b + 1) - tasks.start(b)) / p_.h;
      t.tokens = queries_of(p_, b);
      t.h = piece / tasks_of_head, t.head = b * p_.h + t.h;
      t.size = block_size(t.tokens.count);
      t.query = take(query), t.scores = take(scores), t.keep = take(scores), t.rows = take(rows);
      t.key = take(key), t.value = take(key), t.sums = take(sums), t.part = take(sums);
      t.pivot = take(state), t.total = take(state), t.alpha = take(state), t.beta = take(state);
      t.position = take(state), t.group = take(state);
      const bool divided = tasks_of_head > 1;
      const int64_t first = divided ? piece % tasks_of_head * t.size : 0, end = divided ? first + 1 : t.tokens.count;
      for (t.first = first; t.first < end; t.first += t.size) {
        t.queries = t.first + t.size < t.tokens.count ? t.size : t.tokens.count - t.first;
        block(t);
      }
    });
  }

 private:
  struct Block {
    Tokens tokens;  // all queries of the sample
    int64_t h, head, first, queries;
    int64_t size;           // columns of the buffers, `queries` or more
    A* query;               // packed, (d x block)
    A *scores, *keep;       // (tile x block)
    A *key, *value, *rows;  // copies, where they are needed
    A *sums, *part;         // sums of this block's output: over all sources, and of this source
    A *pivot, *total;       // running maximum and sum of a row
    A *alpha, *beta;        // what new and old sums are multiplied by
    A *position, *group;    // of the queries
    A* out;
    int64_t out_stride;
    bool out_started, part_started;  // whether the sums hold something
  };
  // Keys start .. start + count of a source's list.
  struct Step {
    int64_t source, start, count;
    A gate;
    bool split;
  };

  static int64_t blocks_of(int64_t queries) {
    const int64_t size = block_size(queries);
    return (queries + size - 1) / size;
  }
  // As few as max_block_queries allows, of the same size.
  static int64_t block_size(int64_t queries) {
    const int64_t blocks = (queries + max_block_queries - 1) / max_block_queries;
    return blocks == 0 ? lanes<A> : round_up((queries + blocks - 1) / blocks, lanes<A>);
  }

  void block(Block& t) const {
    t.out = t.sums, t.out_stride = width_;
    if constexpr (sizeof(T) == sizeof(A)) {
      if (direct_) {
        t.out = slice_of<T>(p_.out, t.tokens, t.h) + t.first * p_.out.stride_l;
        t.out_stride = p_.out.stride_l;
      }
    }
    t.out_started = false;
    pack_transposed(rows_of<T>(p_.query, t.tokens, t.h, t.first), t.queries, p_.d,
                    static_cast<A>(p_.softmax_scale * log2_e), t.query, t.size, t.rows);
    reset_rows(t);
    for (int64_t s = 0; s < p_.sources; ++s) {
      const A g = gate_of<A>(p_, t.tokens.b, t.h, s);
      if (p_.joint && g == 0) continue;  // a closed source must not set the pivot
      attend(t, s, g);
      if (!p_.joint) {
        store_lse(t, p_.sources, s);
        reset_rows(t);
      }
    }
    if (p_.joint) store_lse(t, 1, 0);
    finish(t);
  }

  void reset_rows(Block& t) const {
    for (int64_t i = 0; i < t.size; ++i) t.pivot[i] = A(-__builtin_inff()), t.total[i] = 0;
  }

  void store_lse(const Block& t, int64_t stride, int64_t offset) const {
    A* lse = static_cast<A*>(p_.lse) + (query_row(p_, t.tokens, t.h) + t.first) * stride + offset;
    for (int64_t i = 0; i < t.queries; ++i) {
      lse[i * stride] = t.total[i] == 0 ? A(-__builtin_inff()) : t.pivot[i] * A(ln_2) + log_of(t.total[i]);
    }
  }

  void attend(Block& t, int64_t s, A g) const {
    const KeyList& list = lists_.list(t.tokens.b, s);
    const AttentionSource& source = p_.source[s];
    const int64_t seen = source.causal ? list.count_to(t.first + t.queries - 1) : list.count;
    const int64_t tiles = (list.count + max_tile_keys - 1) / max_tile_keys;
    if (seen == 0) return;
    const int64_t tile = (list.count + tiles - 1) / tiles;
    const bool split = !p_.joint && list.count > tile;
    const RowList<T> keys = list.rows<T>(source.key, t.h), values = list.rows<T>(source.value, t.h);
    const PairMask<A> pairs{source.relation, source.causal, t.position, t.group};
    if (pairs.needed()) pairs.load_queries(lists_.query_groups(t.tokens.b), t.first, t.queries, t.size);

    t.part_started = false;
    for (int64_t start = 0; start < seen; start += tile) {
      const Step step{s, start, start + tile < seen ? tile : seen - start, g, split};
      const Matrix<A> key = matrix_of(keys.from(start), step.count, p_.d, p_.d, t.key);
      multiply<false>(key, Matrix<A>{t.query, t.size}, t.scores, t.size, step.count, columns(t), p_.d);
      softmax(t, step, pairs, list, key);
      add_values(t, step, matrix_of(values.from(start), step.count, p_.d, width_, t.value));
    }
    if (split) add_part(t, g);
  }

  int64_t columns(const Block& t) const { return round_up(t.queries, lanes<A>); }

  // Turns scores into unnormalised weights and sets alpha and beta, the factors of new and old sums in add_values.
  void softmax(Block& t, const Step& step, const PairMask<A>& pairs, const KeyList& list, Matrix<A> key) const {
    const A drop_factor = p_.dropout_p > 0 ? A(1 / (1 - p_.dropout_p)) : A(1);
    const Vector<A> zeros = {}, hidden = broadcast<A>(A(-__builtin_inff()));
    for (int64_t q = 0; q < columns(t); q += lanes<A>) {
      A* scores = t.scores + q;
      if (pairs.needed()) pairs.apply(scores, t.size, list, step.start, step.count, q);
      Vector<A> top = column_max(scores, t.size, step.count);
      if (any_is_large<T, A>(top)) {
        refine_scores<T, A>(key, t.query + q, t.size, p_.d, scores, step.count, top);
        if (pairs.needed()) pairs.apply(scores, t.size, list, step.start, step.count, q);
        top = column_max(scores, t.size, step.count);
      }
      const Vector<A> old = load(t.pivot + q), pivot = larger<A>(top, old);
      const Vector<A> finite = pivot == hidden ? zeros : pivot;
      const Vector<A> sum = column_exp<A>(scores, t.size, step.count, finite), shrink = exp2<A>(old - finite);
      const Vector<A> total = load(t.total + q) * shrink + (p_.joint ? step.gate * sum : sum);
      store(t.pivot + q, pivot);
      store(t.total + q, total);
      store(t.beta + q, shrink);
      if (p_.joint || step.split) {
        store(t.alpha + q, zeros + (p_.joint ? step.gate * drop_factor : drop_factor));
      } else {
        store(t.alpha + q, total == zeros ? zeros : step.gate * drop_factor / total);
      }
      if (p_.dropout_p > 0) {
        const Dropout dropout{p_.seed, p_.drop_threshold};
        dropout.fill(t.keep + q, t.size, list, step.start, step.count, t.first + q, t.head, step.source, A(1));
        for (int64_t j = 0; j < step.count; ++j) {
          store(scores + j * t.size, load(scores + j * t.size) * load(t.keep + q + j * t.size));
        }
      }
    }
  }

  void add_values(Block& t, const Step& step, Matrix<A> value) const {
    bool& started = step.split ? t.part_started : t.out_started;
    A* sums = step.split ? t.part : t.out;
    const int64_t stride = step.split ? width_ : t.out_stride;
    if (started && (step.split || p_.joint)) {
      for (int64_t i = 0; i < t.queries; ++i) scale_row(sums + i * stride, t.beta[i]);
    }
    multiply<true>(
        Matrix<A>{t.scores, t.size}, value, sums, stride, t.queries, width_, step.count, Into<A>{t.alpha, started});
    started = true;
  }

  void scale_row(A* row, A factor) const {
    for (int64_t k = 0; k < width_; k += lanes<A>) store(row + k, factor * load(row + k));
  }

  // out += gate / total * part, for a source whose keys fill several tiles.
  void add_part(Block& t, A g) const {
    for (int64_t i = 0; i < t.queries; ++i) {
      const A factor = t.total[i] == 0 ? A(0) : g / t.total[i];
      A *out = t.out + i * t.out_stride, *part = t.part + i * width_;
      for (int64_t k = 0; k < width_; k += lanes<A>) {
        const Vector<A> sum = factor * load(part + k);
        store(out + k, t.out_started ? load(out + k) + sum : sum);
      }
    }
    t.out_started = true;
  }

  void finish(const Block& t) const {
    T* out = slice_of<T>(p_.out, t.tokens, t.h) + t.first * p_.out.stride_l;
    for (int64_t i = 0; i < t.queries; ++i) {
      T* row = out + i * p_.out.stride_l;
      if (!t.out_started) {
        zero(row, p_.d);
        continue;
      }
      A* sums = t.out + i * t.out_stride;
      if (p_.joint) scale_row(sums, t.total[i] == 0 ? A(0) : 1 / t.total[i]);
      if (!direct_) copy_row(sums, row, p_.d);
    }
  }

  const AttentionForwardParams& p_;
  const int threads_;
  const KeyLists lists_;
  const int64_t width_;  // d rounded up to whole vectors
  const bool direct_;    // sums are kept in the output itself
  int64_t tile_keys_ = 0;
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
