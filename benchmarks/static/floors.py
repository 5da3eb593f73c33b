"""Lower bounds from the hardware's published figures: time, launches and bytes of a shape, next to SDPA per stream.

python -m benchmarks.static.floors      writes the table of docs/gpu_tables.md

Nothing here is measured. A floor is the larger of bytes over bandwidth and FLOPs over tensor peak, each row of the
inputs and outputs moved once, all keys visible, in 16 bits; launches, latencies and caches are not in it.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.pages import rewrite
from benchmarks.workloads import FUSION, HEAD_DIM, SHAPES, fusion

DOCS = Path(__file__).parents[2] / "docs" / "gpu_tables.md"
COMMAND = "python -m benchmarks.static.floors"
BYTES = 2  # per 16-bit number


class Chip(NamedTuple):
    """The vendor's figures: bytes/s of memory, dense 16-bit FLOP/s with fp32 accumulation."""

    bandwidth: float
    flops: float


CHIPS = {
    "A100 80 GB SXM": Chip(2.039e12, 312e12),
    "H100 SXM": Chip(3.35e12, 989e12),
    "B200": Chip(8.0e12, 2250e12),
    "RTX 4090": Chip(1.008e12, 165e12),
}


class Work(NamedTuple):
    """Launches, bytes and FLOPs of a forward pass; `after` are bytes of launches that cannot overlap with the FLOPs."""

    launches: int
    bytes: float
    flops: float = 0.0
    after: float = 0.0

    def floor(self, chip: Chip) -> float:
        return max((self.bytes - self.after) / chip.bandwidth, self.flops / chip.flops) + self.after / chip.bandwidth


def fused(shape: tuple) -> Work:
    """p2c_attention: one launch reads the queries and every source once."""
    batch, heads, queries, lengths, _ = shape
    row = BYTES * HEAD_DIM * batch * heads
    return Work(1, row * (2 * queries + 2 * sum(lengths)), 4.0 * HEAD_DIM * batch * heads * queries * sum(lengths))


def sdpa_per_stream(shape: tuple) -> Work:
    """SDPA for each source, outputs times gates, added up: every source reads the queries and writes an output."""
    batch, heads, queries, lengths, _ = shape
    row, sources = BYTES * HEAD_DIM * batch * heads, len(lengths)
    attention = row * (sources * 2 * queries + 2 * sum(lengths))
    gates_and_sums = row * queries * (2 * sources + 3 * (sources - 1))
    return Work(3 * sources - 1, attention + gates_and_sums, fused(shape).flops, gates_and_sums)


class Counted(TorchDispatchMode):
    """Counts the operators that are not views, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.bytes = 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if not function.is_view:
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
            self.launches += 1
            self.bytes += sum(x.nbytes for x in tensors)
        return out


def eager_fusion() -> Work:
    """The loop over pairs of `benchmarks.workloads.fusion`, counted as PyTorch runs it."""
    work = fusion(backend="reference", device="meta", dtype=torch.bfloat16)
    with torch.no_grad(), Counted() as counted:
        work.contenders["eager"]()
    return Work(counted.launches, float(counted.bytes))


def floors() -> str:
    """A Markdown table: ours / SDPA per stream and PyTorch's loop over pairs."""
    lines = [
        "| forward, 16 bits | launches | MB moved | " + " | ".join(f"{name}, µs" for name in CHIPS) + " |",
        "|---|---|---|" + "---|" * len(CHIPS),
    ]
    rows = {
        f"attention {describe(shape)}": (fused(shape), sdpa_per_stream(shape))
        for shape in SHAPES.values()
        if not shape[4]
    }
    fused_fusion = Work(1, BYTES * 2.0 * math.prod(FUSION))
    rows[f"fusion {' x '.join(map(str, FUSION))}"] = (fused_fusion, eager_fusion())
    for name, (ours, theirs) in rows.items():
        times = [f"{1e6 * ours.floor(chip):.1f} / {1e6 * theirs.floor(chip):.1f}" for chip in CHIPS.values()]
        moved = f"{ours.bytes / 1e6:.1f} / {theirs.bytes / 1e6:.1f}"
        lines.append(f"| {name} | {ours.launches} / {theirs.launches} | {moved} | {' | '.join(times)} |")
    return "\n".join(lines)


def describe(shape: tuple) -> str:
    batch, heads, queries, lengths, _ = shape
    return f"B{batch} H{heads} Lq{queries} Lp{'+'.join(map(str, lengths))}"


def render() -> str:
    return (
        "Ours / what PyTorch needs for the same: SDPA per source with gates and sums, and the loop over pairs of\n"
        f"modalities.\n\n{floors()}"
    )


if __name__ == "__main__":
    rewrite(DOCS, COMMAND, render())
