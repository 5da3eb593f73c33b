"""The tests' promises, kept by the kernels on this GPU: each test's outcome as soon as pytest prints it."""

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.gpu.journal import Record
from benchmarks.gpu.stage import Context, Item

ROOT = Path(__file__).parents[2]
FILES = ("tests/test_p2c_attention.py", "tests/test_adaptive_fusion.py")
OUTCOME = re.compile(r"(PASSED|FAILED|ERROR|SKIPPED)\s+(tests/\S.*)|(tests/\S.*?)\s+(PASSED|FAILED|ERROR|SKIPPED)")
REASON = re.compile(r"(?:FAILED|ERROR) (tests/\S.*?) - (.*)")
WORKERS = 8  # compile side by side; the kernels of all share the GPU


def items(context: Context) -> Iterator[Item]:
    for backend in context.backends[:1] if context.device.dry else context.backends:
        for file in FILES[1:] if context.device.dry else FILES:
            yield Item(f"{backend} {Path(file).stem}", partial(_promises, context, backend, file))


def _promises(context: Context, backend: str, file: str) -> Iterator[Record]:
    command = [sys.executable, "-m", "pytest", "-v", "-rfE", "-p", "no:cacheprovider", "--color=no", file]
    environment = dict(os.environ)
    if context.device.dry:
        command += ["-k", "leading"]
    else:
        environment["AMUSE_TEST_GPU"] = backend
        if importlib.util.find_spec("xdist"):
            command += ["-n", str(min(WORKERS, os.cpu_count() or 1))]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    counts: Counter[str] = Counter()
    try:
        for line in process.stdout:
            if found := REASON.match(line):
                yield {"status": "wrong", "contender": f"ours, {backend}", "test": found[1], "reason": line.strip()}
            elif found := OUTCOME.search(line):
                outcome, test = found[1] or found[4], found[2] or found[3]
                counts[outcome.lower()] += 1
                if outcome in ("FAILED", "ERROR") or counts.total() % 25 == 0:  # the others show progress
                    yield {"contender": f"ours, {backend}", "test": test.strip(), "outcome": outcome.lower(), **counts}
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    if process.wait() not in (0, 1) or not counts:
        raise RuntimeError(f"pytest ended with {process.returncode} after {dict(counts)}")
    yield {"contender": f"ours, {backend}", **counts}
