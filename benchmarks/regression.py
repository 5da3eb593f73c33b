"""A gate against slower CPU kernels that compares ratios, not times.

    python -m benchmarks.regression --save before.json      on the commit before, on this machine
    python -m benchmarks.regression before.json             on the commit after: exit code 1 where a ratio fell

The workloads of benchmarks/test_cpu.py run under pytest-benchmark. A ratio is the median of the eager formula over
ours, both of the same session, so that a slower or busier machine moves both; a file of another processor or number
of threads is refused.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from amuse.files import write_text
from benchmarks.measure import machine

SUITE = Path(__file__).with_name("test_cpu.py")
TOLERANCE = 0.15  # by which a ratio may fall; sessions of one commit differ by up to about a tenth
CONDITIONS = ("processor", "isa", "threads")


def ratios(report: dict[str, Any]) -> dict[str, float]:
    """How many times as long as ours the eager formula takes, by workload and mode, from pytest-benchmark's JSON."""
    medians = {(b["group"], b["params"]["contender"]): float(b["stats"]["median"]) for b in report["benchmarks"]}
    return {
        group: medians[group, "eager"] / seconds
        for (group, contender), seconds in medians.items()
        if contender == "ours"
    }


def fallen(before: dict[str, float], after: dict[str, float], tolerance: float = TOLERANCE) -> list[str]:
    """Workloads whose ratio fell by more than the tolerance, and those that are no longer there."""
    problems = [f"{group}: not measured any more" for group in before if group not in after]
    for group, ratio in after.items():
        if group in before and ratio < (1 - tolerance) * before[group]:
            problems.append(f"{group}: {before[group]:.2f}x of eager before, {ratio:.2f}x now")
    return problems


def measure() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "benchmark.json")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            str(SUITE),
            f"--benchmark-json={target}",
            "-k",
            "ours or eager",
        ]
        subprocess.run(command, check=True, cwd=SUITE.parents[1])
        return ratios(json.loads(target.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, nargs="?", help="file of an earlier --save")
    parser.add_argument("--save", type=Path, help="measure and keep the ratios")
    options = parser.parse_args()
    if (options.before is None) == (options.save is None):
        parser.error("expected either a file to compare with or --save FILE")
    here = {name: machine()[name] for name in CONDITIONS}
    if options.save is not None:
        write_text(json.dumps({"machine": here, "ratios": measure()}, indent=2) + "\n", options.save)
        return
    before = json.loads(options.before.read_text())
    if before["machine"] != here:
        parser.error(
            f"{options.before}: measured on {before['machine']}, this is {here}; ratios differ between machines"
        )
    problems = fallen(before["ratios"], measure())
    if problems:
        raise SystemExit("\n".join(problems))
    print(f"{len(before['ratios'])} ratios, none fell by more than {TOLERANCE:.0%} ({torch.get_num_threads()} threads)")


if __name__ == "__main__":
    main()
