"""The processes of a run: rank, size, sums and gathered rows; a single process by default."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# the other ranks wait before the first epoch while rank 0 encodes a whole data set
TIMEOUT = timedelta(hours=6)


@dataclass(frozen=True)
class World:
    """The processes of a run and the device of this one; a single process by default."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, without a gradient."""
        if self.size > 1:
            tensor = tensor.detach().clone()
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Every process's picklable value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def share(self, value: Any) -> Any:
        """The main process's picklable value; that of every other process is not used."""
        if self.size > 1:
            values = [value]
            dist.broadcast_object_list(values, src=0)
            value = values[0]
        return value

    def gather_rows(self, rows: Tensor) -> tuple[Tensor, int]:
        """All processes' `(n_r, ...)` rows, by rank, with gradients, and where this process's rows begin."""
        if self.size == 1:
            return rows, 0
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = len(rows)
        dist.all_reduce(counts)
        parts = _GatherRows.apply(rows, int(counts.max()), self.rank, self.size)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]), int(counts[: self.rank].sum())

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block in the main process before the others, which then find its results in a cache."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()


@contextlib.contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """The world that torchrun has set up in the environment, or a single process on `device`."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    joined = dist.is_initialized()
    if not joined:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield World(device, dist.get_rank(), size)
    finally:
        if not joined:
            dist.destroy_process_group()


class _GatherRows(torch.autograd.Function):
    """All processes' rows, padded to `longest`; the gradient of this process's rows is summed over all processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, longest: int, rank: int, size: int) -> tuple[Tensor, ...]:
        ctx.count, ctx.rank = len(rows), rank
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(size)]
        dist.all_gather(parts, padded)
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        total = torch.stack(gradients)
        dist.all_reduce(total)
        return total[ctx.rank, : ctx.count], None, None, None


def choose_device(name: str) -> torch.device:
    """ "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
