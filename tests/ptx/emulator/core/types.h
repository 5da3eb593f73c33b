// Names that every file of the core uses: integers, the PTX types, roundings, and what a finding is about.
#pragma once
#include <cstdint>

namespace ptx {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using s128 = __int128;
using u128 = unsigned __int128;

constexpr int LANES = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

// The numbers are the positions in vocabulary.py: TYPES, ROUNDINGS, SPACES, KINDS, PIPES.
enum class Type : u8 {
  b8,
  u8,
  s8,
  b16,
  u16,
  s16,
  f16,
  bf16,
  b32,
  u32,
  s32,
  f32,
  f16x2,
  bf16x2,
  b64,
  u64,
  s64,
  f64,
  f32x2,
  tf32,
  e4m3,
  e5m2,
  e4m3x2,
  e5m2x2,
  s4,
  u4,
  b1,
  pred
};
enum class Rounding : u8 { nearest, zero, down, up, away, integer_nearest, integer_zero, integer_down, integer_up };
enum class Space : u8 { generic, global, shared, local, param, constant };
enum class Flow : u8 { plain, branch, indexed_branch, exit, barrier, warp_sync, aligned_sync };
enum class Finding : u8 {
  out_of_bounds,
  misaligned,
  uninitialised_read,
  readonly_write,
  race,
  pending_async_access,
  missing_fence,
  barrier_divergence,
  deadlock
};

struct Warp;
struct Instruction;
using Handler = void (*)(Warp&, const Instruction&, u32 mask);

}  // namespace ptx
