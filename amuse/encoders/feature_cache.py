"""A cache file of token features, written atomically, verified when opened, and read when its features are needed."""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from amuse.encoders.stored import StoredTokens, stored_tensors
from amuse.files import save_tensors

logger = logging.getLogger(__name__)


def save_features(path: Path, key: str, tokens: list[Tensor]) -> None:
    """Writes the streams to `path`, atomically.

    Args:
        path: The cache file; its folder is created.
        key: Identifies what the features were made from; `load_features` requires the same.
        tokens: At least one float32 `(L, d)`, all of one width.
    """
    flat = torch.cat(tokens).contiguous()
    lengths = torch.tensor([len(stream) for stream in tokens], dtype=torch.int64)
    metadata = {"key": key, "sha256": _checksum([flat], (len(flat), flat.shape[1]), lengths)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors({"tokens": flat, "lengths": lengths}, path, metadata)


def load_features(path: Path, key: str, count: int) -> list[StoredTokens] | None:
    """Where the streams are that `save_features` wrote; None without a file, or with a damaged one, which is logged.

    Args:
        path: The cache file.
        key: As given to `save_features`.
        count: Number of streams expected.
    """
    if not path.is_file():
        return None
    try:
        return _verified(path, key, count)
    except (SafetensorError, OSError, ValueError) as error:
        logger.warning("%s: damaged cache file (%s); it is rebuilt", path, error)
        return None


def _verified(path: Path, key: str, count: int) -> list[StoredTokens]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        lengths = file.get_tensor("lengths")
    if metadata.get("key") != key:
        raise ValueError("it was made from other input")
    flat = stored_tensors(path, ["tokens"])["tokens"]
    if metadata.get("sha256") != _checksum(_parts(flat), (flat.length, flat.width), lengths):
        raise ValueError("its checksum does not match its content")
    if len(lengths) != count:
        raise ValueError(f"it holds {len(lengths)} streams instead of {count}")
    begins = flat.begin + 4 * flat.width * (lengths.cumsum(0) - lengths)
    return [replace(flat, begin=b, length=n) for b, n in zip(begins.tolist(), lengths.tolist(), strict=True)]


def _parts(flat: StoredTokens, tokens: int = 10_000) -> Iterator[Tensor]:
    """All tokens, not all at once."""
    for first in range(0, flat.length, tokens):
        part = replace(flat, begin=flat.begin + 4 * flat.width * first, length=min(tokens, flat.length - first))
        yield part.read()


def _checksum(parts: Iterable[Tensor], shape: tuple[int, int], lengths: Tensor) -> str:
    digest = hashlib.sha256(f"{torch.float32} {shape}".encode())
    digest.update(lengths.numpy().data)
    for part in parts:
        digest.update(part.numpy().data)
    return digest.hexdigest()
