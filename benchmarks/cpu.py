"""CPU benchmark: contenders run alternately in one process, results are ratios of medians against the fastest.

    python -m benchmarks.cpu --threads 2 --repeats 40 --csv benchmarks/results/cpu.csv
    python -m benchmarks.cpu --rows 4,5 --compiled     also torch.compile and FlexAttention (slow to start)

Each row is checked against the eager formula before it is timed. "floor" is what the measured gemm peak and memory
bandwidth of the same process allow for the visible keys.
"""

import argparse
import csv
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from amuse_kernels import adaptive_fusion, p2c_attention
from amuse_kernels.dispatch import native_module

SHAPES = [  # (B, H, Lq, (Lp, ...), dialogue) of rows 1 to 5; row 6 is adaptive fusion
    (32, 8, 64, (128, 64), False),
    (64, 4, 32, (50, 16), False),
    (8, 8, 128, (256, 128), False),
    (2, 8, 512, (1024, 512), False),
    (1, 4, 24, (24, 24), True),
]
HEAD_DIM = 64
FUSION = (4096, 3, 256)
FIELDS = (
    "row",
    "shape",
    "mode",
    "threads",
    "ours_ms",
    "fastest",
    "fastest_ms",
    "ratio",
    "floor_ms",
    "gflops",
    "peak_gflops",
)


@dataclass
class Workload:
    shape: str
    leaves: list[Tensor]
    contenders: dict[str, Callable[[], Tensor]]  # "ours" and others, all with the same result
    flops: float  # of the forward
    bytes: float
    backward_flops: float
    tolerance: float = 2e-4
    extra: dict[str, str] = field(default_factory=dict)


def attention(index: int, normalization: str, compiled: bool) -> Workload:
    """Rows 1 to 5: key masks ragged between half and full length, or a dialogue with groups and the causal flag."""
    batch, heads, queries, lengths, dialogue = SHAPES[index]
    randn = [torch.randn(batch, heads, n, HEAD_DIM, requires_grad=True) for n in (queries, *lengths, *lengths)]
    query, keys, values = randn[0], randn[1 : 1 + len(lengths)], randn[1 + len(lengths) :]
    gates = torch.rand(len(lengths)).add(0.1).requires_grad_()
    scale = HEAD_DIM**-0.5
    if dialogue:
        groups = torch.randint(0, 3, (batch, queries))
        options = {"query_groups": groups, "key_groups": [groups] * 2, "relations": ["same", "any"], "causal": True}
    else:
        kept = [torch.randint(n // 2, n + 1, (batch,)) for n in lengths]
        options = {"key_masks": [torch.arange(n) < k[:, None] for n, k in zip(lengths, kept, strict=True)]}

    def masks() -> list[Tensor]:
        """What a user of the contenders has to build in every call."""
        if not dialogue:
            return [mask[:, None, None] for mask in options["key_masks"]]
        causal = torch.ones(queries, queries, dtype=torch.bool).tril()
        return [causal & (groups[:, None, :, None] == groups[:, None, None]), causal[None, None]]

    def eager() -> Tensor:
        scores = [
            (scale * query @ key.mT).masked_fill(~mask, -torch.inf) for key, mask in zip(keys, masks(), strict=True)
        ]
        if normalization == "joint":
            scores = [score + gate.log() for score, gate in zip(scores, gates, strict=True)]
            weights = torch.cat(scores, -1).softmax(-1).split(lengths, -1)
        else:
            weights = [gate * score.softmax(-1) for score, gate in zip(scores, gates, strict=True)]
        return sum(weight @ value for weight, value in zip(weights, values, strict=True))

    def sdpa_per_stream() -> Tensor:
        streams = zip(gates, keys, values, masks(), strict=True)
        return sum(g * F.scaled_dot_product_attention(query, k, v, attn_mask=m) for g, k, v, m in streams)

    def sdpa_concatenated() -> Tensor:
        bias = [
            torch.where(mask, gate.log(), -torch.inf).expand(batch, 1, queries if dialogue else 1, -1)
            for mask, gate in zip(masks(), gates, strict=True)
        ]
        key, value = torch.cat(keys, 2), torch.cat(values, 2)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=torch.cat(bias, -1))

    def ours() -> Tensor:
        return p2c_attention(query, keys, values, gates=gates, normalization=normalization, backend="cpu", **options)

    contenders = {"ours": ours, "eager": eager}
    if normalization == "joint":
        contenders["sdpa concatenated"] = sdpa_concatenated
    else:
        contenders["sdpa per stream"] = sdpa_per_stream
    if compiled:
        contenders["compiled eager"] = torch.compile(eager)
        if normalization == "per_source" and not dialogue:
            contenders["flex"] = _flex(query, keys, values, gates, options["key_masks"])

    visible = sum(float(mask.expand(batch, 1, queries, -1).sum()) for mask in masks())
    used = sum(float(mask.any(-2).sum()) for mask in masks())
    flops = 4 * heads * HEAD_DIM * visible
    moved = 4 * HEAD_DIM * heads * (2 * batch * queries + 2 * used)
    shape = f"B{batch} H{heads} Lq{queries} Lp{'+'.join(map(str, lengths))} {normalization}"
    return Workload(shape, [query, *keys, *values, gates], contenders, flops, moved, 2.5 * flops)


def _flex(query, keys, values, gates, key_masks) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    flex = torch.compile(flex_attention)
    batch, queries = query.shape[0], query.shape[2]

    def stream(key, value, mask):
        block_mask = create_block_mask(lambda b, h, i, j: mask[b, j], batch, None, queries, key.shape[2], device="cpu")
        return flex(query, key, value, block_mask=block_mask)

    streams = list(zip(gates, keys, values, key_masks, strict=True))
    return lambda: sum(gate * stream(key, value, mask) for gate, key, value, mask in streams)


def fusion(compiled: bool) -> Workload:
    """Row 6: adaptive fusion with a learned gate."""
    rows, modalities, width = FUSION
    descriptors = torch.randn(rows, modalities, width, requires_grad=True)
    weight = (torch.randn(modalities * (modalities - 1), 2, width) * 0.05).requires_grad_()
    bias = torch.zeros(modalities * (modalities - 1), requires_grad=True)

    def eager() -> Tensor:
        outputs, pair = [], 0
        for m in range(modalities):
            mixed = 0
            for n in range(modalities):
                if n == m:
                    continue
                f_m, f_n = descriptors[:, m], descriptors[:, n]
                alpha = torch.sigmoid(f_m @ weight[pair, 0] + f_n @ weight[pair, 1] + bias[pair])[:, None]
                mixed = mixed + alpha * f_n + (1 - alpha) * f_m
                pair += 1
            outputs.append(mixed / modalities)
        return torch.stack(outputs, 1)

    def ours() -> Tensor:
        return adaptive_fusion(descriptors, pair_weight=weight, pair_bias=bias, backend="cpu")[0]

    contenders = {"ours": ours, "eager": eager}
    if compiled:
        contenders["compiled eager"] = torch.compile(eager)
    flops = 10.0 * rows * modalities * modalities * width
    moved = 8.0 * rows * modalities * width
    return Workload(
        f"fusion N{rows} M{modalities} d{width}", [descriptors, weight, bias], contenders, flops, moved, 2 * flops
    )


def gradients(work: Workload, run: Callable[[], Tensor], upstream: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(run(), work.leaves, upstream)


def check(work: Workload) -> Tensor:
    """Every contender gives the output and the gradients of the eager formula. Returns the upstream gradient used."""
    expected = work.contenders["eager"]()
    upstream = torch.randn_like(expected)
    wanted = [expected, *gradients(work, work.contenders["eager"], upstream)]
    for name, run in work.contenders.items():
        for got, want in zip([run(), *gradients(work, run, upstream)], wanted, strict=True):
            error = float((got - want).detach().abs().max() / want.detach().abs().max())
            if not error <= work.tolerance:
                raise AssertionError(f"{work.shape}: {name} is off by {error:.2g}")
    return upstream


def alternate(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, run in turn."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def machine_peaks() -> tuple[float, float]:
    """Best measured fp32 gemm FLOP/s and bytes/s of a copy that does not fit into a cache."""
    a, large, target = torch.randn(1024, 1024), torch.randn(2**24), torch.empty(2**24)

    def best(run: Callable[[], object]) -> float:
        times = []
        for _ in range(15):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return min(times)

    return 2 * 1024**3 / best(lambda: a @ a), 2 * large.nbytes / best(lambda: target.copy_(large))


def measure(row: int, work: Workload, repeats: int, peak: float, bandwidth: float) -> list[dict[str, object]]:
    upstream = check(work)

    def forward(run: Callable[[], Tensor]) -> Callable[[], object]:
        def without_grad() -> None:
            with torch.no_grad():
                run()

        return without_grad

    def both(run: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: gradients(work, run, upstream)

    records = []
    for mode, wrap, flops, moved in (
        ("forward", forward, work.flops, work.bytes),
        ("forward+backward", both, work.flops + work.backward_flops, 3 * work.bytes),
    ):
        medians = alternate({name: wrap(run) for name, run in work.contenders.items()}, repeats)
        ours = medians.pop("ours")
        fastest = min(medians, key=lambda name: medians[name])
        values = (row, work.shape, mode, torch.get_num_threads(), f"{ours * 1e3:.4f}", fastest)
        timed = (f"{medians[fastest] * 1e3:.4f}", f"{medians[fastest] / ours:.2f}")
        floor = max(flops / peak, moved / bandwidth)
        rates = (f"{floor * 1e3:.4f}", f"{flops / ours / 1e9:.1f}", f"{peak / 1e9:.1f}")
        record = dict(zip(FIELDS, (*values, *timed, *rates), strict=True))
        print("  ".join(f"{name} {value}" for name, value in record.items()), flush=True)
        records.append(record)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,2,3,4,5,6", help="of issue 3's table; 6 is adaptive fusion")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--normalization", choices=("per_source", "joint"), default="per_source")
    parser.add_argument("--compiled", action="store_true", help="also contenders that compile for long")
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    peak, bandwidth = machine_peaks()
    module = native_module()
    if module is None:
        parser.error("the native library is not built; `python -m amuse_kernels.info` says why")
    conditions = {"machine": platform.machine(), "isa": module.build_info()["isa"], "torch": torch.__version__}
    conditions |= {"python": platform.python_version(), "gbytes_per_s": f"{bandwidth / 1e9:.1f}"}
    print(conditions)
    records = []
    for row in map(int, arguments.rows.split(",")):
        work = (
            attention(row - 1, arguments.normalization, arguments.compiled) if row < 6 else fusion(arguments.compiled)
        )
        records += measure(row, work, arguments.repeats * (10 if row == 5 else 1), peak, bandwidth)
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*FIELDS, *conditions])
            writer.writeheader()
            writer.writerows(record | conditions for record in records)


if __name__ == "__main__":
    main()
