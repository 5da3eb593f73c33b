// The state of a launch: program, buffers, CTAs, warps, registers, findings and counters.
#pragma once
#include <array>
#include <map>
#include <random>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "types.h"

namespace ptx {

// Generic addresses of shared and local memory lie in windows of their own, far from every buffer.
constexpr u64 SHARED_WINDOW = 0x0100000000000000ull;
constexpr u64 LOCAL_WINDOW = 0x0200000000000000ull;
// Shared offsets start here, so that a null or small negative address is out of bounds.
constexpr u64 SHARED_BASE = 1024;
constexpr int REGION_BITS = 40;     // every buffer owns 2^40 virtual bytes; what is not its own is red zone
constexpr u8 UNCOUNTED = 255;       // a pipe: the second half of an instruction
constexpr u32 PENDING_WGMMA = ~0u;  // an `origin`: result of a wgmma that nobody has waited for

struct Instruction {
  Handler handler;
  Flow flow;
  u8 pipe;
  bool ftz, saturate, guard_negated;
  Rounding rounding;
  s32 guard;         // predicate, -1: none
  s32 members;       // register with the lane mask of a warp-wide instruction; -1: the whole warp
  u32 line;          // in the PTX text
  const s32* slot;   // registers and predicates in operand order, -1: absent
  const s64* value;  // numbers, laid out as the opcode's lowering says
};

struct Program {
  std::vector<Instruction> code;
  std::vector<s32> slots;
  std::vector<s64> values;
  u32 registers, predicates;
  bool has_wgmma;
  std::vector<std::pair<u32, u64>> constants;  // register, value in every lane
  std::vector<std::pair<u32, bool>> constant_predicates;
  std::vector<std::pair<u32, u32>> specials;  // register, number in vocabulary.py: SPECIALS
  std::vector<u32> implicit_definitions;      // registers the compiler leaves undefined on purpose
  u32 shared_bytes, local_bytes;
  u32 shared_cell, global_cell;  // smallest access of the program, in bytes
};

// Shadow of each byte of a buffer; Python allocates it and reads it back.
enum ByteFlag : u8 { ACCESSIBLE = 1, WRITABLE = 2, INITIALISED = 4, READ = 8, WRITTEN = 16 };

struct Access {          // who touched a cell last
  u32 cta, clock, sync;  // cta counts from 1; 0: nobody
  u16 warp;
  u8 lane;
  bool strong;  // atomic, or ordered by .relaxed, .acquire, .release, .volatile
};
struct GlobalCell {
  Access write, read_here, read_elsewhere;  // readers: of the CTA that runs, and of the others
};
struct Buffer {
  u64 base, size;
  u8* host;
  u8* flags;
  bool tracked;  // false: nobody may write to it, so there can be no race
  std::vector<GlobalCell> cells;
};

struct SharedCell {
  u32 clock, sync;  // when the last write happened
  u16 warp;
  u8 lane;
  bool initialised, pending, strong, undefined;
};

struct Reads {  // a warp's reads of a cell: by which lanes, and when
  u32 clock, sync, lanes;
};

struct AsyncCopy {
  u32 lane, group, destination, bytes, source_bytes, line;
  u64 source;
};

using Knowledge =
    std::unordered_map<u64, u32>;  // (cta << 16 | warp) -> clock up to which its accesses are ordered before

struct Cta;
struct Machine;

struct Warp {
  Cta* cta;
  u32 id;
  u32 pc, mask;                    // the lanes that run now, in lock step
  u32 alive, parked;               // parked: waiting at a warp-wide instruction
  std::array<u32, LANES> lane_pc;  // where the lanes that are not running now continue
  u32 join;                        // lowest pc of the others: stop there and merge
  bool waiting, done, forced;
  u32 barrier, barrier_mode, barrier_threads;
  u64 slice;                 // instructions left before the other warps get a turn
  bool highest_first;        // which group of diverged lanes goes first
  std::vector<u64> lanes;    // LANES values a register
  std::vector<u32> defined;  // a bit per lane
  std::vector<u32> origin;   // line where an undefined value entered, 0: never written
  std::vector<u32> predicates, predicates_defined;
  u32 carry;
  std::vector<u32> clock;        // vector clock over the warps of the CTA
  u32 sync, whole_sync;          // counts synchronisations of lanes; the last one of the whole warp
  // [lane * LANES + other]: up to which count `lane` is behind what `other` did; empty until a part of the warp syncs
  std::vector<u32> known_sync;
  std::vector<u32> fence_clock;  // the clock at the last fence, empty: no fence yet
  std::vector<AsyncCopy> copies;
  std::array<u32, LANES> copy_group;
  std::vector<u32> pending_registers;  // accumulators of wgmma in flight
  std::vector<u64> written;            // per register: `executed` when an instruction wrote it; empty without wgmma
  u64 fenced;                          // `executed` at the last wgmma.fence
  std::vector<u8> local, local_defined;
  u64 executed;

  u64* reg(s32 slot) { return &lanes[(size_t)slot * LANES]; }
  const Instruction& instruction() const;
};

struct Cta {
  Machine* machine;
  u32 number, x, y, z;
  std::vector<u8> shared;
  std::vector<SharedCell> cells;
  std::vector<Reads> reads;  // per cell and warp
  std::vector<Warp> warps;
  Knowledge acquired;
  u64 progress;  // changes of memory, barriers passed, lanes gone: a spinning CTA makes none
};

struct Record {
  Finding kind;
  u32 line, pc, cta, warp, lane;
  u64 count;
  std::string message;
};

struct Counters {
  std::vector<u64> pipes, executions;  // executions: of each instruction, by warps
  u64 instructions, tensor_flops, barriers;
  u64 global_requests, global_sectors, global_sectors_ideal, global_bytes_read, global_bytes_written;
  u64 shared_requests, shared_wavefronts, shared_wavefronts_ideal;
};

struct Machine {
  Program* program;
  std::array<u32, 3> grid, block;
  std::vector<u8> parameters;
  std::vector<Buffer> buffers;
  u32 dynamic_shared;
  bool races;
  u32 seed;
  std::map<std::pair<Finding, u32>, Record> findings;
  Counters counters;
  std::unordered_map<u64, Knowledge> releases;  // by address

  // `message` is a function, called for the first finding of its kind at this line only.
  template <class Message>
  void report(Finding kind, Warp& warp, u32 lane, u32 line, Message message) {
    auto [place, fresh] = findings.try_emplace({kind, line});
    Record& record = place->second;
    if (fresh) record = {kind, line, warp.pc, warp.cta->number, warp.id, lane, 0, message()};
    record.count++;
  }
};

inline const Instruction& Warp::instruction() const { return cta->machine->program->code[pc]; }

// undefined.cpp
void require_defined(Warp&, s32 slot, u32 mask, const char* use);
void require_defined_predicate(Warp&, s32 slot, u32 mask);
u32 note_undefined(Warp&, const s32* slots, int count, u32 mask);
void define(Warp&, s32 slot, u32 mask, u32 defined = ALL_LANES, u32 origin = 0);
// memory.cpp
struct Use {
  bool write, strong, collective;
};
Space resolve(Space space, u64& address);
u8* global_bytes(Warp&, u32 lane, u64 address, u32 size, Use use);
u8* shared_bytes(Warp&, u32 lane, u64 address, u32 size, bool write);
void count_shared(Warp&, const u64* address, u32 mask, u32 size);
void count_global(Warp&, const u64* address, u32 mask, u32 size, bool write);
// races.cpp
bool shared_read(Warp&, u32 lane, u64 address, u32 size, Use use);  // false: the bytes are undefined
void shared_write(Warp&, u32 lane, u64 address, u32 size, const u8* bytes, Use use, bool undefined = false);
void shared_copy_issued(Warp&, u32 lane, u64 address, u32 size);
void shared_copy_landed(Warp&, u32 lane, u64 address, u32 size);
void global_access(Warp&, u32 lane, Buffer&, u64 offset, u32 size, const u8* bytes, Use use);
void acquire(Warp&, u64 address);
void release(Warp&, u64 address, bool fenced_only);
void fence(Warp&);
void synchronise(Warp&, u32 lanes);  // orders what these lanes did before against what they do after
// async.cpp
void leave_with_copies(Warp&, u32 mask);
// schedule.cpp
void run_warp(Warp&);
void run_cta(Cta&);

}  // namespace ptx
