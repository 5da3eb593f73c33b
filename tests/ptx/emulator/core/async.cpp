// cp.async: the bytes arrive when the copying thread waits for its group, and not a moment earlier; until then every
// access to their destination is a finding. wgmma: accumulators are usable after wgmma.wait_group.
#include <cstring>

#include "handlers.h"

namespace ptx {

static void land(Warp& warp, const AsyncCopy& copy) {
  Cta& cta = *warp.cta;
  if (copy.destination + copy.bytes > cta.shared.size()) return;
  u8 bytes[16] = {};
  u64 region = copy.source >> REGION_BITS;
  if (copy.source_bytes && region && region <= cta.machine->buffers.size()) {
    Buffer& buffer = cta.machine->buffers[region - 1];
    u64 offset = copy.source - buffer.base;
    if (offset + copy.source_bytes <= buffer.size) std::memcpy(bytes, buffer.host + offset, copy.source_bytes);
  }
  std::memcpy(&cta.shared[copy.destination], bytes, copy.bytes);
  shared_copy_landed(warp, copy.lane, copy.destination, copy.bytes);
  cta.progress++;
}

void leave_with_copies(Warp& warp, u32 mask) {
  for (const AsyncCopy& copy : warp.copies)
    if (mask >> copy.lane & 1) {
      warp.cta->machine->report(Finding::pending_async_access, warp, copy.lane, copy.line, [] {
        return std::string("the thread exits without waiting for this asynchronous copy");
      });
      return;
    }
}

namespace handler {

// slots: destination address, source address, source size (-1: all), ignore-source predicate (-1: none).
// values: bytes, destination offset, source offset, narrow destination address, predicate negated.
void copy_async(Warp& warp, const Instruction& i, u32 mask) {
  u64 to_addresses[LANES], from_addresses[LANES];
  u32 bytes = i.value[0], reading = 0;
  require_defined(warp, i.slot[0], mask, "an address");
  require_defined(warp, i.slot[2], mask, "a copy size");
  if (i.slot[3] >= 0) require_defined_predicate(warp, i.slot[3], mask);
  for (u32 lane = 0; lane < LANES; lane++) {
    if (!(mask >> lane & 1)) continue;
    u64 to = warp.reg(i.slot[0])[lane] + (u64)i.value[1];
    if (i.value[3]) to = (u32)to;
    resolve(Space::generic, to);
    u64 from = warp.reg(i.slot[1])[lane] + (u64)i.value[2];
    u32 source_bytes = i.slot[2] < 0 ? bytes : std::min<u32>(bytes, (u32)warp.reg(i.slot[2])[lane]);
    if (i.slot[3] >= 0 && ((warp.predicates[i.slot[3]] >> lane & 1) != (u32)i.value[4])) source_bytes = 0;
    if (source_bytes) {
      require_defined(warp, i.slot[1], 1u << lane, "an address");
      reading |= 1u << lane;
      Use use{false, false, false};
      if (!global_bytes(warp, lane, from, source_bytes, use))
        source_bytes = 0;
      else if (warp.cta->machine->races) {
        Buffer& buffer = warp.cta->machine->buffers[(from >> REGION_BITS) - 1];
        global_access(warp, lane, buffer, from - buffer.base, source_bytes, nullptr, use);
      }
    }
    to_addresses[lane] = to;
    from_addresses[lane] = from;
    if (!shared_bytes(warp, lane, to, bytes, true)) continue;
    shared_copy_issued(warp, lane, to, bytes);
    warp.copies.push_back({lane, warp.copy_group[lane], (u32)to, bytes, source_bytes, i.line, from});
  }
  count_shared(warp, to_addresses, mask, bytes);
  count_global(warp, from_addresses, reading, bytes, false);
}

void commit_copies(Warp& warp, const Instruction&, u32 mask) {
  for (u32 lane = 0; lane < LANES; lane++)
    if (mask >> lane & 1) warp.copy_group[lane]++;
}

// values: groups that may stay in flight, -1: everything has to land, committed or not.
void wait_copies(Warp& warp, const Instruction& i, u32 mask) {
  std::vector<AsyncCopy> in_flight;
  for (const AsyncCopy& copy : warp.copies) {
    bool waited = i.value[0] < 0 || (s64)copy.group < (s64)warp.copy_group[copy.lane] - i.value[0];
    if ((mask >> copy.lane & 1) && waited)
      land(warp, copy);
    else
      in_flight.push_back(copy);
  }
  warp.copies.swap(in_flight);
}

// values: groups that may stay in flight. Groups are not told apart: any number but 0 leaves all results pending.
void wait_wgmma(Warp& warp, const Instruction& i, u32) {
  if (i.value[0] != 0) return;
  for (u32 slot : warp.pending_registers)
    if (warp.origin[slot] == PENDING_WGMMA) warp.defined[slot] = ALL_LANES;
  warp.pending_registers.clear();
}

}  // namespace handler
}  // namespace ptx
