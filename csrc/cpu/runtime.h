// Chosen for every CPU kernel at run time: the number of threads and the instruction set.
#pragma once

#include <cstdint>

namespace amuse {

enum class Isa : int { baseline = 0, avx2 = 1, avx512 = 2 };

// The best instruction set that was compiled in and that this processor has, unless AMUSE_CPU_ISA or set_isa chose
// a lower one.
Isa current_isa();
bool isa_available(Isa isa);
// Throws std::invalid_argument when isa_available(isa) is false. For tests and measurements.
void set_isa(Isa isa);
const char* isa_name(Isa isa);

// Threads for a kernel that touches `elements` elements: `requested` (0 = OpenMP's default), fewer when the work would
// not pay for a team, and 1 in a forked child, whose OpenMP threads did not survive the fork.
int team_size(int requested, int64_t elements);

// 0 without OpenMP, else the date of its specification.
int openmp_version();

}  // namespace amuse
