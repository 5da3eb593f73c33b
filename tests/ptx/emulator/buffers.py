"""Memory that a kernel may touch: the storages behind the tensors, with a shadow byte for every byte."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from .operands import region_base
from .poison import INITIALISED
from .program import Variable
from .sparse_memory import sparse_memory

LARGE = 2**28  # bytes
LARGEST_WRITABLE = 2**30  # bytes, of which each has a record of who touched it
ACCESSIBLE, WRITABLE, STORED, READ, WRITTEN = 1, 2, 4, 8, 16  # as in core/machine.h


@dataclass
class Buffer:
    """One storage. `flags` tells of each byte: is it part of a tensor, may be written, was stored, read, written."""

    names: list[str]
    base: int  # virtual address of byte 0
    host: int  # real address of byte 0
    flags: np.ndarray
    keep: object  # keeps the memory alive
    writable: bool = False
    windows: list[np.ndarray] = field(default_factory=list)  # views of `flags`, one per tensor

    @property
    def size(self) -> int:
        return len(self.flags)

    @property
    def name(self) -> str:
        return " and ".join(self.names)


class Memory:
    """All buffers of a launch: the module's variables first, then the storages of the tensor arguments."""

    def __init__(self, variables: list[Variable]) -> None:
        self.buffers: list[Buffer] = []
        self._by_storage: dict[int, Buffer] = {}
        self._poisoned: list[tuple[str, torch.Tensor, Buffer, int]] = []
        for variable in variables:
            data = np.frombuffer(bytearray(variable.data or bytes(variable.size)), np.uint8)
            flags = np.full(
                variable.size, ACCESSIBLE | STORED | (WRITABLE if variable.space == "global" else 0), np.uint8
            )
            writable = variable.space == "global"
            base = region_base(len(self.buffers))
            self.buffers.append(Buffer([variable.name], base, data.ctypes.data, flags, data, writable))

    def add(self, tensor: torch.Tensor, name: str, readonly: bool) -> int:
        """Makes a tensor accessible; returns its virtual address."""
        storage = tensor.untyped_storage()
        buffer = self._by_storage.get(storage.data_ptr()) if storage.nbytes() else None
        if buffer is None:
            base = region_base(len(self.buffers))
            buffer = Buffer([], base, storage.data_ptr(), _zeros(storage.nbytes()), tensor)
            self.buffers.append(buffer)
            self._by_storage[storage.data_ptr()] = buffer
        buffer.names.append(name)
        offset = int(tensor.storage_offset()) * tensor.element_size()
        buffer.writable |= not readonly
        poison = getattr(tensor, INITIALISED, None)
        if tensor.numel():
            self._allow(
                buffer, tensor, offset, ACCESSIBLE | (0 if readonly else WRITABLE) | (STORED if poison is None else 0)
            )
        if poison is not None:
            if not tensor.is_contiguous():
                raise ValueError(f"{name}: a poisoned tensor must be contiguous")
            buffer.flags[offset : offset + len(poison)] |= np.where(poison.numpy() != 0, STORED, 0).astype(np.uint8)
            self._poisoned.append((name, tensor, buffer, offset))
        return buffer.base + offset

    @staticmethod
    def _allow(buffer: Buffer, tensor: torch.Tensor, offset: int, bits: int) -> None:
        size = tensor.element_size()
        if tensor.is_contiguous():
            window = buffer.flags[offset : offset + tensor.numel() * size]
            window |= np.uint8(bits)
            buffer.windows.append(window)
            return
        strides = [stride * size for stride in tensor.stride()] + [1]
        window = np.lib.stride_tricks.as_strided(buffer.flags[offset:], [*tensor.shape, size], strides)
        window |= np.uint8(bits)
        buffer.windows.append(window)

    def finish(self) -> list[str]:
        """Messages about poisoned outputs that the kernel left unwritten; remembers what it did write."""
        messages = []
        for name, tensor, buffer, offset in self._poisoned:
            size = tensor.element_size()
            stored = (buffer.flags[offset : offset + tensor.numel() * size] & STORED) != 0
            setattr(tensor, INITIALISED, torch.from_numpy(stored.astype(np.uint8)))
            missing = np.flatnonzero(~stored)
            if len(missing):
                first = tuple(int(k) for k in np.unravel_index(int(missing[0]) // size, tuple(tensor.shape) or (1,)))
                messages.append(
                    f"{name}: {len(np.unique(missing // size))} of {tensor.numel()} elements were never stored, "
                    f"the first at {first}"
                )
        return messages

    def records(self) -> np.ndarray:
        """One record per buffer, as the core reads it."""
        for b in self.buffers:
            if b.writable and b.size > LARGEST_WRITABLE:
                raise ValueError(
                    f"buffer {b.name}: expected at most {LARGEST_WRITABLE} bytes of a tensor that the kernel may "
                    f"write, got {b.size}; a larger one has to be among `readonly`"
                )
        rows = [[b.base, b.size, b.host, b.flags.ctypes.data, int(b.writable)] for b in self.buffers]
        return np.array(rows or [[0] * 5], dtype=np.uint64)

    def distinct(self, bit: int) -> int:
        """Number of bytes that were touched at least once."""
        # only the part of a large buffer that tensors cover, without overlap: its other pages do not exist
        return sum(
            int(np.count_nonzero(part & bit))
            for buffer in self.buffers
            for part in (buffer.windows if buffer.size > LARGE else [buffer.flags])
        )


def _zeros(size: int) -> np.ndarray:
    """Zeroed bytes; of a large array only the touched pages exist."""
    if size <= LARGE:
        return np.zeros(size, np.uint8)
    return np.frombuffer(sparse_memory(size), np.uint8)
