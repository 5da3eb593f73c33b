// The attention kernels of one element type and head dim: compiled once for each, with -DAMUSE_ELEMENT=fp16, bf16 or
// fp32 and -DAMUSE_HEAD_DIM=32, 64, 128 or 256. Their names are those that attention_plan.cpp writes, such as
// attention_forward_fp16_64; those that end in _options have groups, causal streams and dropout.
#include "attention_backward_keys.cuh"
#include "attention_backward_queries.cuh"
#include "attention_forward.cuh"
#include "attention_plan.h"

namespace amuse {

using fp16 = Half;
using bf16 = BFloat16;
using fp32 = float;
constexpr int bytes = sizeof(AMUSE_ELEMENT);
constexpr int attention_forward_threads = forward_tile(bytes, AMUSE_HEAD_DIM).threads();
constexpr int attention_backward_queries_threads = backward_tile(bytes, AMUSE_HEAD_DIM, false).threads();
constexpr int attention_backward_keys_threads = backward_tile(bytes, AMUSE_HEAD_DIM, true).threads();

constexpr int smallest_shared_memory = 99 * 1024;  // that a block may have, of all chips from sm_80 on
static_assert(forward_shared_bytes(bytes, AMUSE_HEAD_DIM) +
                  sizeof(ForwardRows<forward_tile(bytes, AMUSE_HEAD_DIM).rows()>) <=
              smallest_shared_memory);
static_assert(backward_shared_bytes(bytes, AMUSE_HEAD_DIM, false) +
                  sizeof(BackwardRows<backward_tile(bytes, AMUSE_HEAD_DIM, false).rows()>) <=
              smallest_shared_memory);
static_assert(backward_shared_bytes(bytes, AMUSE_HEAD_DIM, true) + 1024 <= smallest_shared_memory);

}  // namespace amuse

#define AMUSE_JOIN_(name, element, head_dim, suffix) name##_##element##_##head_dim##suffix
#define AMUSE_JOIN(name, element, head_dim, suffix) AMUSE_JOIN_(name, element, head_dim, suffix)
#define AMUSE_NAME(name, suffix) AMUSE_JOIN(name, AMUSE_ELEMENT, AMUSE_HEAD_DIM, suffix)
#define AMUSE_KERNEL(name, suffix, options)                                              \
  extern "C" __global__ void __launch_bounds__(amuse::name##_threads, 1)                 \
      AMUSE_NAME(name, suffix)(const __grid_constant__ amuse::AttentionArguments args) { \
    amuse::name<amuse::AMUSE_ELEMENT, AMUSE_HEAD_DIM, options>(args);                    \
  }

AMUSE_KERNEL(attention_forward, , false)
AMUSE_KERNEL(attention_forward, _options, true)
AMUSE_KERNEL(attention_backward_queries, , false)
AMUSE_KERNEL(attention_backward_queries, _options, true)
AMUSE_KERNEL(attention_backward_keys, , false)
AMUSE_KERNEL(attention_backward_keys, _options, true)

#define AMUSE_TEXT_(name) #name
#define AMUSE_TEXT(name) AMUSE_TEXT_(name)
#define AMUSE_ENTRY(name, suffix) \
  AttentionEntry { AMUSE_TEXT(AMUSE_NAME(name, suffix)), reinterpret_cast<const void*>(&AMUSE_NAME(name, suffix)) }

namespace amuse {

AttentionEntry AMUSE_NAME(attention_entry, )(AttentionKernel kernel, bool options) {
  switch (kernel) {
    case AttentionKernel::forward:
      return options ? AMUSE_ENTRY(attention_forward, _options) : AMUSE_ENTRY(attention_forward, );
    case AttentionKernel::backward_queries:
      return options ? AMUSE_ENTRY(attention_backward_queries, _options) : AMUSE_ENTRY(attention_backward_queries, );
    case AttentionKernel::backward_keys:
      return options ? AMUSE_ENTRY(attention_backward_keys, _options) : AMUSE_ENTRY(attention_backward_keys, );
  }
  return {};
}

}  // namespace amuse
