// Which lanes run, which warps run. Lanes of a warp that diverge run one group at a time, lowest program counter
// first, and merge where they meet; at warp-wide instructions they wait for each other. Warps run to the next barrier,
// in order or in a seeded random order.
#include <algorithm>

#include "machine.h"

namespace ptx {

constexpr u64 SLICE = 50000;  // instructions of a warp before the others get a turn: a warp may wait for them in a loop
constexpr int IDLE_ROUNDS = 40;  // slices without any change of memory before a loop counts as endless
constexpr u32 NOWHERE = ~0u;
constexpr u32 BARRIERS = 16;

static u32 lanes_at(const Warp& warp, u32 among, u32 pc) {
  u32 found = 0;
  for (int lane = 0; lane < LANES; lane++)
    if ((among >> lane & 1) && warp.lane_pc[lane] == pc) found |= 1u << lane;
  return found;
}

static void remember(Warp& warp, u32 pc) {
  for (int lane = 0; lane < LANES; lane++)
    if (warp.mask >> lane & 1) warp.lane_pc[lane] = pc;
}

// Starts the group of `candidates` with the lowest (or highest) program counter.
static void start_group(Warp& warp, u32 candidates) {
  u32 best = NOWHERE;
  for (int lane = 0; lane < LANES; lane++)
    if (candidates >> lane & 1) {
      u32 pc = warp.lane_pc[lane];
      if (best == NOWHERE || (warp.highest_first ? pc > best : pc < best)) best = pc;
    }
  warp.pc = best;
  warp.mask = lanes_at(warp, candidates, best);
  warp.parked &= ~warp.mask;
  warp.join = NOWHERE;
  for (int lane = 0; lane < LANES; lane++)
    if (((warp.alive & ~warp.parked & ~warp.mask) >> lane & 1) && warp.lane_pc[lane] > best)
      warp.join = std::min(warp.join, warp.lane_pc[lane]);
}

static void select_group(Warp& warp) {
  u32 runnable = warp.alive & ~warp.parked;
  if (runnable) return start_group(warp, runnable);
  // Everyone waits, nobody's condition is met: report, and let the lowest group continue alone.
  warp.forced = true;
  warp.highest_first = false;
  start_group(warp, warp.parked);
}

static u32 guard_mask(Warp& warp, const Instruction& i) {
  if (i.guard < 0) return warp.mask;
  if ((warp.predicates_defined[i.guard] & warp.mask) != warp.mask) require_defined_predicate(warp, i.guard, warp.mask);
  return warp.mask & (warp.predicates[i.guard] ^ (i.guard_negated ? ALL_LANES : 0));
}

static void report_divergence(Warp& warp, const Instruction& i, const std::string& message) {
  warp.cta->machine->report(
      Finding::barrier_divergence, warp, __builtin_ctz(warp.mask), i.line, [&] { return message; });
}

// The lanes that have to arrive before the running group may execute this warp-wide instruction.
static u32 needed_lanes(Warp& warp, const Instruction& i) {
  if (i.flow != Flow::warp_sync || i.members < 0) return warp.alive;
  u32 members = 0;
  require_defined(warp, i.members, warp.mask, "a member mask");
  for (int lane = 0; lane < LANES; lane++)
    if (warp.mask >> lane & 1) members |= (u32)warp.reg(i.members)[lane];
  return members & warp.alive;
}

// True when the warp-wide instruction may execute now, with every lane that waited at it.
static bool gather(Warp& warp, const Instruction& i) {
  if (warp.mask == warp.alive) {
    warp.forced = false;
    return true;
  }
  u32 needed = needed_lanes(warp, i);
  u32 here = warp.mask | lanes_at(warp, warp.parked, warp.pc);
  if (warp.forced) {
    report_divergence(warp, i, "a warp-wide instruction is executed by part of the lanes that it needs");
    warp.forced = false;
  } else if (needed & ~here) {
    remember(warp, warp.pc);
    warp.parked |= warp.mask;
    select_group(warp);
    return false;
  }
  remember(warp, warp.pc);
  warp.parked &= ~here;
  warp.mask = here & warp.alive;
  return true;
}

static void check_members(Warp& warp, const Instruction& i, u32 executing) {
  if (i.flow != Flow::warp_sync || i.members < 0) return;
  for (int lane = 0; lane < LANES; lane++) {
    if (!(executing >> lane & 1)) continue;
    u32 members = (u32)warp.reg(i.members)[lane];
    if (!(members >> lane & 1))
      return report_divergence(warp, i, "a lane executes this instruction without being in its member mask");
    if (members & warp.mask & ~executing)
      return report_divergence(warp, i, "the member mask names lanes that the guard switches off");
  }
}

static void branch(Warp& warp, const Instruction& i, u32 taken) {
  u32 others = warp.mask & ~taken;
  if (i.flow == Flow::branch && !others) {
    warp.pc = i.value[0];
    if (warp.mask == warp.alive) return;
    remember(warp, warp.pc);
    return select_group(warp);
  }
  if (!taken) {
    warp.pc++;
    return;
  }
  if (i.flow == Flow::indexed_branch) require_defined(warp, i.slot[0], taken, "a branch index");
  for (int lane = 0; lane < LANES; lane++) {
    if (!(warp.mask >> lane & 1)) continue;
    if (!(taken >> lane & 1))
      warp.lane_pc[lane] = warp.pc + 1;
    else if (i.flow == Flow::branch)
      warp.lane_pc[lane] = i.value[0];
    else
      warp.lane_pc[lane] = i.value[1 + std::min<u64>(warp.reg(i.slot[0])[lane], i.value[0] - 1)];
  }
  select_group(warp);
}

// Lanes that exit while others of their warp wait for them at a barrier or a warp-wide instruction: the manual leaves
// the behaviour undefined, since not all threads of the warp execute the instruction.
static void report_deserters(Warp& warp, u32 leaving) {
  for (u32 waiting = warp.parked, group; waiting; waiting &= ~group) {
    int first = __builtin_ctz(waiting);
    u32 pc = warp.lane_pc[first], members = 0;
    group = lanes_at(warp, waiting, pc);
    const Instruction& i = warp.cta->machine->program->code[pc];
    for (int lane = 0; lane < LANES; lane++)
      if (group >> lane & 1)
        members |= i.flow == Flow::warp_sync && i.members >= 0 ? (u32)warp.reg(i.members)[lane] : ALL_LANES;
    if (members & leaving)
      warp.cta->machine->report(Finding::barrier_divergence, warp, first, i.line, [] {
        return std::string("lanes that this instruction needs exit without reaching it");
      });
  }
}

static void leave(Warp& warp, u32 leaving) {
  report_deserters(warp, leaving);
  leave_with_copies(warp, leaving);
  warp.alive &= ~leaving;
  warp.cta->progress++;
  if (!warp.alive) {
    warp.done = true;
    return;
  }
  u32 staying = warp.mask & ~leaving;
  for (int lane = 0; lane < LANES; lane++)
    if (staying >> lane & 1) warp.lane_pc[lane] = warp.pc + 1;
  // Lanes that waited for the ones that left may continue now.
  warp.parked = 0;
  select_group(warp);
}

// bar: slots id, threads (-1: all), destination, predicate. values: mode, predicate negated.
static void arrive(Warp& warp, const Instruction& i) {
  require_defined(warp, i.slot[0], warp.mask, "a barrier number");
  int first = __builtin_ctz(warp.mask);
  warp.barrier = (u32)warp.reg(i.slot[0])[first] % BARRIERS;
  warp.barrier_threads = i.slot[1] < 0 ? 0 : (u32)warp.reg(i.slot[1])[first];
  warp.barrier_mode = i.value[0];
  warp.waiting = true;
}

void run_warp(Warp& warp) {
  Machine& machine = *warp.cta->machine;
  Counters& counters = machine.counters;
  const Instruction* code = machine.program->code.data();
  warp.slice = SLICE;
  while (true) {
    if (warp.pc >= warp.join) {
      remember(warp, warp.pc);
      select_group(warp);
    }
    const Instruction& i = code[warp.pc];
    if (warp.slice-- == 0) {
      if (warp.mask != warp.alive) {  // a lane may spin for what a diverged lane has to do
        remember(warp, warp.pc);
        warp.highest_first = !warp.highest_first;
        select_group(warp);
      }
      return;
    }
    if (i.flow >= Flow::barrier && !gather(warp, i)) continue;
    u32 executing = guard_mask(warp, i);
    warp.executed++;
    if (i.pipe != UNCOUNTED) {
      counters.instructions++;
      counters.pipes[i.pipe]++;
      counters.executions[warp.pc] += executing != 0;
    }
    switch (i.flow) {
      case Flow::plain:
        if (executing) i.handler(warp, i, executing);
        warp.pc++;
        break;
      case Flow::branch:
      case Flow::indexed_branch: branch(warp, i, executing); break;
      case Flow::exit:
        if (!executing) {
          warp.pc++;
          break;
        }
        leave(warp, executing);
        if (warp.done) return;
        break;
      case Flow::warp_sync:
      case Flow::aligned_sync:
        check_members(warp, i, executing);
        if (i.flow == Flow::aligned_sync && executing && executing != warp.mask)
          report_divergence(warp, i, "an .aligned instruction is executed under a guard that differs between lanes");
        if (executing) i.handler(warp, i, executing);
        warp.pc++;
        if (warp.mask != warp.alive) {
          remember(warp, warp.pc);
          select_group(warp);
        }
        break;
      case Flow::barrier:
        if (!executing) {
          warp.pc++;
          break;
        }
        if (executing != warp.mask)
          report_divergence(warp, i, "a barrier is executed under a guard that differs between lanes");
        arrive(warp, i);
        counters.barriers++;
        return;
    }
  }
}

enum BarrierMode { SYNC, ARRIVE, COUNT, ALL_OF, ANY_OF };

static void deliver(Warp& warp, u32 number, u32 threads) {
  const Instruction& i = warp.instruction();
  if (warp.barrier_mode == COUNT) {
    for (int lane = 0; lane < LANES; lane++)
      if (warp.mask >> lane & 1) warp.reg(i.slot[2])[lane] = number;
    define(warp, i.slot[2], warp.mask);
  } else if (warp.barrier_mode >= ALL_OF) {
    bool result = warp.barrier_mode == ALL_OF ? number == threads : number != 0;
    u32& to = warp.predicates[i.slot[2]];
    to = (to & ~warp.mask) | (result ? warp.mask : 0);
    warp.predicates_defined[i.slot[2]] |= warp.mask;
  }
}

static u32 votes_at_barrier(Warp& warp) {
  if (warp.barrier_mode < COUNT) return 0;
  const Instruction& i = warp.instruction();
  require_defined_predicate(warp, i.slot[3], warp.mask);
  return (warp.predicates[i.slot[3]] ^ (i.value[1] ? ALL_LANES : 0)) & warp.mask;
}

// A warp that arrived at a barrier without waiting: its clock travels to those who wait.
struct Arrival {
  u32 barrier;
  std::vector<u32> clock;
};

static void join_clock(std::vector<u32>& into, const std::vector<u32>& from) {
  if (into.size() < from.size()) into.resize(from.size(), 0);
  for (u32 k = 0; k < from.size(); k++) into[k] = std::max(into[k], from[k]);
}

static void pass_arrivals(Cta& cta, std::vector<Arrival>& arrivals) {
  for (Warp& warp : cta.warps)
    if (warp.waiting && warp.barrier_mode == ARRIVE) {
      arrivals.push_back({warp.barrier, warp.clock});
      warp.clock[warp.id]++;
      warp.waiting = false;
      warp.pc++;
    }
}

static bool release_barrier(Cta& cta, u32 barrier, std::vector<Arrival>& arrivals) {
  std::vector<Warp*> waiting;
  u32 needed = 0, live = 0, votes = 0, threads = 0;
  for (Warp& warp : cta.warps) {
    if (!warp.done) live++;
    if (!warp.waiting || warp.barrier != barrier) continue;
    waiting.push_back(&warp);
    needed = std::max(needed, (warp.barrier_threads + LANES - 1) / LANES);
  }
  if (waiting.empty()) return false;
  u32 arrived = std::count_if(arrivals.begin(), arrivals.end(), [&](const Arrival& a) { return a.barrier == barrier; });
  if (waiting.size() + arrived < (needed ? needed : live)) return false;
  std::vector<u32> clock(cta.warps.size(), 0), fence_clock;
  for (Arrival& arrival : arrivals)
    if (arrival.barrier == barrier) join_clock(clock, arrival.clock);
  arrivals.erase(
      std::remove_if(arrivals.begin(), arrivals.end(), [&](const Arrival& a) { return a.barrier == barrier; }),
      arrivals.end());
  for (Warp* warp : waiting) {
    join_clock(clock, warp->clock);
    join_clock(
        fence_clock, warp->fence_clock);  // fences are cumulative: a later release covers what any of them fenced
    votes += __builtin_popcount(votes_at_barrier(*warp));
    threads += __builtin_popcount(warp->mask);
  }
  for (Warp* warp : waiting) {
    deliver(*warp, votes, threads);
    warp->clock = clock;
    warp->clock[warp->id]++;
    warp->fence_clock = fence_clock;
    synchronise(*warp, ALL_LANES);
    warp->waiting = false;
    warp->pc++;
    if (warp->mask != warp->alive) {
      remember(*warp, warp->pc);
      select_group(*warp);
    }
  }
  cta.progress++;
  return true;
}

static void report_deadlock(Cta& cta) {
  for (Warp& warp : cta.warps) {
    if (warp.done) continue;
    cta.machine->report(Finding::deadlock, warp, __builtin_ctz(warp.mask), warp.instruction().line, [&] {
      return warp.waiting
                 ? "barrier " + std::to_string(warp.barrier) + " never completes: too few threads arrive"
                 : std::string("warps loop without any change of memory (CTAs run one after the other, in order)");
    });
  }
}

void run_cta(Cta& cta) {
  std::mt19937 random(cta.machine->seed + 7919 * cta.number);
  std::vector<Arrival> arrivals;
  u64 last_progress = ~0ull;
  int idle = 0;
  while (true) {
    std::vector<Warp*> ready;
    for (Warp& warp : cta.warps)
      if (!warp.done && !warp.waiting) ready.push_back(&warp);
    if (cta.machine->seed) std::shuffle(ready.begin(), ready.end(), random);
    for (Warp* warp : ready) run_warp(*warp);
    pass_arrivals(cta, arrivals);
    bool released = false;
    for (u32 barrier = 0; barrier < BARRIERS; barrier++) released |= release_barrier(cta, barrier, arrivals);
    bool finished = true, can_run = false;
    for (Warp& warp : cta.warps) {
      finished &= warp.done;
      can_run |= !warp.done && !warp.waiting;
    }
    if (finished) return;
    idle = cta.progress == last_progress ? idle + 1 : 0;
    last_progress = cta.progress;
    if (!can_run || idle > IDLE_ROUNDS) return report_deadlock(cta);
  }
}

}  // namespace ptx
