// The C interface that native.py calls: build a program, run a grid, read findings and counters.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "handlers.h"

namespace ptx {

struct Trap {
  u32 line;
};
namespace handler {
void trap(Warp&, const Instruction& i, u32) { throw Trap{i.line}; }
}  // namespace handler

static u32 special_value(const Machine& machine, const Cta& cta, u32 warp, u32 lane, u32 which) {
  u32 thread = warp * LANES + lane;
  const auto &block = machine.block, &grid = machine.grid;
  const u32 values[] = {thread % block[0],
                        thread / block[0] % block[1],
                        thread / block[0] / block[1],  // %tid
                        block[0],
                        block[1],
                        block[2],  // %ntid
                        cta.x,
                        cta.y,
                        cta.z,
                        grid[0],
                        grid[1],
                        grid[2],  // %ctaid, %nctaid
                        lane,
                        warp,
                        (u32)cta.warps.size(),  // %laneid, %warpid, %nwarpid
                        1u << lane,
                        (1u << lane) - 1,
                        (2u << lane) - 1,  // %lanemask_eq, _lt, _le
                        ~((2u << lane) - 1),
                        ~((1u << lane) - 1),  // %lanemask_gt, _ge
                        0,
                        1,
                        0,  // what is 0 or 1 without clusters
                        machine.dynamic_shared,
                        machine.dynamic_shared + machine.program->shared_bytes,  // %dynamic_smem_size, %total_smem_size
                        cta.number};
  return values[which];
}

static void start_warp(Cta& cta, u32 id, u32 threads) {
  Machine& machine = *cta.machine;
  Program& program = *machine.program;
  Warp& warp = cta.warps[id];
  warp = Warp{};
  warp.cta = &cta;
  warp.id = id;
  u32 left = threads - id * LANES;
  warp.alive = warp.mask = left >= LANES ? ALL_LANES : (1u << left) - 1;
  warp.join = ~0u;
  warp.lanes.assign((size_t)program.registers * LANES, 0);
  warp.defined.assign(program.registers, 0);
  warp.origin.assign(program.registers, 0);
  warp.predicates.assign(program.predicates, 0);
  warp.predicates_defined.assign(program.predicates, 0);
  for (auto [slot, value] : program.constants) {
    std::fill_n(warp.reg(slot), LANES, value);
    warp.defined[slot] = ALL_LANES;
  }
  for (auto [slot, value] : program.constant_predicates) {
    warp.predicates[slot] = value ? ALL_LANES : 0;
    warp.predicates_defined[slot] = ALL_LANES;
  }
  for (auto [slot, which] : program.specials) {
    for (u32 lane = 0; lane < LANES; lane++) warp.reg(slot)[lane] = special_value(machine, cta, id, lane, which);
    warp.defined[slot] = ALL_LANES;
  }
  for (u32 slot : program.implicit_definitions) warp.origin[slot] = 1;
  warp.clock.assign(cta.warps.size(), 0);
  warp.clock[id] = 1;
  warp.sync = warp.whole_sync = 1;
  if (program.has_wgmma) warp.written.assign(program.registers, 0);
  warp.local.assign((size_t)program.local_bytes * LANES, 0xcd);
  warp.local_defined.assign(warp.local.size(), 0);
}

static void run_one(Machine& machine, u32 number) {
  Cta cta{};
  cta.machine = &machine;
  cta.number = number;
  cta.x = number % machine.grid[0];
  cta.y = number / machine.grid[0] % machine.grid[1];
  cta.z = number / machine.grid[0] / machine.grid[1];
  u32 threads = machine.block[0] * machine.block[1] * machine.block[2];
  cta.shared.assign(SHARED_BASE + machine.program->shared_bytes + machine.dynamic_shared, 0xcd);
  cta.warps.resize((threads + LANES - 1) / LANES);
  cta.cells.assign(cta.shared.size() / machine.program->shared_cell + 1, SharedCell{});
  cta.reads.assign(machine.races ? cta.cells.size() * cta.warps.size() : 0, Reads{});
  for (u32 id = 0; id < cta.warps.size(); id++) start_warp(cta, id, threads);
  run_cta(cta);
  for (auto entry = machine.releases.begin(); entry != machine.releases.end();)  // shared addresses die with the CTA
    entry = entry->first & SHARED_WINDOW ? machine.releases.erase(entry) : std::next(entry);
}

}  // namespace ptx

using namespace ptx;

extern "C" {

// records: 12 numbers an instruction, in the order read here. header: registers, predicates, shared bytes, local
// bytes, shared cell, global cell. pairs: register and value.
Program* core_program(const s64* records, u64 count, const s32* slots, u64 slot_count, const s64* values,
                      u64 value_count, const u32* header, const u64* constants, u64 constant_count,
                      const u64* constant_predicates, u64 constant_predicate_count, const u64* specials,
                      u64 special_count, const u64* implicit, u64 implicit_count) {
  auto* program = new Program{};
  program->slots.assign(slots, slots + slot_count);
  program->values.assign(values, values + value_count);
  program->slots.push_back(-1);
  program->values.push_back(0);
  for (u64 k = 0; k < count; k++) {
    const s64* r = records + 12 * k;
    program->code.push_back({handler_table[r[0]], (Flow)r[1], (u8)r[2], r[3] != 0, r[4] != 0, r[5] != 0, (Rounding)r[6],
                             (s32)r[7], (s32)r[8], (u32)r[9], program->slots.data() + r[10],
                             program->values.data() + r[11]});
  }
  program->registers = header[0];
  program->predicates = header[1];
  program->shared_bytes = header[2];
  program->local_bytes = header[3];
  program->shared_cell = header[4];
  program->global_cell = header[5];
  for (u64 k = 0; k < constant_count; k++) program->constants.push_back({(u32)constants[2 * k], constants[2 * k + 1]});
  for (u64 k = 0; k < constant_predicate_count; k++)
    program->constant_predicates.push_back({(u32)constant_predicates[2 * k], constant_predicates[2 * k + 1] != 0});
  for (u64 k = 0; k < special_count; k++) program->specials.push_back({(u32)specials[2 * k], (u32)specials[2 * k + 1]});
  program->has_wgmma = std::any_of(program->code.begin(), program->code.end(),
                                   [](const Instruction& i) { return i.handler == handler::warpgroup_multiply; });
  program->implicit_definitions.assign(implicit, implicit + implicit_count);
  return program;
}

void core_free_program(Program* program) { delete program; }

// geometry: grid, block, dynamic shared bytes, races, seed. buffers: base, size, host, flags, tracked.
Machine* core_run(Program* program, const u32* geometry, const u8* parameters, u64 parameter_bytes, const u64* buffers,
                  u64 buffer_count, u32 pipes, u32* trapped_line) {
  auto* machine = new Machine{};
  machine->program = program;
  std::copy_n(geometry, 3, machine->grid.begin());
  std::copy_n(geometry + 3, 3, machine->block.begin());
  machine->dynamic_shared = geometry[6];
  machine->races = geometry[7];
  machine->seed = geometry[8];
  machine->parameters.assign(parameters, parameters + parameter_bytes);
  machine->counters.pipes.assign(pipes, 0);
  machine->counters.executions.assign(program->code.size(), 0);
  for (u64 k = 0; k < buffer_count; k++) {
    const u64* b = buffers + 5 * k;
    Buffer buffer{b[0], b[1], (u8*)b[2], (u8*)b[3], b[4] != 0 && machine->races, {}};
    if (buffer.tracked) buffer.cells.assign(buffer.size / program->global_cell + 1, GlobalCell{});
    machine->buffers.push_back(std::move(buffer));
  }
  std::vector<u32> order(machine->grid[0] * machine->grid[1] * machine->grid[2]);
  for (u32 k = 0; k < order.size(); k++) order[k] = k;
  std::mt19937 random(machine->seed);
  if (machine->seed) std::shuffle(order.begin(), order.end(), random);
  *trapped_line = 0;
  try {
    for (u32 number : order) {
      run_one(*machine, number);
      if (std::any_of(machine->findings.begin(), machine->findings.end(),
                      [](auto& f) { return f.first.first == Finding::deadlock; }))
        break;
    }
  } catch (const Trap& trap) {
    *trapped_line = trap.line;
  }
  return machine;
}

u64 core_finding_count(Machine* machine) { return machine->findings.size(); }

// numbers: kind, line, pc, cta, warp, lane, count.
const char* core_finding(Machine* machine, u64 index, u64* numbers) {
  auto found = machine->findings.begin();
  std::advance(found, index);
  const Record& r = found->second;
  const u64 all[] = {(u64)r.kind, r.line, r.pc, r.cta, r.warp, r.lane, r.count};
  std::copy(std::begin(all), std::end(all), numbers);
  return r.message.c_str();
}

// The plain counters in the order of native.py: COUNTERS, then instructions by pipe.
void core_counters(Machine* machine, u64* numbers) {
  const Counters& c = machine->counters;
  const u64 all[] = {c.instructions,      c.tensor_flops,           c.barriers,
                     c.global_requests,   c.global_sectors,         c.global_sectors_ideal,
                     c.global_bytes_read, c.global_bytes_written,   c.shared_requests,
                     c.shared_wavefronts, c.shared_wavefronts_ideal};
  std::copy(c.pipes.begin(), c.pipes.end(), std::copy(std::begin(all), std::end(all), numbers));
}

void core_executions(Machine* machine, u64* numbers) {
  std::copy(machine->counters.executions.begin(), machine->counters.executions.end(), numbers);
}

void core_free_machine(Machine* machine) { delete machine; }
}
