"""Shards: the unit of work and of resuming. Their files exist whole or not at all, and name what they were made of."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from amuse.data.prepared import SHARDS
from amuse.data.problems import Problem
from amuse.files import save_tensors
from amuse.media.sources import Clip


@dataclass(frozen=True)
class Shard:
    """Some consecutive clips of one split.

    Attributes:
        path: Its file.
        split: Of its clips.
        clips: In the order of the conversations.
        key: Changes whenever the content would.
    """

    path: Path
    split: str
    clips: Sequence[Clip]
    key: str

    def is_done(self) -> bool:
        """Whether its file is there, and was made from the same clips in the same way."""
        return self.path.is_file() and read_metadata(self.path).get("key") == self.key


def cut_into_shards(clips: dict[str, list[Clip]], out: Path, size: int, recipe: dict[str, Any]) -> list[Shard]:
    """Consecutive clips, `size` in a shard, the same ones for the same data on every machine.

    Args:
        clips: Split -> its clips.
        out: Folder of the prepared data.
        size: Clips in a shard.
        recipe: Whatever else decides the content; goes into the keys.
    """
    shards = []
    for split, members in clips.items():
        for number, begin in enumerate(range(0, len(members), size)):
            part = members[begin : begin + size]
            # size and time of change tell a replaced clip without reading all of them
            files = {span.path for clip in part for span in (clip.sound, clip.picture) if span is not None}
            states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files)]
            content = [recipe, [asdict(clip) for clip in part], states]
            key = hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()
            shards.append(Shard(out / SHARDS / f"{split}-{number:06d}.safetensors", split, part, key))
    return shards


def write_shard(
    shard: Shard, features: dict[str, dict[str, Tensor]], problems: list[Problem], sources: dict[str, str]
) -> None:
    """Features by utterance and modality, with what was wrong and the hashes of the media files in the metadata."""
    tensors = {f"{utterance}/{modality}": x for utterance, by in features.items() for modality, x in by.items()}
    metadata = {
        "key": shard.key,
        "problems": json.dumps([asdict(problem) for problem in problems]),
        "sources": json.dumps(sources),
    }
    save_tensors(tensors, shard.path, metadata)


def read_problems(shard: Shard) -> list[Problem]:
    return [Problem(**fields) for fields in json.loads(read_metadata(shard.path)["problems"])]


def read_sources(shard: Shard) -> dict[str, str]:
    """Path -> SHA-256 of the media files."""
    sources: dict[str, str] = json.loads(read_metadata(shard.path)["sources"])
    return sources


def read_keys(shard: Shard) -> list[str]:
    """Its `"{utterance}/{modality}"`."""
    with safe_open(shard.path, framework="pt") as file:
        return list(file.keys())


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file; empty for a file that is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}
