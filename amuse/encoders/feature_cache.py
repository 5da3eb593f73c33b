"""A cache file of token features, written atomically and verified when read."""

import hashlib
import logging
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from amuse.files import save_tensors

logger = logging.getLogger(__name__)


def save_features(path: Path, key: str, tokens: list[Tensor]) -> None:
    """Writes the streams to `path`, atomically.

    Args:
        path: The cache file; its folder is created.
        key: Identifies what the features were made from; `load_features` requires the same.
        tokens: At least one float32 `(L, d)`, all of one width.
    """
    if not tokens:
        return
    flat = torch.cat(tokens).contiguous()
    lengths = torch.tensor([len(stream) for stream in tokens], dtype=torch.int64)
    metadata = {"key": key, "sha256": _checksum(flat, lengths)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors({"tokens": flat, "lengths": lengths}, path, metadata)


def load_features(path: Path, key: str, count: int) -> list[Tensor] | None:
    """The streams that `save_features` wrote; None without a file, or with a damaged one, which is logged.

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


def _verified(path: Path, key: str, count: int) -> list[Tensor]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        flat, lengths = file.get_tensor("tokens"), file.get_tensor("lengths")
    if metadata.get("key") != key:
        raise ValueError("it was made from other input")
    if metadata.get("sha256") != _checksum(flat, lengths):
        raise ValueError("its checksum does not match its content")
    if len(lengths) != count:
        raise ValueError(f"it holds {len(lengths)} streams instead of {count}")
    # each stream owns its memory: a view would keep the whole file alive in every copy and worker process
    return [stream.clone() for stream in flat.split(lengths.tolist())]


def _checksum(flat: Tensor, lengths: Tensor) -> str:
    digest = hashlib.sha256(f"{flat.dtype} {tuple(flat.shape)}".encode())
    digest.update(lengths.numpy().data)
    digest.update(flat.numpy().data)
    return digest.hexdigest()
