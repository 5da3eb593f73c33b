"""A cache file of token features that is never silently wrong: written atomically, verified when read."""

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
        path: The cache file; its folder is made.
        key: What the features were made from; `load_features` demands the same.
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
    """The streams that `save_features` wrote, or None when there is no file or it is damaged, which is logged.

    Args:
        path: The cache file.
        key: As it was given to `save_features`.
        count: How many streams there must be.
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
    # each stream owns its memory: views would drag the whole file along into every copy and every worker process
    return [stream.clone() for stream in flat.split(lengths.tolist())]


def _checksum(flat: Tensor, lengths: Tensor) -> str:
    digest = hashlib.sha256(f"{flat.dtype} {tuple(flat.shape)}".encode())
    digest.update(lengths.numpy().data)
    digest.update(flat.numpy().data)
    return digest.hexdigest()
