"""`python -m benchmarks.static`: the compilers' results for every GPU kernel, without a GPU.

Compiles each Triton kernel ahead of time for every dtype, head dim, normalization and architecture, looks the CUDA C++
kernels up in the installed library, and writes registers, local memory (spills), shared memory, instructions by pipe
and the bound of the main loop to kernels.csv, and summaries to docs/gpu_tables.md. Rows whose source has not
changed are kept, so a run that was cut short resumes where it stopped; so are rows of CUDA that the library has no
code for:

    AMUSE_CUDA=1 AMUSE_CUDA_ARCHITECTURES="80 90a 100a 120" python setup.py build_ext --inplace
"""

import argparse
import os
import time
from pathlib import Path

from benchmarks import performance
from benchmarks.pages import rewrite
from benchmarks.static import counters, summary, table

DOCS = Path(__file__).parents[2] / "docs" / "gpu_tables.md"
COMMAND = "python -m benchmarks.static"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="make a sample and the counts again; fail on others")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no compilation after this long")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="compilations at a time")
    options = parser.parse_args()
    if options.check:
        rows = table.read()
        problems = table.check() + counters.check()
    else:
        deadline = time.monotonic() + options.seconds
        rows = table.update(lambda: deadline - time.monotonic(), options.processes)
        problems = []
        rewrite(DOCS, COMMAND, summary.render(rows))
        performance.write()
    problems += table.over_limits(rows)
    print(f"{len(rows)} rows in {table.CSV.name}, {len(problems)} problems")
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
