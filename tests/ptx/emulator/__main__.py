"""`python -m tests.ptx.emulator`: what the fixtures execute and move, counted by the emulator."""

from __future__ import annotations

import argparse

import torch

from .fixtures import cases
from .nvcc_kernels import nvcc
from .report import Report
from .vocabulary import PIPES

HELP = """bytes read, bytes written: requested by all threads / touched at least once, which is the algorithmic minimum.
sectors: 32-byte sectors moved / needed if every request were coalesced.
wavefronts: of shared memory / without bank conflicts."""


def rows(seqlen_q: int, seqlen_k: int, arch: int) -> list[tuple[str, Report]]:
    """Name and report of every fixture that can be compiled here."""
    problem = cases.Problem.random(torch.float16, seqlen_q, seqlen_k)
    launches = []
    if nvcc():
        launches.append(cases.nvcc_forward(problem, f"sm_{arch}")[0])
    try:
        import triton  # noqa: F401
    except ImportError:
        print("Triton is not installed: its fixtures are left out")
    else:
        launches += [cases.triton_forward(problem, arch)[0], *cases.triton_backward(problem, arch)[0]]
    return [(launch.name, launch.run()) for launch in launches]


def table(reports: list[tuple[str, Report]]) -> str:
    """The counters, one column per kernel."""
    lines: list[list[str]] = [["", *(name for name, _ in reports)]]
    counters = [report.counters for _, report in reports]

    def add(label: str, *names: str) -> None:
        lines.append([label, *(" / ".join(f"{each[name]:,}" for name in names) for each in counters)])

    add("warp instructions", "instructions")
    for pipe in PIPES:
        if any(each[f"instructions_{pipe}"] for each in counters):
            add(f"  {pipe}", f"instructions_{pipe}")
    add("tensor operations", "tensor_flops")
    add("global bytes read", "global_bytes_read", "global_bytes_read_distinct")
    add("global bytes written", "global_bytes_written", "global_bytes_written_distinct")
    add("global sectors", "global_sectors", "global_sectors_ideal")
    add("shared wavefronts", "shared_wavefronts", "shared_wavefronts_ideal")
    add("bank conflicts", "bank_conflicts")
    add("barriers", "barriers")
    lines.append(["findings", *(str(len(report.findings)) for _, report in reports)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=False))]
        )
        for line in lines
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.ptx.emulator", description=__doc__, epilog=HELP)
    parser.add_argument("--seqlen-q", type=int, default=128)
    parser.add_argument("--seqlen-k", type=int, default=128)
    parser.add_argument("--arch", type=int, default=80, help="compute capability: 80, 86, 89, 90, 120")
    options = parser.parse_args()
    print(
        f"attention, {cases.HEADS} slices, {options.seqlen_q} queries, {options.seqlen_k} keys, "
        f"head dim {cases.HEAD_DIM}, fp16, sm_{options.arch}"
    )
    print(table(rows(options.seqlen_q, options.seqlen_k, options.arch)))
    print(HELP)


if __name__ == "__main__":
    main()
