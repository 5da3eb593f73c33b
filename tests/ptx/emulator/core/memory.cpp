// Address spaces: where an address leads, bounds, alignment, write protection, and the traffic counters.
#include <algorithm>
#include <cstring>

#include "machine.h"

namespace ptx {

Space resolve(Space space, u64& address) {
  if (space != Space::generic) return space;
  if (address >> 56 == SHARED_WINDOW >> 56) {
    address &= ~SHARED_WINDOW;
    return Space::shared;
  }
  if (address >> 56 == LOCAL_WINDOW >> 56) {
    address &= ~LOCAL_WINDOW;
    return Space::local;
  }
  return Space::global;
}

static u32 natural_alignment(u32 size) { return std::min(size & -size, 32u); }

static void check_alignment(Warp& warp, u32 lane, u64 address, u32 size, const char* memory) {
  if (address % natural_alignment(size) == 0) return;
  warp.cta->machine->report(Finding::misaligned, warp, lane, warp.instruction().line, [&] {
    return std::to_string(size) + "-byte access to " + memory + " at address " + std::to_string(address) +
           ", which is not a multiple of " + std::to_string(natural_alignment(size));
  });
}

static std::string where(Machine& machine, u64 address) {
  // In its own region first; an address in no region is described by the number alone.
  u64 region = address >> REGION_BITS;
  if (region == 0 || region > machine.buffers.size()) return "address " + std::to_string(address) + " of no buffer";
  Buffer& buffer = machine.buffers[region - 1];
  s64 offset = (s64)(address - buffer.base);
  return "byte " + std::to_string(offset) + " of buffer " + std::to_string(region - 1) + ", which has " +
         std::to_string(buffer.size) + " bytes" +
         (offset >= 0 && (u64)offset < buffer.size ? ", in a gap of the view" : "");
}

static bool all_have(const u8* flags, u32 size, u8 wanted) {
  u8 common = 0xff;
  for (u32 k = 0; k < size; k++) common &= flags[k];
  return (common & wanted) == wanted;
}

u8* global_bytes(Warp& warp, u32 lane, u64 address, u32 size, Use use) {
  Machine& machine = *warp.cta->machine;
  u32 line = warp.instruction().line;
  check_alignment(warp, lane, address, size, "global memory");
  // A region belongs half to the bytes before its buffer and half to those after: both are red zone.
  u64 region = address >> REGION_BITS;
  Buffer* buffer = region && region <= machine.buffers.size() ? &machine.buffers[region - 1] : nullptr;
  bool inside = buffer && address >= buffer->base && address + size <= buffer->base + buffer->size;
  u64 offset = inside ? address - buffer->base : 0;
  if (!inside || !all_have(buffer->flags + offset, size, ACCESSIBLE)) {
    machine.report(Finding::out_of_bounds, warp, lane, line, [&] {
      return std::to_string(size) + "-byte " + (use.write ? "write" : "read") + " at " + where(machine, address);
    });
    return nullptr;
  }
  u8* flags = buffer->flags + offset;
  if (use.write && !all_have(flags, size, WRITABLE)) {
    machine.report(Finding::readonly_write, warp, lane, line, [&] { return "write at " + where(machine, address); });
    return nullptr;
  }
  bool reads = !use.write || use.collective;  // an atomic reads and writes
  if (reads && !all_have(flags, size, INITIALISED)) {
    machine.report(Finding::uninitialised_read, warp, lane, line,
                   [&] { return "reads global memory that nothing has stored: " + where(machine, address); });
  }
  u8 touched = (use.write ? WRITTEN | INITIALISED : 0) | (reads ? READ : 0);
  for (u32 k = 0; k < size; k++) flags[k] |= touched;
  return buffer->host + offset;
}

u8* shared_bytes(Warp& warp, u32 lane, u64 address, u32 size, bool write) {
  Cta& cta = *warp.cta;
  check_alignment(warp, lane, address, size, "shared memory");
  if (address >= SHARED_BASE && address + size <= cta.shared.size()) return &cta.shared[address];
  cta.machine->report(Finding::out_of_bounds, warp, lane, warp.instruction().line, [&] {
    return std::to_string(size) + "-byte " + (write ? "write" : "read") + " at byte " +
           std::to_string((s64)(address - SHARED_BASE)) + " of shared memory, which has " +
           std::to_string(cta.shared.size() - SHARED_BASE) + " bytes";
  });
  return nullptr;
}

// A request is served 128 bytes at a time: 32, 16 or 8 lanes a phase; a phase takes as many wavefronts as the
// busiest of the 32 banks has distinct words.
void count_shared(Warp& warp, const u64* address, u32 mask, u32 size) {
  Counters& counters = warp.cta->machine->counters;
  u32 lanes_a_phase = size >= 16 ? 8 : size == 8 ? 16 : 32;
  counters.shared_requests++;
  for (u32 first = 0; first < LANES; first += lanes_a_phase) {
    u64 words[8 * 16 + 32];
    u32 count = 0;
    for (u32 lane = first; lane < first + lanes_a_phase; lane++)
      if (mask >> lane & 1)
        for (u32 k = 0; k < std::max(1u, size / 4); k++) words[count++] = address[lane] / 4 + k;
    if (!count) continue;
    std::sort(words, words + count);
    count = std::unique(words, words + count) - words;
    u32 in_bank[32] = {}, busiest = 0;
    for (u32 k = 0; k < count; k++) busiest = std::max(busiest, ++in_bank[words[k] % 32]);
    counters.shared_wavefronts += busiest;
    counters.shared_wavefronts_ideal++;
  }
}

void count_global(Warp& warp, const u64* address, u32 mask, u32 size, bool write) {
  Counters& counters = warp.cta->machine->counters;
  u64 sectors[2 * LANES];
  u32 count = 0, bytes = 0;
  for (u32 lane = 0; lane < LANES; lane++)
    if (mask >> lane & 1) {
      sectors[count++] = address[lane] / 32;
      sectors[count++] = (address[lane] + size - 1) / 32;
      bytes += size;
    }
  if (!count) return;
  std::sort(sectors, sectors + count);
  counters.global_requests++;
  counters.global_sectors += std::unique(sectors, sectors + count) - sectors;
  counters.global_sectors_ideal += (bytes + 31) / 32;
  (write ? counters.global_bytes_written : counters.global_bytes_read) += bytes;
}

}  // namespace ptx
