"""Attention and fusion compared with everything else that is installed: checked against fp64, then timed.

A contender that is wrong has no times. wall_ms is a call from Python, graph_ms the same call inside a CUDA graph;
fraction_of_roofline is against gemm and copy measured on the same GPU, counting visible pairs and rows only.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from amuse_kernels import adaptive_fusion, p2c_attention
from benchmarks import workloads
from benchmarks.gpu.contenders import attention_contenders
from benchmarks.gpu.device import Run
from benchmarks.gpu.journal import Record, reason_of
from benchmarks.gpu.stage import Context, Item
from benchmarks.workloads import Attention, Workload

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
# AMuSE's: utterances of a batch at once, text asking audio and video; (batch, heads, queries, keys, dialogue)
UTTERANCES = {"U 160": (160, 4, 24, (60, 16), False), "U 512": (512, 4, 24, (60, 16), False)}
# the most telling first, since the time is limited
PLAN = (
    *((name, head_dim, dtype) for name in UTTERANCES for head_dim in (64, 32) for dtype in ("bf16", "fp32")),
    *((name, 64, "bf16") for name in ("dialogues", "1", "4", "8k")),
    ("U 160", 64, "fp16"),
)
TINY = (2, 2, 6, (6, 6))
EACH = 0.1  # seconds that a time takes


def items(context: Context) -> Iterator[Item]:
    suite = Rivals(context)
    yield Item("peaks", suite.measure_peaks)
    for shape, head_dim, dtype in PLAN:
        for normalization in ("per_source", "joint"):
            if context.device.dry and (shape not in ("U 160", "dialogues") or head_dim != 64):
                continue
            name = f"attention {shape} D{head_dim} {normalization} {dtype}"
            yield Item(name, partial(suite.attention, shape, head_dim, normalization, dtype))
    for dtype in DTYPES:
        yield Item(f"fusion {dtype}", partial(suite.fusion, dtype))


class Rivals:
    """State that the items share: the device, and its measured peaks."""

    def __init__(self, context: Context) -> None:
        self.device, self.compiled = context.device, not context.device.dry
        self.flops: dict[torch.dtype, float] = {}
        self.bandwidth = 0.0

    def measure_peaks(self) -> Iterator[Record]:
        self.flops, self.bandwidth = self.device.peaks([*DTYPES.values()], 2 * EACH)
        tflops = {name: self.flops[dtype] / 1e12 for name, dtype in DTYPES.items()}
        yield {"gemm_tflops": tflops, "copy_gbytes_per_s": self.bandwidth / 1e9}

    def attention(self, shape: str, head_dim: int, normalization: str, dtype: str) -> Iterator[Record]:
        torch.manual_seed(0)
        sizes = (UTTERANCES | workloads.SHAPES)[shape]
        if self.device.dry:
            sizes = (*TINY, sizes[4])
        case = Attention.draw(sizes, normalization, self.device.device, DTYPES[dtype], head_dim)
        contenders, forward_only = attention_contenders(case, self.compiled and shape != "8k")
        flops, moved = case.flops_and_bytes()
        work = Workload(shape, case.leaves, contenders, flops, moved, forward_only)
        yield from self.measure(work, dtype, exact_attention(case))

    def fusion(self, dtype: str) -> Iterator[Record]:
        torch.manual_seed(0)
        kind = {"device": self.device.device, "dtype": DTYPES[dtype]}
        sizes = (9, 3, 8) if self.device.dry else None
        work = workloads.fusion(self.compiled, backend=None, sizes=sizes, **kind)
        yield from self.measure(work, dtype, exact_fusion(work))

    def measure(self, work: Workload, dtype: str, reference: Callable[..., list[Tensor]]) -> Iterator[Record]:
        """Checks every contender against the formula in fp64, then times those that passed."""
        expected = work.contenders["eager"]()
        upstream = torch.randn_like(expected)
        exact = reference(lambda out: upstream.to(out.dtype))
        low = [expected.detach(), *work.gradients("eager", upstream)]
        passed = []
        for name in work.contenders:
            if refused := self.refused(work, name, upstream, exact, low):
                yield refused
            else:
                passed.append(name)
        del exact, low, expected
        for name in passed:
            try:
                yield from self.times(work, name, dtype, upstream)
            except Exception as error:  # out of memory, or what a library raises: the next contender may run
                yield {"status": "failed", "contender": name, "reason": reason_of(error)}
                if self.device.is_lost():
                    raise

    def times(self, work: Workload, name: str, dtype: str, upstream: Tensor) -> Iterator[Record]:
        run = work.contenders[name]

        def forward() -> object:
            with torch.no_grad():
                return run()

        yield self.record(work, name, "forward", dtype, forward, 1.0, 1.0)
        if name in work.forward_only:
            return
        backward = partial(torch.autograd.grad, run(), work.leaves, upstream, retain_graph=True)
        yield self.record(work, name, "backward", dtype, backward, 2.5, 2.0, graph=False)
        del backward
        yield self.record(work, name, "forward+backward", dtype, lambda: work.gradients(name, upstream), 3.5, 3.0)

    def refused(
        self, work: Workload, name: str, upstream: Tensor, exact: list[Tensor], low: list[Tensor]
    ) -> Record | None:
        """None for ours within the error budget of docs/numerics.md and others within some roundings."""
        try:
            with torch.set_grad_enabled(name not in work.forward_only):
                found = [work.contenders[name]().detach()]
            if name not in work.forward_only:
                found += work.gradients(name, upstream)
        except Exception as error:
            if self.device.is_lost():
                raise
            return {"status": "failed", "contender": name, "reason": reason_of(error)}
        for index, (got, want, eager) in enumerate(zip(found, exact, low, strict=False)):
            error = float((got.double() - want).abs().max())
            largest = float(want.abs().max())
            budget = 2 * float((eager.double() - want).abs().max()) + 1e-5 * largest
            if not name.startswith("ours"):  # others round gates and sums as they like
                budget = max(budget, 16 * torch.finfo(work.leaves[0].dtype).eps * largest)
            if not error <= budget:
                what = "output" if index == 0 else f"gradient {index - 1}"
                reason = f"{what}: error {error:.3g} above the budget {budget:.3g}"
                return {"status": "wrong", "contender": name, "reason": reason}
        return None

    def record(
        self,
        work: Workload,
        contender: str,
        mode: str,
        dtype: str,
        run: Run,
        flops_factor: float,
        bytes_factor: float,
        graph: bool = True,
    ) -> Record:
        """Times of one mode, whose work is a multiple of the forward's."""
        flops, moved = flops_factor * work.flops, bytes_factor * work.bytes
        wall, replay, reason = self.device.wall(run, EACH), None, None
        if graph:
            try:
                replay = self.device.graph(run, EACH)
            except Exception as error:  # not capturable
                reason = reason_of(error)
                if self.device.is_lost():
                    raise
        best = replay or wall
        # the peaks' item may have run in a process that is gone
        roofline = max(flops / self.flops[DTYPES[dtype]], moved / self.bandwidth) if self.flops else 0.0
        return {
            "contender": contender,
            "mode": mode,
            "wall_ms": 1e3 * wall,
            "graph_ms": None if replay is None else 1e3 * replay,
            "tflops": flops / best / 1e12 if flops else None,
            "gbytes_per_s": moved / best / 1e9 if moved else None,
            "fraction_of_roofline": roofline / best if roofline else None,
            "peak_mb": self.device.peak_bytes(run) / 2**20,
            "no_graph": reason,
        }


def exact_attention(case: Attention, limit: int = 2**30) -> Callable[[Callable[[Tensor], Tensor]], list[Tensor]]:
    """Output and gradients in fp64; a sample and a head at a time where the weights of all take over `limit` bytes."""
    batch, heads, queries, _ = case.query.shape
    whole = 8 * batch * heads * queries * sum(key.shape[2] for key in case.keys) < limit
    parts = [(slice(None), slice(None))]
    if not whole:
        parts = [(slice(b, b + 1), slice(h, h + 1)) for b in range(batch) for h in range(heads)]
    options = {name: value for name, value in case.options.items() if name != "gates"}
    sources = len(case.keys)

    def of_samples(value: Any, samples: slice) -> Any:
        if isinstance(value, list):
            return [of_samples(entry, samples) for entry in value]
        return value[samples] if isinstance(value, Tensor) else value

    def reference(upstream: Callable[[Tensor], Tensor]) -> list[Tensor]:
        out = torch.empty_like(case.query, dtype=torch.float64)
        grads = [torch.zeros_like(leaf, dtype=torch.float64) for leaf in case.leaves]
        weight = upstream(out)
        gates = case.gates.detach().double().requires_grad_()
        for part in parts:
            rows = [leaf.detach()[part].double().requires_grad_() for leaf in case.leaves[:-1]]
            keys, values = rows[1 : 1 + sources], rows[1 + sources :]
            chosen = {name: of_samples(value, part[0]) for name, value in options.items()}
            piece = p2c_attention(rows[0], keys, values, gates=gates, backend="reference", **chosen)
            out[part] = piece.detach()
            *found, gate_grad = torch.autograd.grad(piece, [*rows, gates], weight[part])
            for grad, new in zip(grads, found, strict=False):
                grad[part] = new
            grads[-1] += gate_grad
        return [out, *grads]

    return reference


def exact_fusion(work: Workload) -> Callable[[Callable[[Tensor], Tensor]], list[Tensor]]:
    """Output and gradients in fp64."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in work.leaves]

    def reference(upstream: Callable[[Tensor], Tensor]) -> list[Tensor]:
        descriptors, weight, bias = leaves
        out = adaptive_fusion(descriptors, pair_weight=weight, pair_bias=bias, backend="reference")[0]
        return [out.detach(), *torch.autograd.grad(out, leaves, upstream(out.detach()))]

    return reference
