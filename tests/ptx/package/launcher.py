"""Runs csrc/cuda/launch.cpp on a CUDA runtime that records the calls: which shared memory a launch opts in to."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
from pathlib import Path

from tests.ptx.emulator.arguments import Structure
from tests.ptx.emulator.launch import Launch, load
from tests.ptx.emulator.native import cache_folder
from tests.ptx.emulator.nvcc_kernels import nvcc

SOURCES = Path(__file__).parents[3] / "csrc" / "cuda"

# The functions of the runtime that launch.cpp may call. `static_bytes` is what the kernel declares, as the real
# cudaFuncGetAttributes would say.
RUNTIME = """
#include "launch.h"
namespace {
struct Seen { int opted_in, static_bytes, launches; } seen;
}
extern "C" {
cudaError_t cudaGetDevice(int* device) { *device = 0; return cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) seen.opted_in = value;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->sharedSizeBytes = seen.static_bytes;
  attributes->maxDynamicSharedSizeBytes = 48 * 1024 - seen.static_bytes;
  return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) {
  seen.launches++;
  return cudaSuccess;
}
// The dynamic bytes that a launch opts in to, -1: it does not; -2: it was not made.
int opted_in(int static_bytes, int shared_bytes) {
  seen = {-1, static_bytes, 0};
  amuse::CudaPlan plan;
  plan.launches.push_back({"kernel", &seen, 1, 32, shared_bytes, {}});
  return amuse::run(plan, 0, nullptr) == cudaSuccess && seen.launches == 1 ? seen.opted_in : -2;
}
}
"""


@functools.cache
def _library() -> ctypes.CDLL:
    parts = [RUNTIME, *((SOURCES / name).read_text() for name in ("launch.cpp", "launch.h"))]
    build = cache_folder() / f"launcher-{hashlib.sha256(''.join(parts).encode()).hexdigest()[:20]}.so"
    if not build.exists():
        unfinished = build.with_suffix(f".{os.getpid()}")
        runtime = build.with_suffix(f".{os.getpid()}.cpp")
        runtime.write_text(RUNTIME)
        command = [nvcc() or "nvcc", "-shared", "-cudart=none", "-Xcompiler=-fPIC", "-std=c++17", f"-I{SOURCES}"]
        subprocess.run([*command, str(SOURCES / "launch.cpp"), str(runtime), "-o", str(unfinished)], check=True)
        runtime.unlink()
        os.replace(unfinished, build)
    return ctypes.CDLL(str(build))


def opted_in(static_bytes: int, shared_bytes: int) -> int | None:
    """The dynamic shared memory that the package's launcher opts in to for a kernel; None where it does not."""
    asked = _library().opted_in(static_bytes, shared_bytes)
    if asked == -2:
        raise RuntimeError("the launcher did not launch")
    return None if asked == -1 else asked


def prepare(entry: str, ptx: str, grid: int, block: int, parameters: Structure, shared_bytes: int) -> Launch:
    """The launch of a plan, opted in to shared memory as the launcher does it."""
    asked = opted_in(load(ptx, entry, keep=True).code.slots.shared_bytes, shared_bytes)
    return Launch(entry, ptx, entry, (grid,), block, [parameters], [], shared_bytes, asked)
