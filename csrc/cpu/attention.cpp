// Entry points of attention.h: choose the copy of a kernel that this processor runs best, and the number of threads.
#include "../attention.h"

#include "copies.h"
#include "kernels.h"

namespace amuse {
namespace {

constexpr Copies<AttentionForwardParams> forward_copies = AMUSE_COPIES(attention_forward);
constexpr Copies<AttentionBackwardParams> backward_copies = AMUSE_COPIES(attention_backward);

// Multiply-adds of a product with all keys, in units that take as long as moving an element.
int64_t elements(const AttentionParams& p) {
  const auto length = [](const int32_t* cu_seq, int64_t dense, int64_t b) {
    return cu_seq == nullptr ? dense : cu_seq[b + 1] - cu_seq[b];
  };
  int64_t pairs = 0;
  for (int64_t b = 0; b < p.b; ++b) {
    int64_t keys = 0;
    for (int64_t s = 0; s < p.sources; ++s) keys += length(p.source[s].cu_seq, p.source[s].length, b);
    pairs += length(p.cu_seq_q, p.lq, b) * keys;
  }
  return pairs * p.h * p.d / 8;
}

}  // namespace

void attention_forward(const AttentionForwardParams& params, int num_threads) {
  forward_copies(params, team_size(num_threads, elements(params)));
}

void attention_backward(const AttentionBackwardParams& params, int num_threads) {
  backward_copies(params, team_size(num_threads, elements(params)));
}

}  // namespace amuse
