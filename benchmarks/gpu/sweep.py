"""The first minutes on a GPU, in one command:

    python -m benchmarks.gpu.sweep --minutes 7 --out DIR
    python -m benchmarks.gpu.sweep --only training,rivals --out DIR
    python -m benchmarks.gpu.sweep --dry-run --out DIR     the same code without a GPU; measures nothing

Stages, in this order: smoke (what is installed; one call of every backend, dtype and head dim), cases (calls of several
tiles with every option, against fp64), promises (the tests' promises on the GPU), training (steps of AMuSE with the
profiler's tables), rivals (attention and fusion against what else is installed), sanitizer (compute-sanitizer and ncu),
tuning (launch configurations).

DIR/records.jsonl has every result as soon as it is made. Each stage is a process of its own, which is started again
behind an item that crashed it, hung, or lost the GPU; a table is printed last and kept in DIR/table.txt. The exit code
is 1 where a kernel of ours failed or was wrong.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from amuse.files import write_text
from benchmarks.gpu.journal import Journal, read
from benchmarks.gpu.table import has_failed, table

# name -> share of the time after which it is over, seconds without a record after which it is taken for hung
PLAN: dict[str, tuple[float, float]] = {
    "smoke": (0.18, 60),
    "cases": (0.36, 60),
    "promises": (0.55, 150),
    "training": (0.68, 90),
    "rivals": (0.84, 90),
    "sanitizer": (0.92, 90),
    "tuning": (1.0, 60),
}
GRACE = 10.0  # seconds that a stage has to end what it is doing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7, help="nothing new is started after this time")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--only", default=",".join(PLAN), help=f"some of {', '.join(PLAN)}")
    parser.add_argument("--triton-cache", type=Path, help="kernels that benchmarks.gpu.triton_cache compiled")
    parser.add_argument("--dry-run", action="store_true", help="no GPU: tiny inputs on the CPU, made-up times")
    parser.add_argument("--stage", choices=PLAN, help=argparse.SUPPRESS)  # the process of one stage
    parser.add_argument("--skip", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        from benchmarks.gpu.stages import run_stage

        return run_stage(
            options.stage, options.out, options.until, options.began, skip=options.skip, dry=options.dry_run
        )
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(PLAN):
        parser.error(f"--only: expected some of {', '.join(PLAN)}, got {unknown.pop()!r}")
    if options.triton_cache:
        from benchmarks.gpu.triton_cache import adopt

        os.environ["TRITON_CACHE_DIR"] = str(adopt(options.triton_cache))  # of the stages' processes
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.dry_run and not _has_gpu():
        parser.error("no NVIDIA GPU that this PyTorch can use; --dry-run runs the same code without one")

    def command(stage: str, until: float, began: float) -> list[str]:
        arguments = ["--stage", stage, "--out", str(options.out), "--until", str(until), "--began", str(began)]
        return [sys.executable, "-m", "benchmarks.gpu.sweep", *arguments, *["--dry-run"][: options.dry_run]]

    return sweep([name for name in PLAN if name in chosen], options.out, 60 * options.minutes, command)


def sweep(
    stages: Sequence[str], folder: Path, seconds: float, command: Callable[[str, float, float], list[str]]
) -> int:
    """Runs the stages, each in processes of its own, and prints the table, whatever happens.

    Args:
        stages: Names of `PLAN`, in order.
        folder: Where records.jsonl and table.txt go.
        seconds: Of all stages together.
        command: (stage, until, began) -> what starts the stage's process; `--skip N` is appended.
    """
    began = time.time()
    path = folder / "records.jsonl"
    path.unlink(missing_ok=True)
    try:
        with _interrupted_by_signals():
            for stage in stages:
                share, patience = PLAN[stage]
                until = began + seconds * share
                print(f"{time.time() - began:5.0f} s  {stage}", flush=True)
                supervise(Journal(path, stage, began), command(stage, until, began), until + GRACE, patience)
    except KeyboardInterrupt:
        Journal(path, "sweep", began).write("failed", "sweep", reason="interrupted")
    records = read(path)
    text = table(records)
    write_text(text + "\n", folder / "table.txt")
    print(text)
    return int(has_failed(records))


def supervise(journal: Journal, command: list[str], last: float, patience: float) -> None:
    """Runs a stage to its end, again behind the item that ended its process each time."""
    skip = 0
    while True:
        with tempfile.TemporaryFile() as output:
            code, killed = _watched([*command, "--skip", str(skip)], output, journal.path, last, patience)
            output.seek(max(0, output.tell() - 2000))
            printed = output.read().decode(errors="replace")
        if code == 0:
            return
        own = [record for record in read(journal.path) if record["stage"] == journal.stage]
        started = [record["item"] for record in own if record["status"] == "started"]
        if not own or own[-1]["status"] != "failed":
            item = started[-1] if len(started) > skip else journal.stage
            journal.write("failed", item, reason=killed or f"the process ended with {code}", output=printed)
        if len(started) == skip or time.time() > last - GRACE:
            return
        skip = len(started)


def _watched(command: list[str], output: IO[bytes], path: Path, last: float, patience: float) -> tuple[int, str]:
    """Runs a process while the journal grows and time is left; its exit code, and why it was killed."""
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    killed = ""
    try:
        size, grown = -1, time.time()
        while process.poll() is None:
            time.sleep(0.1)
            now = path.stat().st_size if path.exists() else 0
            if now != size:
                size, grown = now, time.time()
            if time.time() > last:
                killed = "killed: the stage's time is over"
            elif time.time() - grown > patience:
                killed = f"killed: no record for {patience:.0f} s"
            if killed:
                break
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    output.seek(0, os.SEEK_END)
    return process.returncode, killed


@contextlib.contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Inside, SIGTERM, which `timeout` sends, is an interrupt like Ctrl+C."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
