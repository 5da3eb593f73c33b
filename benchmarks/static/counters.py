"""Instructions and memory traffic of the kernels, counted by the PTX emulator, next to flash attention per source.

python -m benchmarks.static.counters      writes counters.csv and the tables of docs/gpu_tables.md

Nothing is counted before results are found within the error budget.
"""

import csv
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amuse.files import write_csv
from amuse_kernels import reference
from amuse_kernels.attention import cuda as attention_cuda
from amuse_kernels.attention.triton import plans as attention
from amuse_kernels.fusion import cuda as fusion_cuda
from amuse_kernels.fusion import triton as fusion
from amuse_kernels.launch import Launch
from benchmarks import performance
from benchmarks.pages import BACKENDS, rewrite
from benchmarks.static import compiled_cuda, compiled_triton, flash
from tests.ptx.emulator.report import Report
from tests.ptx.emulator.triton_kernels import launch_triton
from tests.ptx.emulator.vocabulary import PIPES
from tests.ptx.package import cuda_launches, triton_launches
from tests.ptx.package.attention_calls import AttentionCall
from tests.ptx.package.budget import assert_clean, within_budget

CSV = Path(__file__).with_name("counters.csv")
DOCS = Path(__file__).parents[2] / "docs" / "gpu_tables.md"
COMMAND = "python -m benchmarks.static.counters"
ARCH, DTYPE = 80, torch.float16
BATCH, HEADS, QUERIES, KEYS, HEAD_DIM = 4, 2, 64, (64, 64, 64), 64
FUSION = (64, 3, 256)  # rows, modalities, width

COUNTED = (
    *("global_bytes_read", "global_bytes_written", "global_sectors", "global_sectors_ideal"),
    *("shared_wavefronts", "shared_wavefronts_ideal", "instructions", *(f"instructions_{pipe}" for pipe in PIPES)),
)
COLUMNS = ("op", "backend", "launches", "least_bytes", *COUNTED, "compiler")
Row = dict[str, str]


class Backend(NamedTuple):
    """Where a backend's calls are, what runs them in the emulator, and who compiles them."""

    name: str
    attention: Any
    fusion: Any
    emulated: Callable[[], AbstractContextManager[list[Report]]]
    compiler: str


def backends() -> list[Backend]:
    """Those that can be emulated here: CUDA needs a library that was built with it, and nvcc for the PTX."""
    run = functools.partial(triton_launches.emulated, ARCH)
    found = [Backend("triton", attention, fusion, run, compiled_triton.compiler())]
    if cuda_launches.missing() is None:
        found.append(Backend("cuda", attention_cuda, fusion_cuda, cuda_launches.emulated, compiled_cuda.compiler()))
    return found


def count() -> Iterator[Row]:
    """A row an op and direction of every backend that can be emulated here."""
    for backend in backends():
        yield from count_attention(backend)
        for kind in ("scalar", "gate"):
            yield from count_fusion(backend, kind)
    yield from count_plain()


def count_attention(backend: Backend) -> Iterator[Row]:
    call = _attention_call()
    inputs = [call.inputs.query, *call.inputs.keys, *call.inputs.values]
    with backend.emulated() as reports:
        out, lse = backend.attention.p2c_attention_forward(call.inputs)
    yield _row("attention forward", backend.name, backend.compiler, reports, [*inputs, out, lse])
    with backend.emulated() as reports:
        query, keys, values, gates = backend.attention.p2c_attention_backward(
            call.grad_out, None, None, lse, call.inputs
        )
    call.assert_within_budget(out, lse, query, keys, values, gates)
    tensors = [*inputs, call.grad_out, lse, query, *keys, *values]
    yield _row("attention backward", backend.name, backend.compiler, reports, tensors)


def count_fusion(backend: Backend, kind: str) -> Iterator[Row]:
    rows, modalities, width = FUSION
    pairs, generator = modalities * (modalities - 1), torch.Generator().manual_seed(0)
    draw = functools.partial(torch.randn, generator=generator)
    descriptors, coefficients = draw(FUSION).to(DTYPE), (rows, modalities, modalities)
    if kind == "scalar":
        arguments = [descriptors, draw(coefficients).to(DTYPE), None, None]
    else:
        arguments = [descriptors, None, draw(pairs, 2, width), draw(pairs)]
    given = [argument for argument in arguments if argument is not None]
    upstream = [draw(FUSION).to(DTYPE), draw(coefficients).to(DTYPE)]
    with backend.emulated() as forward:
        outputs = backend.fusion.adaptive_fusion_forward(*arguments, None)
    with backend.emulated() as backward:
        grads = backend.fusion.adaptive_fusion_backward(*upstream, *arguments, None)
    grads = [grad for grad, argument in zip(grads, arguments, strict=True) if argument is not None]

    def function(leaves: list[Tensor]) -> tuple[Tensor, ...]:
        left = iter(leaves)
        return reference.adaptive_fusion(*(None if argument is None else next(left) for argument in arguments), None)

    within_budget([*outputs, *grads], given, function, upstream)
    yield _row(f"fusion forward, {kind}", backend.name, backend.compiler, forward, [*given, *outputs])
    yield _row(f"fusion backward, {kind}", backend.name, backend.compiler, backward, [*given, *upstream, *grads])


def count_plain() -> Iterator[Row]:
    """Launches for each source, with Triton's tile; without what adds up outputs and gradients of the queries."""
    call = _attention_call()
    with triton_launches.recorded(ARCH) as launches:
        attention.p2c_attention_forward(call.inputs)
    [tile] = launches
    inputs = [call.inputs.query, *call.inputs.keys, *call.inputs.values]
    slices = BATCH * HEADS
    forward, backward, found = [], [], []
    for key, value in zip(call.inputs.keys, call.inputs.values, strict=True):
        query, key, value, grad_out = (t.flatten(0, 1) for t in (call.inputs.query, key, value, call.grad_out))
        out, lse = torch.empty_like(query), torch.empty(slices, QUERIES)
        grads = torch.zeros(query.shape), torch.empty_like(key), torch.empty_like(value)
        forward += _emulate([flash.forward(tile, query, key, value, out, lse)], slices)
        backward += _emulate(flash.backward(tile, (query, key, value), grad_out, out, lse, grads), slices)
        found.append([t.unflatten(0, (BATCH, HEADS)) for t in (out, lse, *grads)])
    outs, lses, queries, keys, values = zip(*found, strict=True)
    out, query = (torch.stack(parts).float().sum(0).to(DTYPE) for parts in (outs, queries))
    lse = torch.stack(lses, -1)
    call.assert_within_budget(out, lse, query, list(keys), list(values), None)
    compiler = compiled_triton.compiler()
    yield _row("attention forward", "plain", compiler, forward, [*inputs, out, lse])
    tensors = [*inputs, call.grad_out, lse, query, *keys, *values]
    yield _row("attention backward", "plain", compiler, backward, tensors)


def _attention_call() -> AttentionCall:
    torch.manual_seed(0)
    return AttentionCall.make(QUERIES, KEYS, HEAD_DIM, DTYPE, batch=BATCH, gates=False, masks=False)


def _emulate(launches: Sequence[Launch], slices: int) -> list[Report]:
    return [launch_triton(i.kernel, (i.grid, slices), *i.args, arch=ARCH, **i.options) for i in launches]


def _row(op: str, backend: str, compiler: str, reports: list[Report], tensors: Sequence[Tensor]) -> Row:
    """The counters of all launches; the least that can be moved is each of `tensors`, inputs and outputs, once."""
    assert_clean(reports)
    counted = {name: sum(report.counters[name] for report in reports) for name in COUNTED}
    facts = {"launches": len(reports), "least_bytes": sum(t.nbytes for t in tensors), **counted}
    named = {"op": op, "backend": backend, "compiler": compiler}
    return named | {name: str(number) for name, number in facts.items()}


def read() -> list[Row]:
    with CSV.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def update() -> list[Row]:
    """Counts again, and keeps the rows of backends that cannot be emulated here."""
    counted = list(count())
    kept = [row for row in read() if row["backend"] not in {row["backend"] for row in counted}] if CSV.is_file() else []
    ops = list(dict.fromkeys(row["op"] for row in counted))
    rows = sorted(counted + kept, key=lambda row: (ops.index(row["op"]), list(BACKENDS).index(row["backend"])))
    write_csv([COLUMNS, *([row[name] for name in COLUMNS] for row in rows)], CSV)
    return rows


def check() -> list[str]:
    """Differences from the table, among the rows that can be counted here with the same compiler."""
    known = {(row["op"], row["backend"]): row for row in read()}
    problems = []
    for row in count():
        old = known.get((row["op"], row["backend"]))
        if old is None:
            problems.append(f"{row['op']}, {row['backend']}: not in {CSV.name}: run {COMMAND}")
        elif old["compiler"] == row["compiler"]:
            problems += [
                f"{row['op']}, {row['backend']}: {name} is {row[name]}, {CSV.name} says {old[name]}: run {COMMAND}"
                for name in COLUMNS
                if row[name] != old[name]
            ]
    return problems


def render(rows: list[Row]) -> str:
    """A Markdown table."""
    pipes = ("tensor", "shared", "global", "fp32", "int", "special")
    head = ("call", "", "launches", "KB read", "KB written", "moved, of least", "sectors, of ideal")
    head += ("wavefronts, of ideal", "instructions", *pipes)
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        read, wrote = int(row["global_bytes_read"]), int(row["global_bytes_written"])
        cells = (
            *(row["op"], BACKENDS[row["backend"]], row["launches"], f"{read / 1000:.1f}", f"{wrote / 1000:.1f}"),
            *(f"{(read + wrote) / int(row['least_bytes']):.2f}", _ratio(row, "global_sectors")),
            *(_ratio(row, "shared_wavefronts"), row["instructions"], *(row[f"instructions_{pipe}"] for pipe in pipes)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(row: Row, name: str) -> str:
    ideal = int(row[f"{name}_ideal"])
    return f"{int(row[name]) / ideal:.2f}" if ideal else ""


if __name__ == "__main__":
    rewrite(DOCS, COMMAND, render(update()))
    performance.write()
