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

template <class T>
T* slice_of(const AttentionTensor& tensor, int64_t b, int64_t h) {
  return static_cast<T*>(tensor.data) + b * tensor.stride_b + h * tensor.stride_h;
}

template <class T>
RowList<T> rows_of(const AttentionTensor& tensor, int64_t b, int64_t h, int64_t first = 0) {
  return {slice_of<T>(tensor, b, h), tensor.stride_l, nullptr, first};
}

// The keys of one source of one sample that some query sees, in ascending order.
struct KeyList {
  int64_t count = 0;
  int64_t first = 0;  // used when index is null: the keys are first, first + 1, ...
  const int32_t* index = nullptr;
  const int32_t* group = nullptr;  // per listed key, numbered as the queries' groups are; null without a relation

  template <class T>
  RowList<T> rows(const AttentionTensor& tensor, int64_t b, int64_t h) const {
    return {slice_of<T>(tensor, b, h), tensor.stride_l, index, first};
  }

  int64_t position(int64_t i) const { return index == nullptr ? first + i : index[i]; }
  // How many listed keys stand at or before position `limit`.
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
      : p_(p), lists_(p.b * p.sources * static_cast<int64_t>(sizeof(KeyList))), numbers_(bytes(p)) {
    const int64_t per_sample = 2 * p.lq + 2 * total_length(p);
    needed_ = lists_needed(p);
    parallel_for(needed_ ? threads : 1, p.b,
                 [&](int, int64_t b) { build(b, needed_ ? numbers_.at<int32_t>(b * per_sample) : nullptr); });
  }

  const KeyList& list(int64_t b, int64_t source) const { return lists_.at<KeyList>(0)[b * p_.sources + source]; }
  const int32_t* query_groups(int64_t b) const {
    return needed_ ? numbers_.at<int32_t>(b * (2 * p_.lq + 2 * total_length(p_))) : nullptr;
  }

 private:
  static int64_t total_length(const AttentionParams& p) {
    int64_t sum = 0;
    for (int64_t s = 0; s < p.sources; ++s) sum += p.source[s].length;
    return sum;
  }
  static bool lists_needed(const AttentionParams& p) {
    for (int64_t s = 0; s < p.sources; ++s) {
      if (p.source[s].mask != nullptr || p.source[s].relation != Relation::any) return true;
    }
    return false;
  }
  static int64_t bytes(const AttentionParams& p) {
    if (!lists_needed(p)) return 0;
    return p.b * (2 * p.lq + 2 * total_length(p)) * static_cast<int64_t>(sizeof(int32_t));
  }

  void build(int64_t b, int32_t* memory) const {
    int32_t* query_group = memory;
    int32_t* last = memory == nullptr ? nullptr : query_group + p_.lq;  // the last query of each group
    int32_t* free_memory = memory == nullptr ? nullptr : last + p_.lq;
    int32_t groups = 0;
    const int64_t* given = p_.query_groups == nullptr ? nullptr : p_.query_groups + b * p_.lq;
    bool related = false;
    for (int64_t s = 0; s < p_.sources; ++s) related = related || p_.source[s].relation != Relation::any;
    if (related) {
      for (int64_t i = 0; i < p_.lq; ++i) {
        int32_t g = 0;
        while (g < groups && given[last[g]] != given[i]) ++g;
        if (g == groups) ++groups;
        query_group[i] = g;
        last[g] = static_cast<int32_t>(i);
      }
    }
    for (int64_t s = 0; s < p_.sources; ++s) {
      KeyList& list = lists_.at<KeyList>(0)[b * p_.sources + s];
      list = KeyList{};
      const AttentionSource& source = p_.source[s];
      if (p_.lq == 0) continue;
      if (source.mask == nullptr && source.relation == Relation::any) {
        list.count = source.length;
        continue;
      }
      int32_t* index = free_memory;
      int32_t* group = index + source.length;
      free_memory = group + source.length;
      const uint8_t* mask = source.mask == nullptr ? nullptr : source.mask + b * source.length;
      int64_t count = 0;
      for (int64_t j = 0; j < source.length; ++j) {
        if (mask != nullptr && mask[j] == 0) continue;
        if (source.relation != Relation::any) {
          const int32_t g = number(source.groups[b * source.length + j], given, last, groups);
          if (!seen(source, j, g, query_group, last, groups)) continue;
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
  bool seen(const AttentionSource& source, int64_t j, int32_t g, const int32_t* query_group, const int32_t* last,
            int32_t groups) const {
    int64_t query = -1;  // the last one that the relation allows
    if (source.relation == Relation::same) {
      if (g >= 0) query = last[g];
    } else if (query_group[p_.lq - 1] != g) {
      query = p_.lq - 1;
    } else {
      for (int32_t other = 0; other < groups; ++other) {
        if (other != g && last[other] > query) query = last[other];
      }
    }
    return query >= 0 && (!source.causal || query >= j);
  }

  const AttentionParams& p_;
  Scratch lists_;
  Scratch numbers_;
  bool needed_ = false;
};

// Visibility of pairs, where a relation or the causal flag makes it differ between queries.
template <class A>
struct PairMask {
  Relation relation;
  bool causal;
  A* position;  // of each query of a block, or infinity without the causal flag
  A* group;     // of each query; unused without a relation

  bool needed() const { return causal || relation != Relation::any; }

  // Queries first .. first + count; those up to `padded` are none.
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
