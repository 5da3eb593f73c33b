#include "attention_plan.h"

#include <algorithm>
#include <cstdio>

namespace amuse {
namespace {

constexpr double log2_e = 1.4426950408889634;
constexpr int64_t largest_grid = (int64_t{1} << 31) - 1;

int element_bytes(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

bool is_within_contract(const AttentionParams& p) {
  const auto is_int32 = [](int64_t size) { return size >= 0 && size <= largest_grid - 64; };
  if (p.dtype != Dtype::float32 && p.dtype != Dtype::float16 && p.dtype != Dtype::bfloat16) return false;
  if (p.d < 8 || p.d > 256 || p.d % 8 != 0 || p.sources < 1 || p.sources > max_sources) return false;
  if (!is_int32(p.b) || !is_int32(p.h) || !is_int32(p.lq) || !is_int32(p.tokens_q)) return false;
  for (int64_t s = 0; s < p.sources; ++s) {
    if (!is_int32(p.source[s].length)) return false;
  }
  return true;
}

bool has_rows_of_16_bytes(const AttentionTensor& tensor, int bytes) {
  const int64_t strides = (tensor.stride_b | tensor.stride_h | tensor.stride_l) * bytes;
  return reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0 && strides % 16 == 0;
}

bool has_options(const AttentionParams& p) {
  if (p.dropout_p > 0) return true;
  for (int64_t s = 0; s < p.sources; ++s) {
    if (p.source[s].relation != Relation::any || p.source[s].causal) return true;
  }
  return false;
}

// The part that forward and backward share; queries are in tiles of `query_rows`.
AttentionArguments arguments_of(const AttentionParams& p, const CudaAttentionOptions& options, int query_rows) {
  AttentionArguments a{};
  const int bytes = element_bytes(p.dtype);
  a.query = p.query;
  a.vectors = has_rows_of_16_bytes(p.query, bytes);
  bool related = false;
  for (int64_t s = 0; s < p.sources; ++s) {
    const AttentionSource& from = p.source[s];
    AttentionArguments::Source& to = a.source[s];
    to.key = from.key, to.value = from.value;
    to.mask = from.mask, to.cu_seq = from.cu_seq;
    to.length = static_cast<int32_t>(from.length);
    to.related = from.relation != Relation::any;
    to.different = from.relation == Relation::different;
    to.causal = from.causal;
    to.groups = to.related ? from.groups : nullptr;
    related |= to.related;
    a.vectors = a.vectors && has_rows_of_16_bytes(from.key, bytes) && has_rows_of_16_bytes(from.value, bytes);
  }
  a.query_groups = related ? p.query_groups : nullptr;
  a.gates = static_cast<const float*>(p.gates);
  a.gate_stride_b = p.gate_stride_b, a.gate_stride_h = p.gate_stride_h, a.gate_stride_p = p.gate_stride_p;
  a.seed = p.dropout_p > 0 ? options.seed : nullptr;
  a.softmax_scale = static_cast<float>(p.softmax_scale);
  a.scale_log2 = static_cast<float>(p.softmax_scale * log2_e);
  a.keep_scale = static_cast<float>(1 / (1 - p.dropout_p));
  a.drop_threshold = p.drop_threshold;
  a.cu_seq_q = p.cu_seq_q;
  a.heads = static_cast<int32_t>(p.h), a.queries = static_cast<int32_t>(p.lq);
  a.tokens = p.cu_seq_q == nullptr ? a.queries : static_cast<int32_t>(p.tokens_q);
  a.sources = static_cast<int32_t>(p.sources), a.head_dim = static_cast<int32_t>(p.d);
  a.query_tiles = static_cast<int32_t>((p.lq + query_rows - 1) / query_rows);
  a.joint = p.joint, a.allow_tf32 = options.allow_tf32;
  return a;
}

bool add_launch(AttentionPlan& plan, AttentionKernel kernel, bool options, int64_t grid, int block, int shared_bytes) {
  if (grid > largest_grid) return false;
  static constexpr const char* names[] = {
      "forward", "forward_short", "backward_queries", "backward_keys", "backward_fused", "backward_fused_short"};
  const char* dtype = plan.dtype == Dtype::float32 ? "fp32" : plan.dtype == Dtype::float16 ? "fp16" : "bf16";
  AttentionLaunch& launch = plan.launch[plan.launches++];
  std::snprintf(launch.entry, sizeof launch.entry, "attention_%s_%s_%d%s", names[static_cast<int>(kernel)], dtype,
                plan.padded_head_dim, options ? "_options" : "");
  launch.kernel = kernel, launch.options = options;
  launch.grid = static_cast<uint32_t>(grid), launch.block = static_cast<uint32_t>(block);
  launch.shared_bytes = static_cast<uint32_t>(shared_bytes);
  return true;
}

// Rows in the workspace; the gates' partial sums follow.
int64_t workspace_rows(const AttentionParams& p) {
  const int64_t tokens = p.cu_seq_q == nullptr ? p.b * p.lq : p.tokens_q;
  return tokens * p.h * (p.joint ? 1 : p.sources);
}

AttentionTile backward_tile_of(const AttentionParams& p, bool keys) {
  return backward_tile(element_bytes(p.dtype), padded_head_dim(p.d), keys);
}

bool is_short(const AttentionParams& p) {
  return has_kernels_for_few_queries(padded_head_dim(p.d)) && p.lq <= short_queries;
}

// Whether all queries fit the tile of the backward of one launch.
bool is_fused(const AttentionParams& p) {
  return has_kernels_for_few_queries(padded_head_dim(p.d)) && p.lq <= backward_fused_tile(false).rows();
}

}  // namespace
}  // namespace amuse

using namespace amuse;

bool amuse_cuda_attention_plan_forward(const AttentionForwardParams* params, const CudaAttentionOptions* options,
                                       AttentionPlan* plan) {
  const AttentionForwardParams& p = *params;
  *plan = {};
  if (!is_within_contract(p)) return false;
  const int bytes = element_bytes(p.dtype), padded = padded_head_dim(p.d);
  const bool few = is_short(p);
  const AttentionTile tile = forward_tile(bytes, padded, few);
  plan->dtype = p.dtype, plan->padded_head_dim = padded;
  AttentionArguments& a = plan->arguments = arguments_of(p, *options, tile.rows());
  a.out = p.out;
  a.vectors = a.vectors && has_rows_of_16_bytes(p.out, bytes);
  a.lse = static_cast<float*>(p.lse);
  return add_launch(*plan, few ? AttentionKernel::forward_short : AttentionKernel::forward, has_options(p),
                    p.b * p.h * a.query_tiles, tile.threads(), forward_shared_bytes(tile, bytes, padded));
}

int64_t amuse_cuda_attention_workspace(const AttentionBackwardParams* params) {
  const AttentionBackwardParams& p = *params;
  if (!is_within_contract(p) || is_fused(p)) return 0;
  const int64_t rows = backward_tile_of(p, false).rows(), query_tiles = (p.lq + rows - 1) / rows;
  const int64_t partials = p.grad_gates == nullptr ? 0 : p.b * p.h * p.sources * query_tiles;
  return workspace_rows(p) * static_cast<int64_t>(sizeof(AttentionRow)) + partials * 4;
}

bool amuse_cuda_attention_plan_backward(const AttentionBackwardParams* params, const CudaAttentionOptions* options,
                                        AttentionPlan* plan) {
  const AttentionBackwardParams& p = *params;
  *plan = {};
  if (!is_within_contract(p)) return false;
  const bool fused = is_fused(p), few = is_short(p), variant = has_options(p);
  const int bytes = element_bytes(p.dtype), padded = padded_head_dim(p.d);
  const AttentionTile tile = fused ? backward_fused_tile(few) : backward_tile_of(p, false);
  const AttentionTile key_tile = backward_tile_of(p, true);
  plan->dtype = p.dtype, plan->padded_head_dim = padded;
  AttentionArguments& a = plan->arguments = arguments_of(p, *options, tile.rows());
  a.grad_out = p.grad_out, a.grad_query = p.grad_query;
  a.vectors = a.vectors && has_rows_of_16_bytes(p.grad_out, bytes) && has_rows_of_16_bytes(p.grad_query, bytes);
  int64_t key_tiles = 0;
  for (int64_t s = 0; s < p.sources; ++s) {
    a.source[s].grad_key = p.grad_key[s], a.source[s].grad_value = p.grad_value[s];
    a.vectors = a.vectors && has_rows_of_16_bytes(p.grad_key[s], bytes) && has_rows_of_16_bytes(p.grad_value[s], bytes);
    key_tiles += std::max<int64_t>(1, (p.source[s].length + key_tile.rows() - 1) / key_tile.rows());
  }
  if (key_tiles > largest_grid) return false;
  a.key_tiles = static_cast<int32_t>(key_tiles);
  a.lse = static_cast<float*>(const_cast<void*>(p.lse));
  a.grad_lse = static_cast<const float*>(p.grad_lse);
  a.grad_gates = static_cast<float*>(p.grad_gates);
  if (fused) {
    a.query_tiles = 1;  // keys have gradients without queries too
    return add_launch(*plan, few ? AttentionKernel::backward_fused_short : AttentionKernel::backward_fused, variant,
                      p.b * p.h, tile.threads(), backward_shared_bytes(tile, bytes, padded));
  }
  a.rows = static_cast<AttentionRow*>(options->workspace);
  a.gate_partials = a.rows == nullptr ? nullptr : reinterpret_cast<float*>(a.rows + workspace_rows(p));
  return add_launch(*plan, AttentionKernel::backward_queries, variant, p.b * p.h * a.query_tiles, tile.threads(),
                    backward_shared_bytes(tile, bytes, padded)) &&
         add_launch(*plan, AttentionKernel::backward_keys, variant, p.b * p.h * key_tiles, key_tile.threads(),
                    backward_shared_bytes(key_tile, bytes, padded));
}
