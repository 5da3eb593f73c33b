"""Training steps of AMuSE, forward to optimiser: on our ops and on the reference."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from amuse.config import Config
from amuse.model.amuse import Amuse
from amuse.training.losses import amuse_loss
from benchmarks.gpu.journal import Record
from benchmarks.gpu.stage import Context, Item
from benchmarks.workloads import training_batch, trimodal_config

TINY = {"text": (3, 8), "audio": (2, 4), "video": (1, 4)}
TOKENS = {"text": (24, 384), "audio": (60, 64), "video": (16, 128)}  # modality -> (length, width)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SECONDS = 1.5  # that a time takes
STEPS = 2  # in a profile
PROFILES = "profiles.txt"


def items(context: Context) -> Iterator[Item]:
    contenders = (*(f"ours, {backend}" for backend in context.backends[: 2 - context.device.dry]), "reference")
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
        "mode": f"training step {dtype}",
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
    """A step that gives the loss; all contenders begin with the same weights."""
    torch.manual_seed(0)
    config = Config.load(None, ["model.d_model=16", "model.num_heads=2"]) if tiny else trimodal_config()
    batch, spec = training_batch(TINY, 1, 2) if tiny else training_batch(TOKENS)
    batch = batch.to(device)
    backend = contender.removeprefix("ours, ")
    model = Amuse(replace(config.model, backend=backend), spec).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    low = DTYPES[dtype]

    def step() -> Tensor:
        with nullcontext() if low == torch.float32 else torch.autocast(device.type, low):
            loss = amuse_loss(model(batch), batch.labels, config.loss)["loss"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return step
