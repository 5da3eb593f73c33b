"""The GPU benchmark: one command, under ten minutes, one file to send.

    python -m benchmarks.gpu                            everything, on the first NVIDIA GPU
    python -m benchmarks.gpu --only 1,fusion --minutes 3
    python -m benchmarks.gpu --dry-run                  the same code without a GPU: checks everything, measures nothing

Every contender that is installed is checked against the formula in fp64 first (docs/numerics.md); one that is wrong is
refused and has no times. Then forward, backward and both are timed: wall_ms is a call from Python, graph_ms the same
call inside a CUDA graph. fraction_of_roofline is against gemm and copy measured on the same GPU before, counting
visible pairs and rows only. The exit code is 1 where one of our own kernels was refused.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from amuse_kernels import __version__
from benchmarks.gpu import report
from benchmarks.gpu.device import Gpu, Nothing
from benchmarks.gpu.suite import DTYPES, ORDER, Suite
from benchmarks.measure import machine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    workloads = (*ORDER, "fusion", "step")
    parser.add_argument("--only", default=",".join(workloads), help=f"some of {', '.join(workloads)}")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help=f"some of {', '.join(DTYPES)}")
    parser.add_argument("--minutes", type=float, default=9, help="nothing new is started after this time")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile and FlexAttention")
    parser.add_argument("--out", type=Path, help="folder of the results; default: gpu-benchmark-DATE")
    parser.add_argument("--dry-run", action="store_true", help="no GPU: tiny inputs on the CPU, made-up times")
    arguments = parser.parse_args()
    chosen, dtypes = arguments.only.split(","), arguments.dtypes.split(",")
    for option, given, known in (("--only", chosen, workloads), ("--dtypes", dtypes, tuple(DTYPES))):
        if unknown := set(given) - set(known):
            parser.error(f"{option}: expected some of {', '.join(known)}, got {unknown.pop()!r}")
    if not arguments.dry_run and not torch.cuda.is_available():
        parser.error("no NVIDIA GPU that this PyTorch can use; --dry-run runs the same code without one")

    device = Nothing() if arguments.dry_run else Gpu()
    if device.dry:
        print(report.DRY, flush=True)
    suite = Suite(device, 60 * arguments.minutes, dtypes, not arguments.no_compile)
    results = suite.run(chosen)
    conditions: dict[str, Any] = (
        machine() | device.describe() | {"amuse_kernels": __version__, "arguments": sys.argv[1:]}
    )
    conditions["gemm_tflops"] = {name: suite.flops[DTYPES[name]] / 1e12 for name in dtypes}
    conditions["copy_gbytes_per_s"] = suite.bandwidth / 1e9
    folder = arguments.out or Path(f"gpu-benchmark-{time.strftime('%Y%m%d-%H%M%S')}")
    archive = report.write(folder, results, conditions, device.dry)
    print(report.summary(results, device.dry))
    print(f"{len(results.records)} results in {folder}; the file to send: {archive}")
    return int(any(entry["contender"].startswith("ours") for entry in results.refused))


if __name__ == "__main__":
    sys.exit(main())
