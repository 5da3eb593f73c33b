"""Workloads checked, then timed: a record for each contender and mode, or the reason why there is none."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from amuse.config import Config
from amuse_kernels import adaptive_fusion, p2c_attention
from benchmarks import workloads
from benchmarks.gpu.contenders import attention_contenders
from benchmarks.gpu.device import Gpu, Nothing, Run
from benchmarks.workloads import Attention, Workload

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SHAPES = workloads.SHAPES | {
    "batch": (256, 8, 64, (128, 64), False),  # of utterances
    "dialogues": (16, 4, 24, (24, 24), True),
    "8k": (1, 16, 8192, (8192, 2048), False),
}
# the most telling first, since the time is limited
ORDER = ("1", "batch", "4", "8k", "2", "3", "dialogues", "5", "long")
TINY = (2, 2, 9, (7, 5), False)


@dataclass
class Results:
    """The measurements, and those that failed, with reasons."""

    records: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)  # wrong results: these have no times
    failed: list[dict[str, str]] = field(default_factory=list)  # could not run, be captured, or were out of time


class Suite:
    """Runs workloads on a device until `seconds` are over."""

    def __init__(self, device: Gpu | Nothing, seconds: float, dtypes: list[str], compiled: bool) -> None:
        self.device, self.dtypes, self.compiled = device, dtypes, compiled
        self.started, self.seconds = time.monotonic(), seconds
        self.each = 0.05 if seconds < 300 else 0.15  # for a time
        self.results = Results()
        self.flops, self.bandwidth = device.peaks([DTYPES[name] for name in dtypes], 2 * self.each)

    def run(self, only: list[str]) -> Results:
        for name, build in self.plan(only):
            if time.monotonic() - self.started > self.seconds:
                self.results.failed.append({"workload": name, "contender": "all", "reason": "out of time"})
                continue
            print(name, flush=True)
            try:
                build()
            except (RuntimeError, ValueError, TypeError, NotImplementedError, ImportError) as error:
                self.fail(name, "all", error)
            if not self.device.dry:
                torch.cuda.empty_cache()
        return self.results

    def plan(self, only: list[str]) -> Iterator[tuple[str, Callable[[], None]]]:
        wanted = [shape for shape in ORDER if shape in only]
        for dtype in self.dtypes:
            for normalization in ("per_source", "joint"):
                for shape in wanted:
                    name = f"attention {shape} {normalization} {dtype}"
                    yield name, lambda n=name, s=shape, k=normalization, d=dtype: self.attention(n, s, k, d)
            if "fusion" in only:
                yield f"fusion {dtype}", lambda n=f"fusion {dtype}", d=dtype: self.fusion(n, d)
        if "step" in only:
            yield "training step", lambda: self.step("training step")

    def attention(self, name: str, shape: str, normalization: str, dtype: str) -> None:
        torch.manual_seed(0)
        sizes = (*TINY[:4], SHAPES[shape][4]) if self.device.dry else SHAPES[shape]
        if self.device.dry and sizes[4]:
            sizes = (2, 2, 6, (6, 6), True)
        case = Attention.draw(sizes, normalization, self.device.device, DTYPES[dtype])
        contenders, forward_only = attention_contenders(case, self.compiled and shape != "8k")
        flops, moved = case.flops_and_bytes()
        work = Workload(name, case.leaves, contenders, flops, moved, forward_only)
        self.measure(work, dtype, exact_attention(case), describe(sizes))

    def fusion(self, name: str, dtype: str) -> None:
        torch.manual_seed(0)
        kind = {"device": self.device.device, "dtype": DTYPES[dtype]}
        work = workloads.fusion(self.compiled, backend=None, sizes=(9, 3, 8) if self.device.dry else None, **kind)
        work.name = name
        self.measure(work, dtype, exact_fusion(work), str(tuple(work.leaves[0].shape)))

    def step(self, name: str) -> None:
        tokens = {"text": (24, 384), "audio": (60, 64), "video": (16, 128)}
        config = workloads.trimodal_config()
        if self.device.dry:
            tokens, config = {"text": (3, 8), "audio": (2, 4)}, Config.load(None, ["model.d_model=32"])
        steps = workloads.training_steps(config, tokens, None, self.device.device)
        losses = []
        for step in steps.values():
            torch.manual_seed(1)
            losses.append(step())
        if not torch.allclose(losses[0], losses[1], rtol=1e-3, atol=1e-3):
            reason = f"first losses differ: {losses[0].item():.6f}, on the reference {losses[1].item():.6f}"
            self.results.refused.append({"workload": name, "contender": "ours", "reason": reason})
            return
        work = Workload(name, [], steps)
        for contender, step in steps.items():
            self.record(work, contender, "training step", "fp32", str(tokens), step, 0.0, 0.0, graph=False)

    def measure(self, work: Workload, dtype: str, reference: Callable[..., list[Tensor]], sizes: str) -> None:
        """Check every contender against the formula in fp64, then time those that passed."""
        expected = work.contenders["eager"]()
        upstream = torch.randn_like(expected)
        exact = reference(lambda out: upstream.to(out.dtype))
        low = [expected.detach(), *work.gradients("eager", upstream)]
        passed = [name for name in work.contenders if self.correct(work, name, upstream, exact, low)]
        del exact, low, expected
        for name in passed:
            run = work.contenders[name]

            def forward(run: Run = run) -> object:
                with torch.no_grad():
                    return run()

            def both(name: str = name) -> object:
                return work.gradients(name, upstream)

            self.record(work, name, "forward", dtype, sizes, forward, 1.0, 1.0)
            if name in work.forward_only:
                continue
            out = run()

            def backward(out: Tensor = out) -> object:
                return torch.autograd.grad(out, work.leaves, upstream, retain_graph=True)

            self.record(work, name, "backward", dtype, sizes, backward, 2.5, 2.0, graph=False)
            del out, backward
            self.record(work, name, "forward+backward", dtype, sizes, both, 3.5, 3.0)

    def correct(self, work: Workload, name: str, upstream: Tensor, exact: list[Tensor], low: list[Tensor]) -> bool:
        """Ours within the error budget of docs/numerics.md, others within some roundings; else listed as refused."""
        try:
            with torch.set_grad_enabled(name not in work.forward_only):
                found = [work.contenders[name]().detach()]
            if name not in work.forward_only:
                found += work.gradients(name, upstream)
        except (RuntimeError, ValueError, TypeError, NotImplementedError, ImportError) as error:
            self.fail(work.name, name, error)
            return False
        for index, (got, want, eager) in enumerate(zip(found, exact, low, strict=False)):
            error = float((got.double() - want).abs().max())
            largest = float(want.abs().max())
            budget = 2 * float((eager.double() - want).abs().max()) + 1e-5 * largest
            if not name.startswith("ours"):  # others round gates and sums as they like
                budget = max(budget, 16 * torch.finfo(work.leaves[0].dtype).eps * largest)
            if not error <= budget:
                what = "output" if index == 0 else f"gradient {index - 1}"
                reason = f"{what}: error {error:.3g} above the budget {budget:.3g}"
                self.results.refused.append({"workload": work.name, "contender": name, "reason": reason})
                return False
        return True

    def record(
        self,
        work: Workload,
        contender: str,
        mode: str,
        dtype: str,
        sizes: str,
        run: Run,
        flops_factor: float,
        bytes_factor: float,
        graph: bool = True,
    ) -> None:
        """Times of one mode, whose work is a multiple of the forward's."""
        flops, moved = flops_factor * work.flops, bytes_factor * work.bytes
        wall = self.device.wall(run, self.each)
        replay = None
        if graph:
            try:
                replay = self.device.graph(run, self.each)
            except RuntimeError as error:
                self.fail(work.name, f"{contender}, {mode}, in a CUDA graph", error)
        best = replay or wall
        floor = max(flops / self.flops[DTYPES[dtype]], moved / self.bandwidth)
        self.results.records.append(
            {
                "workload": work.name,
                "sizes": sizes,
                "dtype": dtype,
                "contender": contender,
                "mode": mode,
                "wall_ms": 1e3 * wall,
                "graph_ms": None if replay is None else 1e3 * replay,
                "tflops": flops / best / 1e12 if flops else None,
                "gbytes_per_s": moved / best / 1e9 if moved else None,
                "fraction_of_roofline": floor / best if floor else None,
                "peak_mb": self.device.peak_bytes(run) / 2**20,
            }
        )

    def fail(self, workload: str, contender: str, error: Exception) -> None:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        self.results.failed.append({"workload": workload, "contender": contender, "reason": reason})


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


def describe(sizes: tuple) -> str:
    batch, heads, queries, lengths, dialogue = sizes
    kind = ", dialogue" if dialogue else ""
    return f"B{batch} H{heads} Lq{queries} Lp{'+'.join(map(str, lengths))} D{workloads.HEAD_DIM}{kind}"
