// Undefined values. Moves and arithmetic propagate them without a report; a value that decides an address, a branch or what
// reaches global memory is reported, at the line where it entered. A register that nothing wrote at all is reported
// where it is read.
#include "machine.h"

namespace ptx {

void define(Warp& warp, s32 slot, u32 mask, u32 defined, u32 origin) {
  if (slot < 0) return;
  warp.defined[slot] = (warp.defined[slot] & ~mask) | (defined & mask);
  if (mask & ~defined) warp.origin[slot] = origin;
  if (!warp.written.empty()) warp.written[slot] = warp.executed;
}

static bool report_special(Warp& warp, s32 slot, u32 mask, u32 line) {
  u32 lane = __builtin_ctz(mask & ~warp.defined[slot]);
  if (warp.origin[slot] == PENDING_WGMMA) {
    warp.cta->machine->report(Finding::pending_async_access, warp, lane, line, [] {
      return std::string("a register of a wgmma in flight is used before wgmma.wait_group");
    });
  } else if (warp.origin[slot] == 0 && warp.defined[slot] == 0) {
    warp.cta->machine->report(Finding::uninitialised_read, warp, lane, line,
                              [] { return std::string("reads a register that no instruction has written"); });
  } else {
    return false;
  }
  warp.defined[slot] |= mask;
  return true;
}

u32 note_undefined(Warp& warp, const s32* slots, int count, u32 mask) {
  u32 line = warp.instruction().line, origin = 0;
  for (int k = 0; k < count; k++) {
    s32 slot = slots[k];
    if (slot < 0 || (warp.defined[slot] & mask) == mask) continue;
    if (!report_special(warp, slot, mask, line)) origin = warp.origin[slot] ? warp.origin[slot] : line;
  }
  return origin ? origin : line;
}

void require_defined(Warp& warp, s32 slot, u32 mask, const char* use) {
  if (slot < 0 || (warp.defined[slot] & mask) == mask) return;
  u32 line = warp.instruction().line;
  if (report_special(warp, slot, mask, line)) return;
  u32 lane = __builtin_ctz(mask & ~warp.defined[slot]), origin = warp.origin[slot];
  warp.cta->machine->report(Finding::uninitialised_read, warp, lane, origin ? origin : line, [&] {
    return "an undefined register value becomes " + std::string(use) + " at line " + std::to_string(line);
  });
  warp.defined[slot] |= mask;
}

void require_defined_predicate(Warp& warp, s32 slot, u32 mask) {
  if ((warp.predicates_defined[slot] & mask) == mask) return;
  u32 lane = __builtin_ctz(mask & ~warp.predicates_defined[slot]);
  warp.cta->machine->report(Finding::uninitialised_read, warp, lane, warp.instruction().line,
                            [] { return std::string("depends on an undefined predicate"); });
  warp.predicates_defined[slot] |= mask;
}

}  // namespace ptx
