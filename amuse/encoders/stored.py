"""Token features that stay in their files until they are needed."""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class StoredTokens:
    """Float32 tokens `(length, width)` in a file, from the byte `begin` on; `transforms` are applied to what is read.

    They are read, not mapped into memory, since mapped pages would count as the process's memory.
    """

    path: Path
    begin: int
    length: int
    width: int
    transforms: tuple[Callable[[Tensor], Tensor], ...] = ()

    def __len__(self) -> int:
        return self.length

    def read(self) -> Tensor:
        """The tokens.

        Raises:
            FileNotFoundError: The file was deleted.
            ValueError: The file is shorter than it was, or the tokens are not finite.
        """
        tokens = torch.empty(self.length, self.width)
        if not tokens.numel():
            return tokens
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.begin)
            read = file.readinto(memoryview(tokens.numpy().view(np.uint8).data))
        if read != 4 * tokens.numel():
            raise ValueError(f"{self.path}: expected {4 * tokens.numel()} bytes from {self.begin} on, got {read}")
        if not math.isfinite(tokens.sum()) and not tokens.isfinite().all():
            raise ValueError(f"{self.path}: expected finite numbers from byte {self.begin} on, got NaN or infinity")
        for transform in self.transforms:
            tokens = transform(tokens)
        return tokens


def stored_tensors(path: Path, names: Collection[str] | None = None) -> dict[str, StoredTokens]:
    """Name -> place of every tensor of a safetensors file, or of those that are named; only its header is read.

    Raises:
        ValueError: Not a safetensors file, or a tensor that is not float32 with two dimensions.
    """
    # the format: 8 bytes with the length of a JSON header, the header, the tensors
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, size)))
        entries = {name: entry for name, entry in header.items() if name in (names or header.keys() - {"__metadata__"})}
        found = {}
        for name, entry in entries.items():
            (begin, end), shape = entry["data_offsets"], entry["shape"]
            if entry["dtype"] != "F32" or len(shape) != 2:
                raise ValueError(f"tensor {name!r}: expected F32 with two dimensions, got {entry['dtype']} {shape}")
            if end - begin != 4 * shape[0] * shape[1] or not 0 <= begin <= end <= size - 8 - length:
                raise ValueError(f"tensor {name!r}: its place does not fit its shape and the file")
            found[name] = StoredTokens(path, 8 + length + begin, *shape)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a safetensors file of features: {error}") from None
    return found


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
