"""The device that is measured, and how a time is taken on it: an NVIDIA GPU, or none (`--dry-run`)."""

import itertools
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial

import torch

Run = Callable[[], object]


class Gpu:
    """Times with the caches warm: eager wall time over calls in a row, and replays of a CUDA graph of many calls."""

    dry = False
    calls_in_a_graph = 10

    def __init__(self, index: int = 0) -> None:
        self.device = torch.device("cuda", index)
        torch.cuda.set_device(self.device)

    def describe(self) -> dict[str, str]:
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "gpu": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": str(properties.multi_processor_count),
            "memory_gb": f"{properties.total_memory / 2**30:.1f}",
            "cuda": str(torch.version.cuda),
            "state": _nvidia_smi(self.device.index),
        }

    def is_lost(self) -> bool:
        """Whether the GPU refuses everything since an error, such as an illegal access: a new process may help."""
        try:
            torch.cuda.synchronize()
            return False
        except RuntimeError:
            return True

    def wall(self, run: Run, seconds: float) -> float:
        """Median seconds of a call from Python, results awaited after a few calls in a row."""
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        inner = max(1, min(20, int(0.01 / max(time.perf_counter() - started, 1e-6))))
        times: list[float] = []
        while not times or (time.perf_counter() - started < seconds and len(times) < 100):
            begin = time.perf_counter()
            for _ in range(inner):
                run()
            torch.cuda.synchronize()
            times.append((time.perf_counter() - begin) / inner)
        return statistics.median(times)

    def graph(self, run: Run, seconds: float) -> float:
        """Median seconds of a call inside a CUDA graph: what the GPU takes, without Python and launches.

        Raises:
            RuntimeError: The calls cannot be captured, for example since they wait for a result.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(self.calls_in_a_graph):
                run()
        graph.replay()
        torch.cuda.synchronize()
        times: list[float] = []
        started = time.perf_counter()
        while not times or (time.perf_counter() - started < seconds and len(times) < 100):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) * 1e-3 / self.calls_in_a_graph)
        return statistics.median(times)

    def peak_bytes(self, run: Run) -> int:
        """How far the allocated memory rises during a call, results included."""
        run()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del result
        return peak

    def peaks(self, dtypes: list[torch.dtype], seconds: float) -> tuple[dict[torch.dtype, float], float]:
        """Best measured gemm FLOP/s of each dtype, and bytes/s of a copy far larger than the caches."""
        size = 8192
        flops = {}
        for dtype in dtypes:
            a, b = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in range(2))
            flops[dtype] = 2 * size**3 / self.wall(partial(torch.matmul, a, b), seconds)
        source = torch.empty(2**28, device=self.device)
        target = torch.empty_like(source)
        return flops, 2 * source.nbytes / self.wall(lambda: target.copy_(source), seconds)


class Nothing:
    """Runs every call on the CPU and reads a clock that ticks one millisecond a reading: it measures nothing."""

    dry = True
    device = torch.device("cpu")

    def __init__(self) -> None:
        self._ticks = itertools.count()

    def describe(self) -> dict[str, str]:
        return {"gpu": "none: dry run, nothing was measured", "system": platform.machine()}

    def is_lost(self) -> bool:
        return False

    def wall(self, run: Run, seconds: float) -> float:
        begin = next(self._ticks)
        run()
        return (next(self._ticks) - begin) * 1e-3

    graph = wall

    def peak_bytes(self, run: Run) -> int:
        run()
        return 0

    def peaks(self, dtypes: list[torch.dtype], seconds: float) -> tuple[dict[torch.dtype, float], float]:
        return dict.fromkeys(dtypes, 1e12), 1e12


def _nvidia_smi(index: int | None) -> str:
    """Driver, clocks, power and temperature, which decide what a time means; empty without nvidia-smi."""
    fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", f"--id={index or 0}"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
