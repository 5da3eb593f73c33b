// The attention kernels of one element type and head dim: compiled once for each, with -DAMUSE_ELEMENT=fp16, bf16 or
// fp32 and -DAMUSE_HEAD_DIM=32, 64, 128 or 256. Their names are those that attention_plan.cpp writes, such as
// attention_forward_fp16_64; those that end in _options have groups, causal streams and dropout.
#include "attention_backward_fused.cuh"
#include "attention_backward_keys.cuh"
#include "attention_backward_queries.cuh"
#include "attention_forward.cuh"
#include "attention_plan.h"

#define AMUSE_FEW_QUERIES (AMUSE_HEAD_DIM <= 64)

namespace amuse {

using fp16 = Half;
using bf16 = BFloat16;
using fp32 = float;
constexpr int bytes = sizeof(AMUSE_ELEMENT), width = AMUSE_HEAD_DIM;
static_assert(AMUSE_FEW_QUERIES == has_kernels_for_few_queries(width));

constexpr AttentionTile attention_forward_tile = forward_tile(bytes, width, false);
constexpr AttentionTile attention_backward_queries_tile = backward_tile(bytes, width, false);
constexpr AttentionTile attention_backward_keys_tile = backward_tile(bytes, width, true);
#if AMUSE_FEW_QUERIES
constexpr AttentionTile attention_forward_short_tile = forward_tile(bytes, width, true);
constexpr AttentionTile attention_backward_fused_tile = backward_fused_tile(false);
constexpr AttentionTile attention_backward_fused_short_tile = backward_fused_tile(true);
#endif

// Whether dynamic and static shared memory fit every chip from sm_80 on.
constexpr bool fit(int dynamic_bytes, size_t static_bytes) { return dynamic_bytes + static_bytes <= 99 * 1024; }
static_assert(fit(forward_shared_bytes(attention_forward_tile, bytes, width),
                  sizeof(ForwardRows<attention_forward_tile.rows()>)));
static_assert(fit(backward_shared_bytes(attention_backward_queries_tile, bytes, width),
                  sizeof(BackwardRows<attention_backward_queries_tile.rows()>)));
static_assert(fit(backward_shared_bytes(attention_backward_keys_tile, bytes, width),
                  sizeof(AttentionRow[2][attention_backward_keys_tile.columns])));
#if AMUSE_FEW_QUERIES
static_assert(fit(backward_shared_bytes(attention_backward_fused_tile, bytes, width),
                  sizeof(FusedRows<attention_backward_fused_tile.rows()>)));
#endif

}  // namespace amuse

#define AMUSE_JOIN_(name, element, head_dim, suffix) name##_##element##_##head_dim##suffix
#define AMUSE_JOIN(name, element, head_dim, suffix) AMUSE_JOIN_(name, element, head_dim, suffix)
#define AMUSE_NAME(name, suffix) AMUSE_JOIN(name, AMUSE_ELEMENT, AMUSE_HEAD_DIM, suffix)
#define AMUSE_KERNEL(name, suffix, options)                                              \
  extern "C" __global__ void __launch_bounds__(amuse::name##_tile.threads(), 1)          \
      AMUSE_NAME(name, suffix)(const __grid_constant__ amuse::AttentionArguments args) { \
    amuse::name<amuse::AMUSE_ELEMENT, AMUSE_HEAD_DIM, options>(args);                    \
  }
#define AMUSE_KERNELS(name)   \
  AMUSE_KERNEL(name, , false) \
  AMUSE_KERNEL(name, _options, true)

AMUSE_KERNELS(attention_forward)
AMUSE_KERNELS(attention_backward_queries)
AMUSE_KERNELS(attention_backward_keys)
#if AMUSE_FEW_QUERIES
AMUSE_KERNELS(attention_forward_short)
AMUSE_KERNELS(attention_backward_fused)
AMUSE_KERNELS(attention_backward_fused_short)
#endif

#define AMUSE_TEXT_(name) #name
#define AMUSE_TEXT(name) AMUSE_TEXT_(name)
#define AMUSE_ENTRY(name, suffix) \
  AttentionEntry { AMUSE_TEXT(AMUSE_NAME(name, suffix)), reinterpret_cast<const void*>(&AMUSE_NAME(name, suffix)) }
#define AMUSE_ENTRIES(name)   \
  case AttentionKernel::name: \
    return options ? AMUSE_ENTRY(attention_##name, _options) : AMUSE_ENTRY(attention_##name, );

namespace amuse {

AttentionEntry AMUSE_NAME(attention_entry, )(AttentionKernel kernel, bool options) {
  switch (kernel) {
    AMUSE_ENTRIES(forward)
    AMUSE_ENTRIES(backward_queries)
    AMUSE_ENTRIES(backward_keys)
#if AMUSE_FEW_QUERIES
    AMUSE_ENTRIES(forward_short)
    AMUSE_ENTRIES(backward_fused)
    AMUSE_ENTRIES(backward_fused_short)
#endif
    default: return {};
  }
}

}  // namespace amuse
