"""Token features that stay in their files until they are needed."""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amuse.remote import RemoteFile

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class StoredTokens:
    """Float32 tokens `(length, width)` in a file, from the byte `begin` on; `transforms` are applied to what is read.

    They are read, not mapped into memory, since mapped pages would count as the process's memory.
    """

    path: Path | RemoteFile
    begin: int
    length: int
    width: int
    transforms: tuple[Transform, ...] = ()

    def __len__(self) -> int:
        return self.length

    def read(self) -> Tensor:
        """The tokens.

        Raises:
            FileNotFoundError: The file was deleted.
            ValueError: The file is shorter than it was, a remote file was changed, or the tokens are not finite.
        """
        tokens = torch.empty(self.length, self.width)
        if not tokens.numel():
            return tokens
        with _open(self.path) as file:
            file.seek(self.begin)
            read = file.readinto(memoryview(tokens.numpy().view(np.uint8).data))
        if read != 4 * tokens.numel():
            raise ValueError(f"{self.path}: expected {4 * tokens.numel()} bytes from {self.begin} on, got {read}")
        if not math.isfinite(tokens.sum()) and not tokens.isfinite().all():
            raise ValueError(f"{self.path}: expected finite numbers from byte {self.begin} on, got NaN or infinity")
        for transform in self.transforms:
            tokens = transform(tokens)
        return tokens


def stored_tensors(path: Path | RemoteFile, names: Collection[str] | None = None) -> dict[str, StoredTokens]:
    """Name -> place of every tensor of a safetensors file, or of those that are named; only its header is read.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a safetensors file, or a tensor that is not float32 with two dimensions.
    """
    try:
        header, begin, size = _header(path)
        entries = {name: entry for name, entry in header.items() if name in (names or header.keys() - {"__metadata__"})}
        found = {}
        for name, entry in entries.items():
            (first, last), shape = entry["data_offsets"], entry["shape"]
            if entry["dtype"] != "F32" or len(shape) != 2:
                raise ValueError(f"tensor {name!r}: expected F32 with two dimensions, got {entry['dtype']} {shape}")
            if last - first != 4 * shape[0] * shape[1] or not 0 <= first <= last <= size - begin:
                raise ValueError(f"tensor {name!r}: its place does not fit its shape and the file")
            found[name] = StoredTokens(path, begin + first, *shape)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a safetensors file of features: {error}") from None
    return found


def _header(path: Path | RemoteFile) -> tuple[dict[str, Any], int, int]:
    """The header, and in bytes where the tensors begin and how large the file is."""
    # the format: 8 bytes with the length of a JSON header, the header, the tensors
    if isinstance(path, RemoteFile):
        head, size = path.head()
        begin = 8 + int.from_bytes(head[:8], "little")
        if len(head) < min(begin, size):
            head += path.part(len(head), min(begin, size))
    else:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            begin = 8 + int.from_bytes(head, "little")
            head += file.read(min(begin, size) - len(head))
    return json.loads(head[8:begin]), begin, size


def _open(path: Path | RemoteFile) -> Any:
    return path.open() if isinstance(path, RemoteFile) else path.open("rb", buffering=0)


class Features(Mapping[str, Tensor]):
    """Modality -> tokens, some of them in files: every lookup reads them.

    Args:
        entries: Tokens in memory or in a file; `len` of an entry is its number of tokens.
    """

    __slots__ = ("entries",)

    def __init__(self, entries: Mapping[str, Tensor | StoredTokens]) -> None:
        self.entries = dict(entries)

    def __getitem__(self, modality: str) -> Tensor:
        entry = self.entries[modality]
        return entry.read() if isinstance(entry, StoredTokens) else entry

    def __contains__(self, modality: object) -> bool:
        return modality in self.entries  # that of Mapping would read it

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)
