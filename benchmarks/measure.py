"""How times and memory are taken: contenders in turn, medians, peaks of the machine measured in the same process."""

import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from amuse_kernels.dispatch import native_module

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def alternate(runs: Mapping[str, Callable[[], object]], repeats: int, clock: str = "wall") -> dict[str, float]:
    """Median seconds of each, run in turn, so that a busy moment of the machine hits all alike."""
    now = CLOCKS[clock]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            start = now()
            run()
            times[name].append(now() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_extra_bytes(run: Callable[[], object]) -> int | None:
    """How far the resident memory of this process rises during a call, results included; None where Linux is not.

    The call before it has loaded what is loaded once; freed memory goes back to the system first.
    """
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        return None
    run()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")  # resets the peak

    def kilobytes(field: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))

    before = kilobytes("VmRSS")
    run()
    return max(kilobytes("VmHWM") - before, 0) * 1024


def machine_peaks(clock: str = "wall") -> tuple[float, float]:
    """Best measured fp32 gemm FLOP/s and bytes/s of a copy that does not fit into a cache, with torch's threads."""
    now = CLOCKS[clock]
    a, source, target = torch.randn(1024, 1024), torch.randn(2**24), torch.empty(2**24)

    def best(run: Callable[[], object]) -> float:
        times = []
        for _ in range(15):
            start = now()
            run()
            times.append(now() - start)
        return min(times)

    return 2 * 1024**3 / best(lambda: a @ a), 2 * source.nbytes / best(lambda: target.copy_(source))


def machine() -> dict[str, str]:
    """The conditions of a measurement: processor, instruction set, threads and versions."""
    module = native_module()
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "isa": module.build_info()["isa"] if module else "not built",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
