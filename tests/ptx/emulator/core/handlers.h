// Instructions that are more than an expression per lane. Operands arrive as the lowering of each opcode lays them
// out; the layout is above each function.
#pragma once
#include "lanes.h"

namespace ptx {
namespace handler {
void load(Warp&, const Instruction&, u32);
void store(Warp&, const Instruction&, u32);
void atomic(Warp&, const Instruction&, u32);
void to_window(Warp&, const Instruction&, u32);
void is_space(Warp&, const Instruction&, u32);
void fence(Warp&, const Instruction&, u32);
void copy_async(Warp&, const Instruction&, u32);
void commit_copies(Warp&, const Instruction&, u32);
void wait_copies(Warp&, const Instruction&, u32);
void wait_wgmma(Warp&, const Instruction&, u32);
void load_matrix(Warp&, const Instruction&, u32);
void store_matrix(Warp&, const Instruction&, u32);
void move_matrix(Warp&, const Instruction&, u32);
void multiply(Warp&, const Instruction&, u32);
void fence_wgmma(Warp&, const Instruction&, u32);
void warpgroup_multiply(Warp&, const Instruction&, u32);
void shuffle(Warp&, const Instruction&, u32);
void vote(Warp&, const Instruction&, u32);
void match(Warp&, const Instruction&, u32);
void reduce(Warp&, const Instruction&, u32);
void elect(Warp&, const Instruction&, u32);
void warp_barrier(Warp&, const Instruction&, u32);
void active_mask(Warp&, const Instruction&, u32);
void read_clock(Warp&, const Instruction&, u32);
void convert(Warp&, const Instruction&, u32);
void move(Warp&, const Instruction&, u32);
void pack(Warp&, const Instruction&, u32);
void unpack(Warp&, const Instruction&, u32);
void select(Warp&, const Instruction&, u32);
void second_predicate(Warp&, const Instruction&, u32);
void add_carry(Warp&, const Instruction&, u32);
void nothing(Warp&, const Instruction&, u32);
void trap(Warp&, const Instruction&, u32);
}  // namespace handler
extern const Handler handler_table[];
}  // namespace ptx
