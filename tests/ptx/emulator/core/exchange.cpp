// Instructions through which the lanes of a warp exchange values: shfl, vote, match, redux, elect, bar.warp.sync;
// and the moves whose definedness needs care: mov, mov of packed values, selp.
#include <cstring>

#include "handlers.h"

namespace ptx {
namespace handler {

// slots: d, p (-1: none), a, b, c. values: mode up, down, bfly, idx.
void shuffle(Warp& warp, const Instruction& i, u32 mask) {
  u64 from[LANES];
  std::memcpy(from, warp.reg(i.slot[2]), sizeof from);
  u32 known = warp.defined[i.slot[2]], origin = warp.origin[i.slot[2]];
  if (!known && !origin) note_undefined(warp, &i.slot[2], 1, mask), known = warp.defined[i.slot[2]];
  require_defined(warp, i.slot[3], mask, "a lane number");
  require_defined(warp, i.slot[4], mask, "a lane number");
  u32 in_range = 0, defined = 0;
  for (u32 lane = 0; lane < LANES; lane++) {
    if (!(mask >> lane & 1)) continue;
    s32 b = warp.reg(i.slot[3])[lane] & 31;
    u32 c = (u32)warp.reg(i.slot[4])[lane];
    s32 segment = c >> 8 & 31, clamp = c & 31;
    s32 highest = (lane & segment) | (clamp & ~segment), lowest = lane & segment;
    s32 source = 0;
    bool inside = false;
    switch (i.value[0]) {
      case 0:
        source = (s32)lane - b;
        inside = source >= highest;
        break;
      case 1:
        source = (s32)lane + b;
        inside = source <= highest;
        break;
      case 2:
        source = (s32)lane ^ b;
        inside = source <= highest;
        break;
      default: source = lowest | (b & ~segment); inside = source <= highest;
    }
    if (!inside) source = lane;
    if (i.slot[0] >= 0) warp.reg(i.slot[0])[lane] = from[source];
    // A lane that does not take part has no value to give.
    if ((mask >> source & 1) && (known >> source & 1)) defined |= 1u << lane;
    in_range |= (u32)inside << lane;
  }
  define(warp, i.slot[0], mask, defined, origin ? origin : i.line);
  if (i.slot[1] >= 0) {
    u32& to = warp.predicates[i.slot[1]];
    to = (to & ~mask) | in_range;
    warp.predicates_defined[i.slot[1]] |= mask;
  }
}

// slots: destination, source predicate. values: mode ballot, all, any, uni; source negated.
void vote(Warp& warp, const Instruction& i, u32 mask) {
  require_defined_predicate(warp, i.slot[1], mask);
  u32 votes = (warp.predicates[i.slot[1]] ^ (i.value[1] ? ALL_LANES : 0)) & mask;
  if (i.value[0] == 0) {
    u64* to = warp.reg(i.slot[0]);
    each_lane(mask, [&](int lane) { to[lane] = votes; });
    define(warp, i.slot[0], mask);
    return;
  }
  bool result = i.value[0] == 1 ? votes == mask : i.value[0] == 2 ? votes != 0 : votes == 0 || votes == mask;
  u32& to = warp.predicates[i.slot[0]];
  to = (to & ~mask) | (result ? mask : 0);
  warp.predicates_defined[i.slot[0]] |= mask;
}

// slots: d, p (-1: none), a. values: 1 for match.all.
void match(Warp& warp, const Instruction& i, u32 mask) {
  require_defined(warp, i.slot[2], mask, "a value to match");
  u64 from[LANES];
  std::memcpy(from, warp.reg(i.slot[2]), sizeof from);
  u32 all_equal = 0;
  for (u32 lane = 0; lane < LANES; lane++) {
    if (!(mask >> lane & 1)) continue;
    u32 equal = 0;
    for (u32 other = 0; other < LANES; other++)
      if ((mask >> other & 1) && from[other] == from[lane]) equal |= 1u << other;
    if (equal == mask) all_equal |= 1u << lane;
    if (i.slot[0] >= 0) warp.reg(i.slot[0])[lane] = i.value[0] ? (equal == mask ? mask : 0) : equal;
  }
  define(warp, i.slot[0], mask);
  if (i.slot[1] < 0) return;
  u32& to = warp.predicates[i.slot[1]];
  to = (to & ~mask) | all_equal;
  warp.predicates_defined[i.slot[1]] |= mask;
}

// redux: slots d, a. values: operation add, min, max, and, or, xor; signed; 1 for f32, 2 with .NaN; 4: .abs.
void reduce(Warp& warp, const Instruction& i, u32 mask) {
  require_defined(warp, i.slot[1], mask, "a value to reduce");
  const u64* from = warp.reg(i.slot[1]);
  u32 result = 0;
  bool first = true;
  for (u32 lane = 0; lane < LANES; lane++) {
    if (!(mask >> lane & 1)) continue;
    u32 x = (u32)from[lane];
    if (i.value[2] & 4) x &= 0x7fffffff;
    if (first) {
      result = x;
      first = false;
      continue;
    }
    if (i.value[2] & 3) {
      float a = bits_as<float>(result), b = bits_as<float>(x);
      bool keeps_nan = i.value[2] & 2;
      float r = i.value[0] == 1 ? (keeps_nan ? nan_minimum(a, b) : float_minimum(a, b))
                                : (keeps_nan ? nan_maximum(a, b) : float_maximum(a, b));
      result = (u32)Plain<float>::store(r, 0);
      continue;
    }
    switch (i.value[0]) {
      case 0: result += x; break;
      case 1: result = i.value[1] ? std::min((s32)result, (s32)x) : std::min(result, x); break;
      case 2: result = i.value[1] ? std::max((s32)result, (s32)x) : std::max(result, x); break;
      case 3: result &= x; break;
      case 4: result |= x; break;
      default: result ^= x;
    }
  }
  u64* to = warp.reg(i.slot[0]);
  each_lane(mask, [&](int lane) { to[lane] = result; });
  define(warp, i.slot[0], mask);
}

// slots: d (-1: none), p.
void elect(Warp& warp, const Instruction& i, u32 mask) {
  u32 leader = __builtin_ctz(mask);
  if (i.slot[0] >= 0) {
    each_lane(mask, [&](int lane) { warp.reg(i.slot[0])[lane] = leader; });
    define(warp, i.slot[0], mask);
  }
  u32& to = warp.predicates[i.slot[1]];
  to = (to & ~mask) | 1u << leader;
  warp.predicates_defined[i.slot[1]] |= mask;
}

// Lanes that meet here may name different groups of lanes: each group waits for its own.
void warp_barrier(Warp& warp, const Instruction& i, u32 mask) {
  for (u32 left = mask, group; left; left &= ~group) {
    u32 members = i.members < 0 ? ALL_LANES : (u32)warp.reg(i.members)[__builtin_ctz(left)];
    group = left & (members | 1u << __builtin_ctz(left));
    synchronise(warp, group);
  }
}

void active_mask(Warp& warp, const Instruction& i, u32 mask) {
  each_lane(mask, [&](int lane) { warp.reg(i.slot[0])[lane] = mask; });
  define(warp, i.slot[0], mask);
}

// Time is the number of instructions the warp has executed: it advances, so a loop that waits for it ends.
void read_clock(Warp& warp, const Instruction& i, u32 mask) {
  each_lane(mask, [&](int lane) { warp.reg(i.slot[0])[lane] = i.value[0] == 64 ? warp.executed : (u32)warp.executed; });
  define(warp, i.slot[0], mask);
}

// Moves pass undefined values on without a report. slots: d, a.
static u32 moved_origin(Warp& warp, s32 slot, u32 line) { return warp.origin[slot] ? warp.origin[slot] : line; }

void move(Warp& warp, const Instruction& i, u32 mask) {
  u64* to = warp.reg(i.slot[0]);
  const u64* from = warp.reg(i.slot[1]);
  each_lane(mask, [&](int lane) { to[lane] = from[lane]; });
  u32 origin = warp.origin[i.slot[1]] == PENDING_WGMMA ? note_undefined(warp, &i.slot[1], 1, mask)
                                                       : moved_origin(warp, i.slot[1], i.line);
  define(warp, i.slot[0], mask, warp.defined[i.slot[1]], origin);
}

// slots: d, pieces. values: pieces, bits of a piece.
void pack(Warp& warp, const Instruction& i, u32 mask) {
  u32 count = i.value[0], bits = i.value[1], defined = ALL_LANES, origin = 0, unwritten = 0;
  u64 result[LANES] = {};
  for (u32 k = 0; k < count; k++) {
    s32 slot = i.slot[1 + k];
    const u64* from = warp.reg(slot);
    u64 piece = (1ull << bits) - 1;
    each_lane(mask, [&](int lane) { result[lane] |= (from[lane] & piece) << (k * bits); });
    // Compilers fill the half of a pair that they do not need with a register that nothing writes.
    if (warp.defined[slot] == 0 && warp.origin[slot] == 0 && ++unwritten < count) continue;
    if (mask & ~warp.defined[slot]) origin = moved_origin(warp, slot, i.line);
    defined &= warp.defined[slot];
  }
  u64* to = warp.reg(i.slot[0]);
  each_lane(mask, [&](int lane) { to[lane] = result[lane]; });
  define(warp, i.slot[0], mask, defined, origin);
}

// slots: pieces (-1: dropped), a. values: pieces, bits of a piece.
void unpack(Warp& warp, const Instruction& i, u32 mask) {
  u32 count = i.value[0], bits = i.value[1];
  s32 source = i.slot[count];
  u64 from[LANES];
  std::memcpy(from, warp.reg(source), sizeof from);
  u32 defined = warp.defined[source], origin = moved_origin(warp, source, i.line);
  for (u32 k = 0; k < count; k++) {
    if (i.slot[k] < 0) continue;
    u64* to = warp.reg(i.slot[k]);
    u64 piece = (1ull << bits) - 1;
    each_lane(mask, [&](int lane) { to[lane] = from[lane] >> (k * bits) & piece; });
    define(warp, i.slot[k], mask, defined, origin);
  }
}

// slots: d, a, b, p. values: p negated. Only the operand that is chosen has to be defined.
void select(Warp& warp, const Instruction& i, u32 mask) {
  require_defined_predicate(warp, i.slot[3], mask);
  u32 first = warp.predicates[i.slot[3]] ^ (i.value[0] ? ALL_LANES : 0);
  u64* to = warp.reg(i.slot[0]);
  const u64 *a = warp.reg(i.slot[1]), *b = warp.reg(i.slot[2]);
  u32 defined = (first & warp.defined[i.slot[1]]) | (~first & warp.defined[i.slot[2]]);
  u32 origin = mask & first & ~warp.defined[i.slot[1]] ? moved_origin(warp, i.slot[1], i.line)
                                                       : moved_origin(warp, i.slot[2], i.line);
  each_lane(mask, [&](int lane) { to[lane] = first >> lane & 1 ? a[lane] : b[lane]; });
  define(warp, i.slot[0], mask, defined, origin);
}

// The second half of setp with a boolean operator or a second destination.
// slots: result of the comparison, p (-1: none), q (-1: none), c (-1: none).
// values: operator and, or, xor; c negated.
void second_predicate(Warp& warp, const Instruction& i, u32 mask) {
  u32 compared = warp.predicates[i.slot[0]], opposite = ~compared;
  u32 known = warp.predicates_defined[i.slot[0]];
  if (i.slot[3] >= 0) {
    u32 c = warp.predicates[i.slot[3]] ^ (i.value[1] ? ALL_LANES : 0);
    known &= warp.predicates_defined[i.slot[3]];
    auto with_c = [&](u32 x) { return i.value[0] == 0 ? x & c : i.value[0] == 1 ? x | c : x ^ c; };
    compared = with_c(compared);
    opposite = with_c(opposite);
  }
  auto write = [&](s32 slot, u32 bits) {
    if (slot < 0) return;
    warp.predicates[slot] = (warp.predicates[slot] & ~mask) | (bits & mask);
    warp.predicates_defined[slot] = (warp.predicates_defined[slot] & ~mask) | (known & mask);
  };
  write(i.slot[1], compared);
  write(i.slot[2], opposite);
}

// add and sub with the carry flag. slots: d, a, b. values: 1 subtract, reads carry, writes carry, bits.
void add_carry(Warp& warp, const Instruction& i, u32 mask) {
  u32 defined = warp.defined[i.slot[1]] & warp.defined[i.slot[2]], origin = 0;
  if (mask & ~defined) origin = note_undefined(warp, i.slot + 1, 2, mask);
  u64 *to = warp.reg(i.slot[0]), *a = warp.reg(i.slot[1]), *b = warp.reg(i.slot[2]);
  u32 bits = i.value[3];
  u64 all = bits == 64 ? ~0ull : (1ull << bits) - 1;
  each_lane(mask, [&](int lane) {
    // The flag holds the carry of an addition and the borrow of a subtraction.
    u128 incoming = i.value[1] ? warp.carry >> lane & 1 : 0;
    u128 sum = i.value[0] ? (u128)a[lane] - b[lane] - incoming : (u128)a[lane] + b[lane] + incoming;
    to[lane] = (u64)sum & all;
    bool carried = sum >> bits & 1;
    if (i.value[2]) warp.carry = (warp.carry & ~(1u << lane)) | (u32)carried << lane;
  });
  define(warp, i.slot[0], mask, defined, origin);
}

}  // namespace handler
}  // namespace ptx
