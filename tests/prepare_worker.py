"""Run by tests/test_prepare.py: a preparation that is killed again and again, and resumed.

    python -m tests.prepare_worker SOURCE OUT KILLS REFERENCE

A fork costs nothing, where a new process would import torch for seconds. Prints the number of deaths.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from amuse.media.extract import Options
from amuse.media.prepare import prepare
from amuse.media.sources import folder_source


def run(source: Path, out: Path, workers: int) -> None:
    prepare(folder_source(source), out, Options(), shard_size=3, workers=workers, progress=False)


def shards(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("shards/*.safetensors"))


def killed(source: Path, out: Path, workers: int, after: float | None) -> bool:
    """Prepares in a child, which gets SIGKILL `after` so many seconds; whether that was before its end."""
    child = os.fork()
    if child == 0:
        run(source, out, workers)
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"a resumed preparation failed with {os.WEXITSTATUS(status)}")
    return os.WIFSIGNALED(status)


def main(source: Path, out: Path, kills: int, reference: Path) -> None:
    started = time.perf_counter()
    killed(source, out, 1, None)
    duration = time.perf_counter() - started
    shutil.rmtree(out)
    moments = random.Random(0)
    deaths = attempts = 0
    while deaths < kills and attempts < 4 * kills:
        attempts += 1
        workers = 1 + attempts % 2
        # two workers import torch first, which takes seconds
        deaths += killed(source, out, workers, moments.uniform(0, duration / 2 if workers == 1 else duration + 3))
        for name in shards(out):
            assert (out / "shards" / name).read_bytes() == (reference / "shards" / name).read_bytes(), name
        if shards(out) == shards(reference):  # too late: from the beginning
            shutil.rmtree(out)
    killed(source, out, 1, None)
    print(deaths)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
