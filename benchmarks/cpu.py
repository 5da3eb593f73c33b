"""CPU benchmark: contenders run alternately in one process; the result is the ratio of medians against the fastest.

    python -m benchmarks.cpu                           every workload, a few minutes
    python -m benchmarks.cpu --only 4,fusion --threads 1
    python -m benchmarks.cpu --compiled                also torch.compile and FlexAttention, which compile for minutes
    python -m benchmarks.cpu --csv benchmarks/results/cpu.csv && python -m benchmarks.plot benchmarks/results/cpu.csv

A CSV that is there keeps the rows of workloads that were not measured this time.

Every contender is checked against the eager formula before anything is timed. floor_ms is the least time that the
measured gemm peak and memory bandwidth of the same process allow for the visible keys; extra_mb is how far the
resident memory rises during a call, results included.
"""

import argparse
import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amuse.config import Config
from amuse.files import write_csv
from benchmarks import meld, workloads
from benchmarks.measure import CLOCKS, alternate, machine, machine_peaks, peak_extra_bytes
from benchmarks.packed_attention import packed_attention
from benchmarks.workloads import Workload

WORKLOADS = ("1", "2", "3", "4", "5", "long", "packed", "layer", "fusion", "step", "meld")
TRIMODAL = {"text": 24, "audio": 60, "video": 16}  # tokens of an utterance, at most
MELD_CONFIG = Path(__file__).parents[1] / "amuse" / "configs" / "meld.yaml"
FIELDS = ("workload", "mode", "contender", "median_ms", "times_ours", "extra_mb", "floor_ms", "percent_of_gemm_peak")


def measure(work: Workload, repeats: int, peaks: tuple[float, float], clock: str = "wall") -> list[dict[str, Any]]:
    """A record for every contender and mode."""
    upstream = work.check()

    def forward(name: str) -> Callable[[], object]:
        def without_grad() -> None:
            with torch.no_grad():
                work.contenders[name]()

        return without_grad

    def both(name: str) -> Callable[[], object]:
        return lambda: work.gradients(name, upstream)

    records = []
    for mode, wrap, flops, moved in (
        ("forward", forward, work.flops, work.bytes),
        ("forward+backward", both, 3.5 * work.flops, 3 * work.bytes),
    ):
        runs = {name: wrap(name) for name in work.contenders if mode == "forward" or name not in work.forward_only}
        floor = max(flops / peaks[0], moved / peaks[1])
        records += _records(work.name, mode, runs, repeats, clock, floor, flops / peaks[0])
    return records


def measure_step(
    name: str, steps: dict[str, Callable[[], Tensor]], repeats: int, clock: str = "wall"
) -> list[dict[str, Any]]:
    """Fast against reference; the first step of both, from the same weights and random numbers, gives one loss."""
    losses = {}
    for contender, step in steps.items():
        torch.manual_seed(1)
        losses[contender] = step()
    torch.testing.assert_close(losses["ours"], losses["reference"], rtol=1e-4, atol=1e-4)
    return _records(name, "training step", steps, repeats, clock)


def _records(
    name: str,
    mode: str,
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: str,
    floor: float = 0.0,
    gemm: float = 0.0,
) -> list[dict[str, Any]]:
    medians = alternate(runs, repeats, clock)
    records = []
    for contender, seconds in medians.items():
        extra = peak_extra_bytes(runs[contender])
        values = (
            *(name, mode, contender, f"{seconds * 1e3:.4f}", f"{seconds / medians['ours']:.2f}"),
            "" if extra is None else f"{extra / 2**20:.1f}",
            f"{floor * 1e3:.4f}" if floor else "",
            f"{100 * gemm / seconds:.0f}" if gemm else "",
        )
        records.append(dict(zip(FIELDS, values, strict=True)))
    others = [record for record in records if not record["contender"].startswith("ours")]
    fastest = min(others, key=lambda record: float(record["median_ms"]))
    print(f"{name}, {mode}: {fastest['times_ours']}x as fast as the fastest contender, {fastest['contender']}")
    for record in records:
        print("    " + "  ".join(f"{field} {record[field]}" for field in FIELDS[2:] if record[field]), flush=True)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(WORKLOADS), help=f"some of {', '.join(WORKLOADS)}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--normalization", choices=("per_source", "joint"), default="per_source")
    parser.add_argument("--compiled", action="store_true", help="also torch.compile and FlexAttention")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: CPU seconds, for a machine that is busy")
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if unknown := set(chosen) - set(WORKLOADS):
        parser.error(f"--only: expected some of {', '.join(WORKLOADS)}, got {unknown.pop()!r}")

    repeats, clock = arguments.repeats, arguments.clock
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    peaks = machine_peaks(clock)
    conditions = (
        machine() | {"clock": clock} | {"gflops": f"{peaks[0] / 1e9:.1f}", "gbytes_per_s": f"{peaks[1] / 1e9:.1f}"}
    )
    print("\n".join(f"{key}: {value}" for key, value in conditions.items()), flush=True)
    records = []
    for name in chosen:
        if name == "fusion":
            records += measure(workloads.fusion(arguments.compiled), repeats, peaks, clock)
        elif name == "packed":
            records += measure(packed_attention(), repeats, peaks, clock)
        elif name == "layer":
            records += measure(workloads.layer(), repeats, peaks, clock)
        elif name == "step":
            text = workloads.training_steps(Config.load(MELD_CONFIG, ["data.path=."]), {"text": (1, 1536)})
            records += measure_step("AMuSE, configs/meld.yaml", text, repeats, clock)
            tokens = {m: (length, meld.WIDTHS[m]) for m, length in TRIMODAL.items()}
            trimodal = workloads.training_steps(workloads.trimodal_config(), tokens)
            records += measure_step("AMuSE, three modalities", trimodal, max(repeats // 10, 2), clock)
        elif name == "meld":
            batches = [meld.batches()[2]]  # not the longest, nor the shortest
            meld.check(batches)
            steps = meld.passes(batches, arguments.compiled)
            records += measure_step("AMuSE, MELD's lengths", steps, max(repeats // 6, 2), clock)
            half = [meld.half_to_full(TRIMODAL)]
            records += measure_step("AMuSE, half to full lengths", meld.passes(half), max(repeats // 6, 2), clock)
        else:
            compiled = arguments.compiled and name != "long"
            work = workloads.attention(name, arguments.normalization, compiled)
            count = {"5": 10 * repeats, "long": 2}.get(name, repeats)
            records += measure(work, count, peaks, clock)
    if arguments.csv:
        save([record | conditions for record in records], arguments.csv)


def save(records: list[dict[str, Any]], target: Path) -> None:
    """Into a CSV, in place of what it holds about the same workloads."""
    target.parent.mkdir(parents=True, exist_ok=True)
    measured = {record["workload"] for record in records}
    kept = []
    if target.exists():
        with target.open(newline="") as file:
            kept = [record for record in csv.DictReader(file) if record["workload"] not in measured]
    columns = list(records[0])
    rows = sorted(kept + records, key=lambda record: record["workload"])
    write_csv([columns, *([row[name] for name in columns] for row in rows)], target)


if __name__ == "__main__":
    main()
