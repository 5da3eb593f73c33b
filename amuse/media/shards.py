"""Shards: the unit of work and of resuming. A shard's file is complete or absent, and records what it was made from."""

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

METADATA = "amuse"


@dataclass(frozen=True)
class Shard:
    """Some consecutive clips of one split.

    Attributes:
        path: Its file.
        split: The split of its clips.
        clips: In the order of the conversations.
        key: Changes whenever the content would.
    """

    path: Path
    split: str
    clips: Sequence[Clip]
    key: str

    def is_done(self) -> bool:
        """Whether its file exists and was made from the same clips in the same way."""
        return self.path.is_file() and _metadata(self.path).get("key") == self.key


def cut_into_shards(clips: dict[str, list[Clip]], out: Path, size: int, recipe: dict[str, Any]) -> list[Shard]:
    """Consecutive clips, `size` in a shard, the same ones for the same data on every machine.

    Args:
        clips: Split -> its clips.
        out: Folder of the prepared data.
        size: Clips per shard.
        recipe: Everything else that decides the content; part of the keys.
    """
    shards = []
    for split, members in clips.items():
        for number, begin in enumerate(range(0, len(members), size)):
            part = members[begin : begin + size]
            # size and modification time reveal a replaced clip without reading its content
            files = {span.path for clip in part for span in (clip.sound, clip.picture) if span is not None}
            states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files)]
            content = [recipe, [_described(clip) for clip in part], states]
            key = hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()
            shards.append(Shard(out / SHARDS / f"{split}-{number:06d}.safetensors", split, part, key))
    return shards


def _described(clip: Clip) -> dict[str, Any]:
    """What decides its features; without words exactly as before words were encoded, so that keys stay."""
    return {name: value for name, value in asdict(clip).items() if (name, value) != ("words", None)}


def write_shard(
    shard: Shard, features: dict[str, dict[str, Tensor]], problems: list[Problem], sources: dict[str, str]
) -> None:
    """Features by utterance and modality, with what was wrong and the hashes of the media files in the metadata."""
    tensors = {f"{utterance}/{modality}": x for utterance, by in features.items() for modality, x in by.items()}
    content = {"key": shard.key, "problems": [asdict(problem) for problem in problems], "sources": sources}
    # one entry, since safetensors writes several in random order
    save_tensors(tensors, shard.path, {METADATA: json.dumps(content)})


def read_problems(shard: Shard) -> list[Problem]:
    return [Problem(**fields) for fields in _metadata(shard.path)["problems"]]


def read_sources(shard: Shard) -> dict[str, str]:
    """Path -> SHA-256 of the media files."""
    sources: dict[str, str] = _metadata(shard.path)["sources"]
    return sources


def read_keys(shard: Shard) -> list[str]:
    """Its `"{utterance}/{modality}"`."""
    with safe_open(shard.path, framework="pt") as file:
        return list(file.keys())


def _metadata(path: Path) -> dict[str, Any]:
    """The metadata that `write_shard` wrote; empty for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            content: dict[str, Any] = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except (SafetensorError, OSError):
        return {}
    return content
