#include "runtime.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace amuse {
namespace {

// Starting a team costs some microseconds, as much as moving about this many elements.
constexpr int64_t min_elements_per_thread = 16 * 1024;

std::atomic<bool> forked{false};

#if defined(__unix__) || defined(__APPLE__)
// A team in a forked child waits forever for threads that exist only in the parent.
const int fork_handler = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
#endif

constexpr Isa all_isas[] = {Isa::avx512, Isa::avx2, Isa::baseline};

Isa detect_isa() {
  Isa best = Isa::baseline;
  for (Isa isa : all_isas) {
    if (isa_available(isa)) {
      best = isa;
      break;
    }
  }
  const char* wanted = std::getenv("AMUSE_CPU_ISA");
  if (wanted == nullptr) return best;
  for (Isa isa : all_isas) {
    if (std::strcmp(wanted, isa_name(isa)) == 0 && isa_available(isa)) return isa;
  }
  return best;
}

std::atomic<int>& isa_slot() {
  static std::atomic<int> slot{static_cast<int>(detect_isa())};
  return slot;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "baseline";
  }
}

bool isa_available(Isa isa) {
  switch (isa) {
#if defined(AMUSE_HAS_AVX512)
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && isa_available(Isa::avx2);
#endif
#if defined(AMUSE_HAS_AVX2)
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
    case Isa::baseline: return true;
    default: return false;
  }
}

Isa current_isa() { return static_cast<Isa>(isa_slot().load(std::memory_order_relaxed)); }

void set_isa(Isa isa) {
  if (!isa_available(isa)) {
    throw std::invalid_argument(std::string("isa: ") + isa_name(isa) + " is not compiled in or not supported here");
  }
  isa_slot().store(static_cast<int>(isa));
}

int openmp_version() {
#if defined(_OPENMP)
  return _OPENMP;
#else
  return 0;
#endif
}

int team_size(int requested, int64_t elements) {
#if defined(_OPENMP)
  if (forked.load(std::memory_order_relaxed)) return 1;
  const int64_t wanted = requested > 0 ? requested : omp_get_max_threads();
  return static_cast<int>(std::clamp<int64_t>(elements / min_elements_per_thread, 1, wanted));
#else
  (void)requested;
  (void)elements;
  return 1;
#endif
}

}  // namespace amuse
