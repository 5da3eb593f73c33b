"""`python -m benchmarks.static`: what the compiler makes of every GPU kernel, without a GPU.

Compiles each kernel ahead of time for every dtype, head dim, normalization and architecture, and writes registers,
local memory (spills) and shared memory to kernels.csv and their summary to docs/gpu.md. Rows whose source has not
changed are kept, so a run that was cut short goes on where it stopped.
"""

import argparse
import os
import re
import time
from pathlib import Path

from benchmarks.static import bound, table

DOCS = Path(__file__).parents[2] / "docs" / "gpu.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.static", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compile a sample again; fail where results differ")
    parser.add_argument("--bound", action="store_true", help="bound of the forward's main loop, in %% of tensor peak")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no compilation after this long")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="compilations at a time")
    options = parser.parse_args()
    if options.bound:
        print(bound.report())
        return
    if options.check:
        problems = table.check()
        rows = table.read()
        if table.summary(rows) not in DOCS.read_text(encoding="utf-8"):
            problems.append(f"{DOCS.name}: its table is not the summary of {table.CSV.name}")
    else:
        deadline = time.monotonic() + options.seconds
        rows = table.update(lambda: deadline - time.monotonic(), options.processes)
        problems = []
        _write_docs(table.summary(rows))
    problems += table.over_limits(rows)
    print(f"{len(rows)} rows in {table.CSV.name}, {len(problems)} problems")
    if problems:
        raise SystemExit("\n".join(problems))


def _write_docs(summary: str) -> None:
    text = DOCS.read_text(encoding="utf-8")
    block = r"(<!-- python -m benchmarks\.static writes this table -->\n).*?(<!-- end -->)"
    DOCS.write_text(re.sub(block, lambda m: f"{m[1]}\n{summary}\n\n{m[2]}", text, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
