// Which keys of a sample any query can see, and the visibility of pairs. Compiled once per instruction set.
#pragma once

#include "../attention.h"
#include "attention_pack.h"

namespace amuse {
namespace AMUSE_ISA {

constexpr double log2_e = 1.4426950408889634, ln_2 = 0.6931471805599453;

template <class A>
A gate_of(const AttentionParams& p, int64_t b, int64_t h, int64_t source) {
  if (p.gates == nullptr) return 1;
  return static_cast<const A*>(p.gates)[b * p.gate_stride_b + h * p.gate_stride_h + source * p.gate_stride_p];
}

// The tokens of one sample in a tensor.
struct Tokens {
  int64_t b;
  int64_t first;  // in every (L, D) slice
  int64_t row;    // in a contiguous (B, L)
  int64_t count;
};

inline Tokens tokens_of(const int32_t* cu_seq, int64_t length, int64_t b) {
  if (cu_seq == nullptr) return {b, 0, b * length, length};
  return {b, cu_seq[b], cu_seq[b], cu_seq[b + 1] - cu_seq[b]};
}
inline Tokens queries_of(const AttentionParams& p, int64_t b) { return tokens_of(p.cu_seq_q, p.lq, b); }
inline Tokens keys_of(const AttentionSource& source, int64_t b) { return tokens_of(source.cu_seq, source.length, b); }

// The first of a sample's rows in head h.
template <class T>
T* slice_of(const AttentionTensor& tensor, const Tokens& tokens, int64_t h) {
  return static_cast<T*>(tensor.data) + tokens.b * tensor.stride_b + h * tensor.stride_h +
         tokens.first * tensor.stride_l;
}

template <class T>
RowList<T> rows_of(const AttentionTensor& tensor, const Tokens& tokens, int64_t h, int64_t first = 0) {
  return {slice_of<T>(tensor, tokens, h), tensor.stride_l, nullptr, first};
}

// The first of a sample's rows in a contiguous (B, H, Lq), packed (1, H, Tq).
inline int64_t query_row(const AttentionParams& p, const Tokens& queries, int64_t h) {
  return p.cu_seq_q == nullptr ? (queries.b * p.h + h) * p.lq : h * p.tokens_q + queries.first;
}

// Which sample a piece of work belongs to, where samples have different numbers of pieces.
class Pieces {
 public:
  explicit Pieces(int64_t samples) : samples_(samples), starts_((samples + 1) * static_cast<int64_t>(sizeof(int64_t))) {
    starts_.at<int64_t>(0)[0] = 0;
  }
  // In the order of the samples.
  void add(int64_t b, int64_t pieces) { starts_.at<int64_t>(0)[b + 1] = start(b) + pieces; }

  int64_t start(int64_t b) const { return starts_.at<int64_t>(0)[b]; }
  int64_t total() const { return start(samples_); }
  int64_t sample_of(int64_t piece) const {
    int64_t low = 0, high = samples_;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (start(middle) <= piece ? low : high) = middle;
    }
    return low;
  }

 private:
  const int64_t samples_;
  Scratch starts_;
};

// Multiply-adds of a head's products in units of D: of all samples, and of the largest one.
struct Work {
  int64_t total = 0, largest = 0;

  static int64_t of_sample(const AttentionParams& p, int64_t b) {
    int64_t keys = 0;
    for (int64_t s = 0; s < p.sources; ++s) keys += keys_of(p.source[s], b).count;
    return queries_of(p, b).count * keys;
  }
  explicit Work(const AttentionParams& p) {
    for (int64_t b = 0; b < p.b; ++b) {
      const int64_t work = of_sample(p, b);
      total += work;
      largest = work > largest ? work : largest;
    }
  }
};

// The keys of one source of one sample that some query sees, in ascending order.
struct KeyList {
  int64_t count = 0;
  int64_t first = 0;  // used when index is null: the keys are first, first + 1, ...
  const int32_t* index = nullptr;
  const int32_t* group = nullptr;  // per listed key, numbered as the queries' groups are; null without a relation
  Tokens tokens{};                 // all keys of the source, in the order of which they are counted

  template <class T>
  RowList<T> rows(const AttentionTensor& tensor, int64_t h) const {
    return {slice_of<T>(tensor, tokens, h), tensor.stride_l, index, first};
  }

  int64_t position(int64_t i) const { return index == nullptr ? first + i : index[i]; }
  // How many listed keys are at or before position `limit`.
  int64_t count_to(int64_t limit) const {
    if (index == nullptr) {
      const int64_t n = limit - first + 1;
      return n < 0 ? 0 : n < count ? n : count;
    }
    int64_t low = 0, high = count;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      (index[middle] <= limit ? low : high) = index[middle] <= limit ? middle + 1 : middle;
    }
    return low;
  }
};

// Key lists of every sample and source, and the queries' groups numbered from 0 in each sample.
class KeyLists {
 public:
  KeyLists(const AttentionParams& p, int threads)
      : p_(p),
        lists_(p.b * p.sources * static_cast<int64_t>(sizeof(KeyList))),
        needed_(lists_needed(p)),
        numbers_(needed_ ? numbers_before(p.b) * static_cast<int64_t>(sizeof(int32_t)) : 0) {
    parallel_for(needed_ ? threads : 1, p.b, [&](int, int64_t b) { build(b); });
  }

  const KeyList& list(int64_t b, int64_t source) const { return lists_.at<KeyList>(0)[b * p_.sources + source]; }
  int32_t* query_groups(int64_t b) const { return needed_ ? numbers_.at<int32_t>(numbers_before(b)) : nullptr; }

 private:
  // Two for each query and key of the samples before b.
  int64_t numbers_before(int64_t b) const {
    int64_t tokens = row_before(p_.cu_seq_q, p_.lq, b);
    for (int64_t s = 0; s < p_.sources; ++s) tokens += row_before(p_.source[s].cu_seq, p_.source[s].length, b);
    return 2 * tokens;
  }
  static int64_t row_before(const int32_t* cu_seq, int64_t length, int64_t b) {
    return cu_seq == nullptr ? b * length : cu_seq[b];
  }
  static bool lists_needed(const AttentionParams& p) {
    for (int64_t s = 0; s < p.sources; ++s) {
      if (p.source[s].mask != nullptr || p.source[s].relation != Relation::any) return true;
    }
    return false;
  }

  void build(int64_t b) const {
    const Tokens queries = queries_of(p_, b);
    int32_t* query_group = query_groups(b);
    int32_t* last = query_group == nullptr ? nullptr : query_group + queries.count;  // the last query of each group
    int32_t* free_memory = query_group == nullptr ? nullptr : last + queries.count;
    int32_t groups = 0;
    const int64_t* given = p_.query_groups == nullptr ? nullptr : p_.query_groups + queries.row;
    bool related = false;
    for (int64_t s = 0; s < p_.sources; ++s) related = related || p_.source[s].relation != Relation::any;
    if (related) {
      for (int64_t i = 0; i < queries.count; ++i) {
        int32_t g = 0;
        while (g < groups && given[last[g]] != given[i]) ++g;
        if (g == groups) ++groups;
        query_group[i] = g;
        last[g] = static_cast<int32_t>(i);
      }
    }
    for (int64_t s = 0; s < p_.sources; ++s) {
      KeyList& list = lists_.at<KeyList>(0)[b * p_.sources + s];
      const AttentionSource& source = p_.source[s];
      const Tokens keys = keys_of(source, b);
      list = KeyList{};
      list.tokens = keys;
      if (queries.count == 0) continue;
      if (source.mask == nullptr && source.relation == Relation::any) {
        list.count = keys.count;
        continue;
      }
      int32_t* index = free_memory;
      int32_t* group = index + keys.count;
      free_memory = group + keys.count;
      const uint8_t* mask = source.mask == nullptr ? nullptr : source.mask + keys.row;
      int64_t count = 0;
      for (int64_t j = 0; j < keys.count; ++j) {
        if (mask != nullptr && mask[j] == 0) continue;
        if (source.relation != Relation::any) {
          const int32_t g = number(source.groups[keys.row + j], given, last, groups);
          if (!seen(source, j, g, queries.count, query_group, last, groups)) continue;
          group[count] = g;
        }
        index[count++] = static_cast<int32_t>(j);
      }
      list.count = count;
      if (source.relation != Relation::any) list.group = group;
      if (count > 0 && index[count - 1] - index[0] + 1 == count) {
        list.first = index[0];
      } else {
        list.index = index;
      }
    }
  }

  static int32_t number(int64_t key_group, const int64_t* given, const int32_t* last, int32_t groups) {
    for (int32_t g = 0; g < groups; ++g) {
      if (given[last[g]] == key_group) return g;
    }
    return -1;
  }

  // Whether the relation and the causal flag let any query see key j of group g.
  static bool seen(const AttentionSource& source, int64_t j, int32_t g, int64_t queries, const int32_t* query_group,
                   const int32_t* last, int32_t groups) {
    int64_t query = -1;  // the last one that the relation allows
    if (source.relation == Relation::same) {
      if (g >= 0) query = last[g];
    } else if (query_group[queries - 1] != g) {
      query = queries - 1;
    } else {
      for (int32_t other = 0; other < groups; ++other) {
        if (other != g && last[other] > query) query = last[other];
      }
    }
    return query >= 0 && (!source.causal || query >= j);
  }

  const AttentionParams& p_;
  Scratch lists_;
  const bool needed_;
  Scratch numbers_;
};

// Visibility of pairs, where a relation or the causal flag makes it differ between queries.
template <class A>
struct PairMask {
  Relation relation;
  bool causal;
  A* position;  // of each query of a block, or infinity without the causal flag
  A* group;     // of each query; unused without a relation

  bool needed() const { return causal || relation != Relation::any; }

  // Queries first .. first + count; the rest up to `padded` is padding.
  void load_queries(const int32_t* query_group, int64_t first, int64_t count, int64_t padded) const {
    for (int64_t i = 0; i < padded; ++i) {
      position[i] = i >= count ? A(-1) : causal ? static_cast<A>(first + i) : A(__builtin_inff());
      group[i] = i < count && relation != Relation::any ? static_cast<A>(query_group[first + i]) : A(-2);
    }
  }

  // Scores (keys x queries) of keys start .. start + count and a vector of queries from the q-th of the block:
  // -infinity where the pair is hidden. Returns how many keys each query sees.
  Vector<A> apply(A* scores, int64_t stride, const KeyList& list, int64_t start, int64_t count, int64_t q) const {
    using Bits = typename BitsOf<A>::type;
    const Vector<A> hidden = broadcast<A>(A(-__builtin_inff())), zero = {}, limit = load(position + q);
    const Vector<A> own = relation == Relation::any ? zero : load(group + q);
    Vector<A> seen = {};
    for (int64_t j = 0; j < count; ++j) {
      Bits visible = static_cast<A>(list.position(start + j)) <= limit;
      const A other = relation == Relation::any ? A(0) : static_cast<A>(list.group[start + j]);
      if (relation == Relation::same) visible &= own == other;
      if (relation == Relation::different) visible &= own != other;
      store(scores + j * stride, visible ? load(scores + j * stride) : hidden);
      seen += visible ? zero + 1 : zero;
    }
    return seen;
  }
};

// Philox 4x32-10, the counter and key of amuse_kernels/dropout.py, for a vector of queries at once.
struct Dropout {
  uint64_t seed;
  uint32_t threshold;

  template <int n>
  void words(uint32_t block, uint32_t query, uint32_t row, uint32_t source, uint32_t (&out)[4][n]) const {
    uint32_t *c0 = out[0], *c1 = out[1], *c2 = out[2], *c3 = out[3];
    for (int i = 0; i < n; ++i) c0[i] = block, c1[i] = query + static_cast<uint32_t>(i), c2[i] = row, c3[i] = source;
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        const uint64_t a = uint64_t{0xD2511F53u} * c0[i], b = uint64_t{0xCD9E8D57u} * c2[i];
        c0[i] = static_cast<uint32_t>(b >> 32) ^ c1[i] ^ k0;
        c1[i] = static_cast<uint32_t>(b);
        c2[i] = static_cast<uint32_t>(a >> 32) ^ c3[i] ^ k1;
        c3[i] = static_cast<uint32_t>(a);
      }
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
  }

  // keep (keys x queries) is `factor` for the pairs that survive and 0 for the dropped ones, for keys
  // start .. start + count of a list and a vector of queries.
  template <class A>
  void fill(A* keep, int64_t stride, const KeyList& list, int64_t start, int64_t count, int64_t query, int64_t row,
            int64_t source, A factor) const {
    constexpr int n = static_cast<int>(lanes<A>);
    alignas(64) uint32_t word[4][n];
    int64_t block = -1;
    for (int64_t j = 0; j < count; ++j) {
      const int64_t position = list.position(start + j);
      if (position / 4 != block) {
        block = position / 4;
        words(static_cast<uint32_t>(block), static_cast<uint32_t>(query), static_cast<uint32_t>(row),
              static_cast<uint32_t>(source), word);
      }
      const uint32_t* drawn = word[position % 4];
#pragma omp simd
      for (int i = 0; i < n; ++i) keep[j * stride + i] = drawn[i] < threshold ? A(0) : factor;
    }
  }
};

}  // namespace AMUSE_ISA
}  // namespace amuse
