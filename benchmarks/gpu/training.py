"""Training steps of AMuSE, forward to update: on our ops, on the reference, and in stock PyTorch with its SDPA."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from amuse.model.amuse import Amuse
from benchmarks import meld
from benchmarks.gpu.journal import Record
from benchmarks.gpu.stage import Context, Item
from benchmarks.stock import StockAmuse, StockInputs

TINY = {"text": 3, "audio": 2, "video": 1}  # tokens of a modality
STOCK = "stock PyTorch"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SECONDS = 1.5  # that a time takes
STEPS = 2  # in a profile
PROFILES = "profiles.txt"


def items(context: Context) -> Iterator[Item]:
    contenders = (*(f"ours, {backend}" for backend in context.backends[: 2 - context.device.dry]), "reference", STOCK)
    for dtype in DTYPES:
        for contender in contenders:
            yield Item(f"training step {dtype} {contender}", partial(_timed, context, contender, dtype))
    for dtype in DTYPES:
        for contender in contenders[:1] if context.device.dry else contenders:
            yield Item(f"profile {dtype} {contender}", partial(_profiled, context, contender, dtype))


def _timed(context: Context, contender: str, dtype: str) -> Iterator[Record]:
    step = training_step(contender, dtype, context.device.device, tiny=context.device.dry)
    loss = float(step())
    yield {
        "contender": contender,
        "workload": f"training {dtype}",
        "mode": "step",
        "first_loss": loss,
        "wall_ms": 1e3 * context.device.wall(step, SECONDS),
        "peak_mb": context.device.peak_bytes(step) / 2**20,
    }


def _profiled(context: Context, contender: str, dtype: str) -> Iterator[Record]:
    """The profiler's table in the file PROFILES, its total in a record."""
    step = training_step(contender, dtype, context.device.device, tiny=context.device.dry)
    for _ in range(STEPS):
        step()
    on_gpu = context.device.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA][:on_gpu]]
    with profile(activities=activities) as profiled:
        for _ in range(STEPS):
            step()
        if on_gpu:
            torch.cuda.synchronize()
    averages = profiled.key_averages()
    table = averages.table(sort_by="self_cuda_time_total" if on_gpu else "self_cpu_time_total", row_limit=40)
    with (context.folder / PROFILES).open("a", encoding="utf-8") as file:
        file.write(f"{contender}, {dtype}, {STEPS} steps\n{table}\n")
    launched = sum(event.count for event in averages if event.key.startswith(("cudaLaunchKernel", "cuLaunchKernel")))
    busy = sum(event.self_device_time_total for event in averages) / 1e3
    yield {"contender": contender, "steps": STEPS, "launches": launched, "gpu_ms": busy, "file": PROFILES}


def training_step(contender: str, dtype: str, device: torch.device, tiny: bool = False) -> Callable[[], Tensor]:
    """A step on a batch of MELD's lengths, which gives the loss; all contenders begin with the same weights."""
    torch.manual_seed(0)
    settings = meld.config()
    batch = meld.half_to_full(TINY, 2, 1) if tiny else meld.batches()[0]
    batch = batch.to(device)
    backend = contender.removeprefix("ours, ") if contender.startswith("ours") else "reference"
    ours = Amuse(replace(settings.model, backend=backend), meld.spec())
    model: nn.Module = StockAmuse(ours) if contender == STOCK else ours
    inputs = StockInputs.of(batch) if contender == STOCK else (batch,)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    low = DTYPES[dtype]

    def step() -> Tensor:
        with nullcontext() if low == torch.float32 else torch.autocast(device.type, low):
            return meld.training_step(model, inputs, batch, settings, optimizer)

    return step
