"""Training on prepared data larger than memory: `python -m benchmarks.streamed --times 1 4 10`.

Makes a folder with the size of N times MELD's training split (its lengths, drawn from `meld_lengths.csv`; random
features of the width of wav2vec 2.0 and ViT), trains the first steps of an epoch under a limit of memory, and prints
memory, waiting and throughput. Each N runs in its own process; "from memory" reads everything before the first step.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from amuse.config import Config
from amuse.data.conversation import Conversations, Dialogue
from amuse.data.load import load_splits
from amuse.data.prepared import FORMAT, INDEX_FILE, MANIFEST_FILE, SHARDS
from amuse.files import sha256
from amuse.model.amuse import Amuse
from amuse.training.run import Run
from amuse.world import World
from benchmarks import meld

DIALOGUES, SHARD, WIDTH = 1038, 256, 768  # MELD's dialogues; utterances per shard; feature width
HEAD = [
    "MELDs",
    "features, MiB",
    "read",
    "index, MiB",
    "peak, MiB",
    "wait per step, ms",
    "utterances/s",
    "opened in, s",
]
LABELS = [str(c) for c in range(meld.CLASSES)]


def write_folder(folder: Path, times: int, width: int) -> None:
    """A prepared folder whose training split is `times` MELD's."""
    rng = random.Random(0)
    pool = torch.randn(4096, width, generator=torch.Generator().manual_seed(0))
    lengths = [[{m: u[m] for m in ("audio", "video")} for u in dialogue] for dialogue in meld.dialogues()]
    (folder / SHARDS).mkdir(parents=True)
    splits: dict[str, dict[str, list[Any]]] = {}
    for split, count in (("train", DIALOGUES * times), ("valid", 20), ("test", 20)):
        talks = [(f"{split}{d}", rng.choice(lengths)) for d in range(count)]
        rows = [(f"{name}_{u}", tokens) for name, talk in talks for u, tokens in enumerate(talk)]
        shards = []
        for number, begin in enumerate(range(0, len(rows), SHARD)):
            tensors = {}
            for name, tokens in rows[begin : begin + SHARD]:
                for modality, length in tokens.items():
                    first = rng.randrange(len(pool) - length)
                    tensors[f"{name}/{modality}"] = pool[first : first + length].clone()
            path = folder / SHARDS / f"{split}-{number:06d}.safetensors"
            save_file(tensors, path)
            shards.append({"file": path.name, "sha256": sha256(path)})
        dialogues = [
            {
                "id": name,
                "utterances": [
                    {"id": f"{name}_{u}", "speaker": str(u % 3), "label": rng.randrange(len(LABELS))}
                    for u in range(len(talk))
                ],
            }
            for name, talk in talks
        ]
        splits[split] = {"shards": shards, "dialogues": dialogues}
    index = {"format": FORMAT, "modalities": {"audio": width, "video": width}, "label_names": LABELS, "splits": splits}
    (folder / INDEX_FILE).write_text(json.dumps(index))
    (folder / MANIFEST_FILE).write_text(json.dumps({"format": FORMAT, "encoders": {}, "text": False}))


def resident_mib() -> float:
    """Memory of this process that is neither shared nor in files."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024


def measure(folder: Path, steps: int, workers: int, in_memory: bool, limit_gib: float) -> dict[str, float]:
    """Trains the first steps of an epoch; memory in MiB, waiting in milliseconds per step, utterances per second."""
    if limit_gib:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit_gib * 2**30),) * 2)
    settings = ["data.dataset=prepared", f"data.path={folder}", f"train.workers={workers}", "model.d_model=64"]
    config = Config.load(None, settings)
    before = resident_mib()
    started = time.perf_counter()
    splits = load_splits(config.data, progress=False)
    if in_memory:
        splits = replace(splits, train=_read(splits.train))
    loading, index = time.perf_counter() - started, resident_mib() - before
    torch.manual_seed(0)
    model = Amuse(config.model, splits.spec("minilm"))
    run = Run(config, model, splits, folder, World(torch.device("cpu")))
    run.model.train()
    run.loader.set_epoch(0)
    batches, waits, trained, peak = run.read(), [], 0, 0.0
    began = time.perf_counter()
    for _ in range(min(steps, len(run.loader))):
        asked = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - asked)
        run.step([batch])
        trained += len(batch)
        peak = max(peak, resident_mib())
    rate = trained / (time.perf_counter() - began)
    size = sum(path.stat().st_size for path in (folder / SHARDS).iterdir()) / 2**20
    return {
        "features_mib": round(size),
        "index_mib": round(index),
        "peak_mib": round(peak - before),
        "wait_ms": round(1000 * statistics.median(waits), 1),
        "utterances_per_second": round(rate),
        "load_seconds": round(loading, 1),
    }


def _read(conversations: Conversations) -> Conversations:
    dialogues = [
        Dialogue(d.id, [replace(u, features=dict(u.features.items())) for u in d.utterances])
        for d in conversations.dialogues
    ]
    return Conversations(dialogues, conversations.label_names, conversations.modalities)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 10], help="sizes in MELDs")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--workers", type=int, default=0, help="processes that read batches ahead")
    parser.add_argument("--limit-gib", type=float, default=3.0, help="of anonymous memory; 0 = none")
    parser.add_argument("--folder", type=Path, help="keep the data here, and use what is there")
    parser.add_argument("--write-only", action="store_true", help="make the data and measure nothing")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "KIND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        folder, kind = options.child
        in_memory = kind == "memory"
        limit = 0.0 if in_memory else options.limit_gib
        print(json.dumps(measure(Path(folder), options.steps, options.workers, in_memory, limit)))
        return
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    for times in options.times:
        with tempfile.TemporaryDirectory() as parent:
            folder = (options.folder or Path(parent)) / f"{times}x{options.width}"
            if not folder.exists():
                write_folder(folder, times, options.width)
            if options.write_only:
                continue
            for kind in ("files", "memory") if times == min(options.times) else ("files",):
                arguments = [f"--{k}={v}" for k, v in (("steps", options.steps), ("workers", options.workers))]
                arguments += [f"--limit-gib={options.limit_gib}", "--child", str(folder), kind]
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.streamed", *arguments],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                row = json.loads(done.stdout.splitlines()[-1])
                cells = [times, row["features_mib"], f"from {kind}", row["index_mib"], row["peak_mib"], row["wait_ms"]]
                cells += [row["utterances_per_second"], row["load_seconds"]]
                print(
                    "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells) + " |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
