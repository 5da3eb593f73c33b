"""Python values to kernel parameters, typed by the kernel's .param declarations."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .buffers import Memory
from .program import Kernel, Parameter

SHARED_LIMIT_KB = {
    "75": 64,
    "80": 163,
    "86": 99,
    "87": 163,
    "89": 99,
    "90": 227,
    "100": 227,
    "103": 227,
    "120": 99,
    "121": 99,
}
LARGEST_GRID = (2**31 - 1, 65535, 65535)
LARGEST_BLOCK = (1024, 1024, 64)
LARGEST_CLUSTER = 8  # CTAs, where the launch does not ask for sizes that are not portable
DEFAULT_SHARED = 48 * 1024  # bytes, static and dynamic: what a launch gets that does not opt in to more
REGISTER_FILE, REGISTER_UNIT = 65536, 256  # per multiprocessor; a warp's registers come in units


@dataclass(frozen=True)
class SharedMemory:
    """Bytes of a launch. `opted_in`: CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, None where nothing set it."""

    static: int
    dynamic: int
    opted_in: int | None


@dataclass(frozen=True)
class Structure:
    """A parameter passed by value: its bytes, in which aligned words are addresses on the host, inside of tensors."""

    data: bytes
    readonly: Sequence[torch.Tensor] = ()
    writable: Sequence[torch.Tensor] = ()


def dimensions(value: int | Sequence[int], name: str, limits: Sequence[int]) -> tuple[int, int, int]:
    """A launch size as three numbers."""
    given = (value,) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(given, (tuple, list, torch.Size)) or not 1 <= len(given) <= 3:
        raise TypeError(f"{name}: expected an int or a tuple of one to three ints, got {value!r}")
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in given):
        raise TypeError(f"{name}: expected ints, got {value!r}")
    if any(not 1 <= size <= limit for size, limit in zip(given, limits, strict=False)):
        raise ValueError(
            f"{name}: expected sizes from 1 to {tuple(limits)}, got {value!r}: a GPU rejects such a launch"
        )
    x, y, z = [*given, 1, 1][:3]
    return x, y, z


def readonly_indices(readonly: Iterable[int | torch.Tensor], args: Sequence[Any]) -> set[int]:
    """The positions of the read-only arguments; a tensor means every argument that is the same object."""
    entries = [readonly] if isinstance(readonly, (int, torch.Tensor)) else list(readonly)
    found: set[int] = set()
    for entry in entries:
        if isinstance(entry, torch.Tensor):
            positions = {k for k, arg in enumerate(args) if arg is entry}
            if not positions:
                raise ValueError("readonly: a tensor is not among args")
            found |= positions
        elif isinstance(entry, int) and not isinstance(entry, bool):
            if not -len(args) <= entry < len(args):
                raise ValueError(f"readonly: {entry} is not the position of an argument, there are {len(args)}")
            found.add(entry % len(args))
        else:
            raise TypeError(f"readonly: expected positions or tensors, got {type(entry).__name__}")
    for position in found:
        if not isinstance(args[position], torch.Tensor):
            raise TypeError(f"readonly: args[{position}] is not a tensor")
    return found


def pack(kernel: Kernel, args: Sequence[Any], readonly: set[int], memory: Memory, read: set[str]) -> bytes:
    """The parameter bytes. `read`: parameters that the code reads; pointers after the last argument may be left out if
    it does not (Triton declares two of them)."""
    declared = kernel.parameters
    if len(args) > len(declared):
        raise TypeError(f"args: kernel {kernel.name!r} has {len(declared)} parameters, got {len(args)} arguments")
    for parameter in declared[len(args) :]:
        if parameter.name in read or parameter.size != 8:
            raise TypeError(
                f"args: kernel {kernel.name!r} has {len(declared)} parameters, got {len(args)} arguments: "
                f"{parameter.name} is missing"
            )
    size = max((parameter.offset + parameter.size for parameter in declared), default=0)
    packed = bytearray(max(size, 8))
    for position, (parameter, value) in enumerate(zip(declared, args, strict=False)):
        name = f"args[{position}] ({parameter.name})"
        encoded = _encode(parameter, value, name, position in readonly, memory)
        packed[parameter.offset : parameter.offset + len(encoded)] = encoded
    return bytes(packed)


def _encode(parameter: Parameter, value: Any, name: str, readonly: bool, memory: Memory) -> bytes:
    if isinstance(value, torch.Tensor):
        return _pointer(parameter, value, name, readonly, memory)
    if isinstance(value, Structure):
        value = _structure(value, name, memory)
    if isinstance(value, (bytes, bytearray)):
        if len(value) != parameter.size:
            raise ValueError(f"{name}: expected {parameter.size} bytes, got {len(value)}")
        return bytes(value)
    if parameter.count != 1:
        raise TypeError(f"{name}: expected {parameter.size} bytes for a structure, got {type(value).__name__}")
    if value is None:
        if parameter.size != 8:
            raise TypeError(f"{name}: None is a null pointer, but the parameter is .{parameter.type}")
        return bytes(8)
    if hasattr(value, "item") and not isinstance(value, (int, float)):
        value = value.item()  # a numpy scalar
    if not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a tensor or a number, got {type(value).__name__}")
    return _scalar(parameter, value, name)


def _structure(value: Structure, name: str, memory: Memory) -> bytes:
    """The bytes with emulated addresses; a tensor that they do not point to is an error."""
    data = bytearray(value.data)
    words = np.frombuffer(value.data[: len(data) // 8 * 8], np.uint64)
    for readonly, tensors in ((True, value.readonly), (False, value.writable)):
        for tensor in tensors:
            places = np.flatnonzero(pointing_into(words, tensor))
            if not len(places):
                raise ValueError(f"{name}: no aligned word of the structure holds an address in a given tensor")
            address = memory.add(tensor, name, readonly)
            for place in places:
                moved = address + int(words[place]) - tensor.data_ptr()
                data[8 * place : 8 * place + 8] = moved.to_bytes(8, "little")
    return bytes(data)


def pointing_into(words: np.ndarray, tensor: torch.Tensor) -> np.ndarray:
    """Which words are addresses between a tensor's first and last byte; those of an empty one are nowhere."""
    if tensor.numel() == 0:
        return np.zeros(words.shape, bool)
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.data_ptr()
    return (words >= first) & (words < first + (last + 1) * tensor.element_size())


def _pointer(parameter: Parameter, value: torch.Tensor, name: str, readonly: bool, memory: Memory) -> bytes:
    if parameter.size != 8 or parameter.type.startswith("f"):
        raise TypeError(f"{name}: a tensor was given for a .{parameter.type} parameter, which is no pointer")
    if value.device.type != "cpu":
        raise ValueError(f"{name}: expected a CPU tensor, got one on {value.device}")
    if value.layout != torch.strided:
        raise ValueError(f"{name}: expected a dense tensor, got {value.layout}")
    if value.is_conj() or value.is_neg():
        raise ValueError(f"{name}: lazily conjugated or negated tensors have no plain memory: resolve them first")
    return memory.add(value, name, readonly).to_bytes(8, "little")


def _scalar(parameter: Parameter, value: int | float, name: str) -> bytes:
    formats = {"f16": "<e", "f32": "<f", "f64": "<d"}
    # An untyped (.b) parameter takes the type of the Python value.
    if parameter.type in formats or (isinstance(value, float) and parameter.type in ("b16", "b32", "b64")):
        code = formats.get(parameter.type) or {2: "<e", 4: "<f", 8: "<d"}[parameter.size]
        try:
            return struct.pack(code, value)
        except OverflowError:
            return struct.pack(code, float("inf") if value > 0 else float("-inf"))
    if isinstance(value, float):
        raise TypeError(f"{name}: a float was given for a .{parameter.type} parameter")
    bits = 8 * parameter.size
    low = -(1 << (bits - 1))
    high = (1 << (bits - 1)) if parameter.type.startswith("s") else 1 << bits
    if not low <= value < high:
        raise ValueError(f"{name}: {value} does not fit a .{parameter.type} parameter")
    return (value & ((1 << bits) - 1)).to_bytes(parameter.size, "little")


def check_launch(
    kernel: Kernel,
    target: str,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    shared: SharedMemory,
    registers: int | None,
) -> None:
    """Raises for launches that a driver rejects before the kernel starts."""
    threads = block[0] * block[1] * block[2]
    if threads > LARGEST_BLOCK[0]:
        raise ValueError(f"block: {block} has {threads} threads, the limit is {LARGEST_BLOCK[0]}")
    if kernel.required_block and block != kernel.required_block:
        raise ValueError(f"block: kernel {kernel.name!r} requires {kernel.required_block} (.reqntid), got {block}")
    if kernel.largest_block and threads > kernel.largest_block:
        raise ValueError(
            f"block: kernel {kernel.name!r} is compiled for at most {kernel.largest_block} threads (.maxntid), "
            f"got {threads}"
        )
    if kernel.cluster:
        if math.prod(kernel.cluster) > LARGEST_CLUSTER:
            raise ValueError(
                f"kernel {kernel.name!r}: clusters of {kernel.cluster} CTAs, the limit is {LARGEST_CLUSTER}"
            )
        if any(size % ctas for size, ctas in zip(grid, kernel.cluster, strict=True)):
            raise ValueError(f"grid: {grid} is not divisible by the clusters of {kernel.cluster} CTAs")
    registers = registers or kernel.registers_per_thread
    if registers is not None:
        warps = -(-threads // 32)
        needed = warps * (-(-32 * registers // REGISTER_UNIT) * REGISTER_UNIT)
        if needed > REGISTER_FILE:
            raise ValueError(
                f"block: {threads} threads of {registers} registers take {needed} registers, "
                f"a multiprocessor has {REGISTER_FILE}"
            )
    _check_shared(shared, target)


def _check_shared(shared: SharedMemory, target: str) -> None:
    chip = target.removeprefix("sm_").rstrip("af")
    limit = SHARED_LIMIT_KB.get(chip, 227) * 1024
    if shared.static > DEFAULT_SHARED:
        raise ValueError(
            f"the kernel declares {shared.static} bytes of static shared memory, the limit is {DEFAULT_SHARED}"
        )
    if shared.opted_in is not None and shared.static + shared.opted_in > limit:
        raise ValueError(
            f"max_dynamic_shared: {shared.opted_in} bytes and {shared.static} static ones are asked for, "
            f"sm_{chip} has {limit} bytes of shared memory"
        )
    allowed = DEFAULT_SHARED - shared.static if shared.opted_in is None else shared.opted_in
    if shared.dynamic > allowed:
        why = "without an opt-in (max_dynamic_shared)" if shared.opted_in is None else "as opted in to"
        raise ValueError(
            f"dynamic_shared: the kernel needs {shared.static + shared.dynamic} bytes of shared memory, "
            f"{shared.static} of them static; the limit is {allowed} dynamic bytes {why}, sm_{chip} has {limit} in all"
        )
