// Races, by vector clocks. Two accesses of different threads to one cell, at least one a write and not both strong,
// race unless something orders them: a barrier, a warp-wide synchronisation, or a release and an acquire.
// Threads of one CTA that store equal bytes do not race: compilers replicate values across lanes and warps.
#include <algorithm>
#include <cstring>

#include "machine.h"

namespace ptx {

static void report_race(Warp& warp, u32 lane, const char* what, const std::string& place, const std::string& other) {
  warp.cta->machine->report(Finding::race, warp, lane, warp.instruction().line, [&] {
    return std::string(what) + " at " + place + " without synchronisation with " + other;
  });
}

static std::string shared_place(u64 address) {
  return "byte " + std::to_string(address - SHARED_BASE) + " of shared memory";
}

static std::string thread_name(u32 warp, u32 lane) {
  return "warp " + std::to_string(warp) + " lane " + std::to_string(lane);
}

// Whether a write of a thread of this CTA, recorded in a cell, happened before what `lane` does now.
static bool ordered(Warp& warp, u32 lane, u32 other_warp, u32 clock, u32 other_lane, u32 sync) {
  if (other_warp != warp.id) return warp.clock[other_warp] >= clock;
  if (other_lane == lane || sync < warp.whole_sync) return true;
  return !warp.known_sync.empty() && sync < warp.known_sync[lane * LANES + other_lane];
}

// Those of `lanes` whose accesses are not ordered before what `lane` does now.
static u32 unordered(Warp& warp, u32 lane, u32 lanes, u32 sync) {
  if (sync < warp.whole_sync) return 0;
  u32 found = 0;
  for (u32 other = 0; other < LANES; other++)
    if ((lanes >> other & 1) && !ordered(warp, lane, warp.id, 0, other, sync)) found |= 1u << other;
  return found;
}

void synchronise(Warp& warp, u32 lanes) {
  warp.sync++;
  if ((lanes & warp.alive) == warp.alive) {
    warp.whole_sync = warp.sync;
    return;
  }
  if (warp.known_sync.empty()) warp.known_sync.assign(LANES * LANES, 0);
  std::array<u32, LANES> known{};
  for (u32 other = 0; other < LANES; other++)
    for (u32 lane = 0; lane < LANES; lane++)
      if (lanes >> lane & 1) known[other] = std::max(known[other], warp.known_sync[lane * LANES + other]);
  for (u32 lane = 0; lane < LANES; lane++)
    if (lanes >> lane & 1) known[lane] = warp.sync;
  for (u32 lane = 0; lane < LANES; lane++)
    if (lanes >> lane & 1) std::copy(known.begin(), known.end(), &warp.known_sync[lane * LANES]);
}

bool shared_read(Warp& warp, u32 lane, u64 address, u32 size, Use use) {
  Cta& cta = *warp.cta;
  Machine& machine = *cta.machine;
  u32 width = machine.program->shared_cell;
  u32 line = warp.instruction().line;
  bool defined = true;
  for (u64 index = address / width; index <= (address + size - 1) / width; index++) {
    SharedCell& cell = cta.cells[index];
    if (cell.pending) {
      machine.report(Finding::pending_async_access, warp, lane, line, [&] {
        return "reads " + shared_place(index * width) + " before its asynchronous copy was waited for";
      });
    } else if (!cell.initialised) {
      machine.report(Finding::uninitialised_read, warp, lane, line,
                     [&] { return "reads " + shared_place(index * width) + ", which nothing has stored"; });
    } else if (machine.races && !(use.strong && cell.strong) &&
               !ordered(warp, lane, cell.warp, cell.clock, cell.lane, cell.sync)) {
      report_race(warp, lane, "read", shared_place(index * width), "the write of " + thread_name(cell.warp, cell.lane));
    }
    if (cell.undefined) defined = false;
    if (!machine.races || use.strong) continue;
    Reads& record = cta.reads[index * cta.warps.size() + warp.id];
    // ldmatrix reads for the warp as one: nothing of it races inside the warp
    u32 lanes = use.collective ? 0 : 1u << lane;
    if (record.clock == warp.clock[warp.id]) lanes |= unordered(warp, lane, record.lanes, record.sync);
    record = {warp.clock[warp.id], warp.sync, lanes};
  }
  return defined;
}

static void check_shared_write(Warp& warp, u32 lane, u64 address, u32 size, const u8* bytes, Use use) {
  Cta& cta = *warp.cta;
  Machine& machine = *cta.machine;
  u32 width = machine.program->shared_cell;
  for (u64 index = address / width; index <= (address + size - 1) / width; index++) {
    SharedCell& cell = cta.cells[index];
    u64 start = std::max(index * width, address);
    if (cell.pending) {
      machine.report(Finding::pending_async_access, warp, lane, warp.instruction().line, [&] {
        return "writes " + shared_place(start) + " while an asynchronous copy to it is in flight";
      });
      continue;
    }
    if (!machine.races) continue;
    u64 compared = std::min<u64>(width, address + size - start);
    bool equal = bytes && !std::memcmp(&cta.shared[start], bytes + (start - address), compared);
    if (cell.initialised && !equal && !(use.strong && cell.strong) &&
        !ordered(warp, lane, cell.warp, cell.clock, cell.lane, cell.sync))
      report_race(warp, lane, "write", shared_place(start), "the write of " + thread_name(cell.warp, cell.lane));
    for (u32 other = 0; other < cta.warps.size(); other++) {
      const Reads& record = cta.reads[index * cta.warps.size() + other];
      if (!record.clock) continue;
      bool races = other != warp.id ? record.clock > warp.clock[other]
                                    : record.clock == warp.clock[other] &&
                                          unordered(warp, lane, record.lanes, record.sync) != 0;
      if (races && !equal) {
        report_race(warp, lane, "write", shared_place(start), "a read by warp " + std::to_string(other));
        break;
      }
    }
  }
}

static void mark_shared(Warp& warp, u32 lane, u64 address, u32 size, bool pending, bool strong, bool undefined) {
  Cta& cta = *warp.cta;
  u32 width = cta.machine->program->shared_cell;
  for (u64 index = address / width; index <= (address + size - 1) / width; index++)
    cta.cells[index] = {warp.clock[warp.id], warp.sync, (u16)warp.id, (u8)lane, true, pending, strong, undefined};
}

void shared_write(Warp& warp, u32 lane, u64 address, u32 size, const u8* bytes, Use use, bool undefined) {
  check_shared_write(warp, lane, address, size, bytes, use);
  mark_shared(warp, lane, address, size, false, use.strong, undefined);
}

void shared_copy_issued(Warp& warp, u32 lane, u64 address, u32 size) {
  check_shared_write(warp, lane, address, size, nullptr, {true, false, false});
  mark_shared(warp, lane, address, size, true, false, false);
}

void shared_copy_landed(Warp& warp, u32 lane, u64 address, u32 size) {
  mark_shared(warp, lane, address, size, false, false, false);
}

static u64 thread_key(u32 cta, u32 warp) { return (u64)cta << 16 | warp; }

static bool ordered_globally(Warp& warp, u32 lane, const Access& access) {
  if (access.cta == warp.cta->number + 1)
    return ordered(warp, lane, access.warp, access.clock, access.lane, access.sync);
  auto known = warp.cta->acquired.find(thread_key(access.cta - 1, access.warp));
  return known != warp.cta->acquired.end() && known->second >= access.clock;
}

static void check_global(Warp& warp, u32 lane, const Access& other, const char* what, const char* earlier, u64 address,
                         bool strong) {
  if (!other.cta || (strong && other.strong) || ordered_globally(warp, lane, other)) return;
  std::string thread = thread_name(other.warp, other.lane);
  if (other.cta != warp.cta->number + 1) thread = "CTA " + std::to_string(other.cta - 1) + " " + thread;
  u64 region = address >> REGION_BITS;
  report_race(warp, lane, what,
              "byte " + std::to_string(address - warp.cta->machine->buffers[region - 1].base) + " of buffer " +
                  std::to_string(region - 1),
              std::string("the ") + earlier + " of " + thread);
}

void global_access(Warp& warp, u32 lane, Buffer& buffer, u64 offset, u32 size, const u8* bytes, Use use) {
  if (!buffer.tracked) return;
  u32 width = warp.cta->machine->program->global_cell;
  u32 here = warp.cta->number + 1;
  Access now{here, warp.clock[warp.id], warp.sync, (u16)warp.id, (u8)lane, use.strong};
  for (u64 index = offset / width; index <= (offset + size - 1) / width; index++) {
    GlobalCell& cell = buffer.cells[index];
    u64 start = std::max(index * width, offset);
    u64 address = buffer.base + start;
    if (!use.write) {
      check_global(warp, lane, cell.write, "read", "write", address, use.strong);
      if (cell.read_here.cta && cell.read_here.cta != here)
        cell.read_elsewhere = cell.read_here;
      else if (cell.read_here.cta && cell.read_here.warp != now.warp)
        cell.read_elsewhere = cell.read_here;
      cell.read_here = now;
      continue;
    }
    // Equal bytes excuse threads of one CTA only: CTAs that do the same work twice are a bug.
    u64 compared = std::min<u64>(width, offset + size - start);
    bool equal = bytes && !std::memcmp(buffer.host + start, bytes + (start - offset), compared);
    if (!(equal && cell.write.cta == here)) check_global(warp, lane, cell.write, "write", "write", address, use.strong);
    if (!(equal && cell.read_here.cta == here))
      check_global(warp, lane, cell.read_here, "write", "read", address, use.strong);
    if (!(equal && cell.read_elsewhere.cta == here))
      check_global(warp, lane, cell.read_elsewhere, "write", "read", address, use.strong);
    cell.write = now;
  }
}

void acquire(Warp& warp, u64 address) {
  auto& releases = warp.cta->machine->releases;
  auto found = releases.find(address);
  if (found == releases.end()) return;
  for (auto& [key, clock] : found->second) {
    u32& known = warp.cta->acquired[key];
    known = std::max(known, clock);
    if (key >> 16 == warp.cta->number) {
      u32& own = warp.clock[key & 0xffff];
      own = std::max(own, clock);
    }
  }
}

// A relaxed access releases what came before the warp's last fence, a releasing one all that came before.
void release(Warp& warp, u64 address, bool fenced_only) {
  if (fenced_only && warp.fence_clock.empty()) return;
  const std::vector<u32>& clock = fenced_only ? warp.fence_clock : warp.clock;
  Knowledge& knowledge = warp.cta->machine->releases[address];
  for (u32 other = 0; other < clock.size(); other++) {
    u32& known = knowledge[thread_key(warp.cta->number, other)];
    known = std::max(known, clock[other]);
  }
  for (auto& [key, value] : warp.cta->acquired) {
    u32& known = knowledge[key];
    known = std::max(known, value);
  }
  if (!fenced_only) warp.clock[warp.id]++;
}

void fence(Warp& warp) {
  warp.fence_clock = warp.clock;
  warp.clock[warp.id]++;
}

}  // namespace ptx
