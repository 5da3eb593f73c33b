"""The cost model of `benchmarks.cost_model` against measured training steps of one and two processes on this machine.

    python -m benchmarks.scaling --steps 12 --d-model 32 64 128

One thread a process. Speed and overhead of a device are taken from a single process with a batch and with half of it;
the step of two processes that share the batch is then predicted and measured. The traffic is what the loopback
interface carried during the steps, so that anything else that talks to itself at the time counts too. `--gpu NAME`
prints the extrapolated table of docs/scaling.md instead.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from amuse.config import Config, ModelConfig
from amuse.data.load import Splits
from amuse.data.spec import DataSpec
from amuse.data.synthetic import synthetic_conversations
from amuse.model.amuse import Amuse
from amuse.training.run import Run
from amuse.training.train import seed_everything
from amuse.world import join_world
from benchmarks.cost_model import Device, activation_bytes, cost, forward_flops, parameters

LOOPBACK = Path("/sys/class/net/lo/statistics/tx_bytes")
DIALOGUES = 16
# assumed, not measured: a tenth of the dense bf16 peak, since layers are small; 200 and 400 Gbit/s a GPU between hosts;
# 2,000 started operations of 10 us a step
GPUS = {"A100": Device(31e12, 80e9, 25e9, 2e-5, 2e-2), "H100": Device(99e12, 80e9, 50e9, 2e-5, 2e-2)}
ENCODERS = {"frozen features": 0.0, "110 M encoder": 1.1e8, "1 G encoder": 1e9, "7 G encoder": 7e9}


def make_config(d_model: int, dialogues: int = DIALOGUES) -> Config:
    settings = [f"model.d_model={d_model}", "model.num_heads=2", f"train.batch_size={dialogues}", "model.dropout=0"]
    return Config.load(None, [*settings, "loss.contrastive_kind=none"])


def conversations() -> Splits:
    train = synthetic_conversations("train", num_dialogues=4 * DIALOGUES, turns=(10, 10))
    return Splits(train, train.subset([0]), train.subset([0]), None)


def measure(d_model: int, steps: int, dialogues: int = DIALOGUES) -> dict[str, float]:
    """Median seconds of a step and bytes that crossed the loopback in one, of all processes."""
    torch.set_num_threads(1)
    config, splits = make_config(d_model, dialogues), conversations()
    spec = splits.spec(config.data.encoder)
    seed_everything(0)
    with join_world(torch.device("cpu")) as world:
        run = Run(config, Amuse(config.model, spec), splits, Path(), world)
        run.model.train()
        batches = list(run.loader)
        for i in range(3):
            run.step([batches[i % len(batches)]])
        seconds = []
        world.barrier()
        sent = int(LOOPBACK.read_text())
        for i in range(steps):
            started = time.perf_counter()
            run.step([batches[i % len(batches)]])
            seconds.append(time.perf_counter() - started)
        world.barrier()
        sent = int(LOOPBACK.read_text()) - sent
        exchange = all_reduce_seconds(parameters(config.model, spec)) if world.size > 1 else 0.0
        return {"seconds": sorted(seconds)[len(seconds) // 2], "bytes": sent / steps, "exchange": exchange}


def all_reduce_seconds(count: int) -> float:
    tensor, seconds = torch.zeros(count), []
    for _ in range(10):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(tensor)
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[5]


def two_processes(d_model: int, steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        worker = ["-m", "benchmarks.scaling", "--d-model", str(d_model), "--steps", str(steps), "--worker", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, *worker], check=True, env=environment, stderr=subprocess.DEVNULL)
        return dict(json.loads(out.read_text()))


def compare(d_model: int, steps: int) -> str:
    """A row of the table; both processes' traffic together."""
    one, half = measure(d_model, steps)["seconds"], measure(d_model, steps, DIALOGUES // 2)["seconds"]
    two = two_processes(d_model, steps)
    config: ModelConfig = make_config(d_model).model
    train = conversations().train
    spec = DataSpec(train.modalities, train.label_names)
    everyone = list(train.utterances())
    tokens = {m: round(sum(len(u.features[m]) for u in everyone) / len(everyone)) for m in train.modalities}
    utterances = 10 * DIALOGUES
    weights, flops = parameters(config, spec), forward_flops(config, spec, tokens)
    speed = 3 * flops * utterances / 2 / max(one - half, 1e-9)
    device = Device(speed, 0, weights * 4 / max(two["exchange"], 1e-9), 0, 2 * half - one)
    found = cost(weights, flops, activation_bytes(config, spec, tokens), utterances // 2, device, 2)
    cells = [
        f"{d_model}",
        f"{weights:,}",
        f"{speed / 1e9:.1f}",
        f"{1e3 * one:.0f}",
        f"{1e3 * half:.0f}",
        f"{1e3 * found.step:.0f} to {1e3 * (found.compute + found.exchange):.0f}",
        f"{1e3 * two['seconds']:.0f}",
        f"{2 * found.traffic / 1e6:.2f}",
        f"{two['bytes'] / 1e6:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def extrapolate(name: str) -> str:
    """Memory of a GPU and hours of ten epochs with 64 utterances a GPU and step, for encoders of several sizes."""
    device = GPUS[name]
    config = ModelConfig(d_model=256, num_heads=4)
    spec = DataSpec({"text": 768, "audio": 768, "video": 512}, ["c"] * 7)
    tokens = {"text": 24, "audio": 100, "video": 30}
    own, flops, kept = (
        parameters(config, spec),
        forward_flops(config, spec, tokens),
        activation_bytes(config, spec, tokens),
    )
    lines = [
        "| trained along | utterances | GPUs | strategy | memory, GB | exchange / compute | hours |",
        "|" + "---|" * 7,
    ]
    for encoder, size in ENCODERS.items():
        # an encoder reads the text; its layers are as wide as 12 of them with 12 w^2 weights would be
        width = (size / 12 / 12) ** 0.5
        total_flops = flops + 2 * size * tokens["text"]
        activations = kept + 12 * 34 * width * tokens["text"]
        for utterances, gpus in ((1e4, 1), (1e5, 1), (1e6, 8), (1e7, 8), (1e8, 64), (1e9, 512)):
            found, strategy = cost(own + size, total_flops, activations, 64, device, gpus), "ddp"
            if found.memory > device.memory:
                gpus, strategy = max(gpus, 8), "fsdp"
                found = cost(own + size, total_flops, activations, 64, device, gpus, strategy=strategy)
            cells = [
                encoder,
                f"{utterances:.0e}",
                f"{gpus}",
                strategy,
                f"{found.memory / 1e9:.1f}",
                f"{found.exchange / found.compute:.2f}",
                f"{found.hours(utterances, 10, 64, gpus):.3g}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--d-model", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--gpu", choices=GPUS)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        found = measure(arguments.d_model[0], arguments.steps)
        if os.environ["RANK"] == "0":
            arguments.worker.write_text(json.dumps(found))
    elif arguments.gpu:
        print(extrapolate(arguments.gpu))
    else:
        one, two = "one process, ms | half the batch, ms", "two, predicted | two, measured"
        print(f"| d_model | parameters | Gflop/s | {one} | {two} | MB, predicted | MB, measured |")
        print("|" + "---|" * 9)
        for d_model in arguments.d_model:
            print(compare(d_model, arguments.steps), flush=True)


if __name__ == "__main__":
    main()
