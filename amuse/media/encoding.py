"""The steps by which any engine makes a shard: read its clips, encode them together, write the file.

Which clips share a batch depends on the shard alone, so that the bytes do not depend on the engine or its processes.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from amuse.data.problems import Problem
from amuse.files import sha256
from amuse.media.extract import Extractor, Options, ReadClip
from amuse.media.shards import Shard, write_shard
from amuse.media.sources import Clip

PART = 8
"""Clips that are read by one task: enough that a task is worth sending, few enough that what is waiting is small."""


@dataclass
class Part:
    """Some clips of a shard, read.

    Attributes:
        clips: In the shard's order.
        sources: Path -> SHA-256 of their media files.
    """

    clips: list[ReadClip]
    sources: dict[str, str]


@dataclass
class EncodedShard:
    """Content of a shard's file; see `write_shard`."""

    features: dict[str, dict[str, Tensor]]
    problems: list[Problem]
    sources: dict[str, str]


@functools.lru_cache(maxsize=1)
def worker_extractor(options: Options, device: str | None) -> Extractor:
    """This process's extractor, made once, on one thread: the number of threads would change the last bits."""
    torch.set_num_threads(1)
    return Extractor(options, device)


def parts_of(shard: Shard) -> list[Sequence[Clip]]:
    """Its clips, `PART` at a time."""
    return [shard.clips[begin : begin + PART] for begin in range(0, len(shard.clips), PART)]


def read_part(extractor: Extractor, split: str, clips: Sequence[Clip], root: Path) -> Part:
    """Everything that needs no network.

    Args:
        extractor: One without a network suffices.
        split: Of the clips, for messages.
        clips: Some of a shard's.
        root: Folder of the source; media files in it are named relative to it.
    """
    part = Part([], {})
    for clip in clips:
        part.clips.append(extractor.read(clip, f"{split} {clip.utterance}"))
        for span in (clip.sound, clip.picture):
            if span is not None:
                inside = span.path.is_relative_to(root)
                name = (span.path.relative_to(root) if inside else span.path).as_posix()
                part.sources[name] = _sha256(span.path)
    return part


_sha256 = functools.lru_cache(maxsize=64)(sha256)  # many utterances share a recording


def encode_parts(extractor: Extractor, parts: Sequence[Part]) -> EncodedShard:
    """The networks' work on all parts of a shard."""
    clips = [clip for part in parts for clip in part.clips]
    features = extractor.encode_batch(clips)
    return EncodedShard(
        {clip.clip.utterance: by_modality for clip, by_modality in zip(clips, features, strict=True)},
        [problem for clip in clips for problem in clip.problems],
        {name: digest for part in parts for name, digest in part.sources.items()},
    )


def make_shard(shard: Shard, extractor: Extractor, root: Path) -> None:
    """All steps in this process."""
    parts = [read_part(extractor, shard.split, clips, root) for clips in parts_of(shard)]
    write(shard, encode_parts(extractor, parts))


def write(shard: Shard, encoded: EncodedShard) -> None:
    write_shard(shard, encoded.features, encoded.problems, encoded.sources)
