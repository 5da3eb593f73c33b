"""Several processes that train as one: torchrun, gloo on CPUs and NCCL on GPUs, DDP or FSDP.

A batch belongs to all processes together, and each takes its share of the batch's dialogues. Every sum that a loss is
divided by counts the whole batch, and contrastive losses see the descriptors of all processes, so that the summed
gradient is the one that a single process gets from the same batch, up to rounding.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler

from amuse.data.batch import Batch, ConversationLoader, DialogueBatches, collate
from amuse.data.conversation import Conversations

# a first epoch may wait for rank 0 to encode a whole data set
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
        """The main process runs the block before the others, who then find what it has put into a cache."""
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


class Shares(Sampler[list[int]]):
    """This process's share of every batch, cut into `accumulate` parts; a part is empty where dialogues run out."""

    def __init__(self, batches: DialogueBatches, accumulate: int, world: World) -> None:
        self.batches, self.accumulate, self.world = batches, accumulate, world
        self.start = 0  # batches of the epoch that are skipped, since they were trained on before an interruption

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        # a batch is sorted by length, so that every stride of it is about as long as the others
        step = self.world.size * self.accumulate
        for batch in list(self.batches)[self.start :]:
            for part in range(self.accumulate):
                yield batch[self.world.rank + self.world.size * part :: step]


def share_loader(conversations: Conversations, shares: Shares) -> ConversationLoader:
    """A loader of this process's parts of every batch; an empty part becomes a batch that counts for nothing."""
    return ConversationLoader(
        conversations,
        batch_sampler=shares,
        collate_fn=partial(_collate_share, conversations=conversations),
        pin_memory=shares.world.device.type == "cuda",
        generator=torch.Generator(),  # not torch's global one, which training draws from
    )


def _collate_share(dialogues: Sequence[Any], conversations: Conversations) -> Batch:
    if dialogues:
        return collate(dialogues, conversations.modalities, conversations.regression)
    ghost = collate(conversations.dialogues[:1], conversations.modalities, conversations.regression)
    ghost.masks = {name: torch.zeros_like(mask) for name, mask in ghost.masks.items()}
    ghost.labels = None
    return ghost


def parallel(model: nn.Module, strategy: str, world: World, blocks: Sequence[nn.Module], partly_used: bool) -> Any:
    """What is called in place of the model in training.

    Args:
        model: with the same weights in every process.
        strategy: "ddp": every process holds all weights | "fsdp": each holds a share, and gathers a block when it runs.
        blocks: the parts that FSDP gathers one after the other; what is left is gathered at once.
        partly_used: whether a step may leave parameters without a gradient.
    """
    if world.size == 1:
        return model
    if strategy == "fsdp":
        mesh = init_device_mesh(world.device.type, (world.size,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh, ignored_params={p for p in model.parameters() if not p.numel()})
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(
        model, device_ids=devices, find_unused_parameters=partly_used, gradient_as_bucket_view=True
    )


@contextlib.contextmanager
def accumulating(network: nn.Module, last: bool) -> Iterator[None]:
    """A forward and backward whose gradients are exchanged only when it is the `last` one of a step."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(last)
    if isinstance(network, DistributedDataParallel) and not last:
        with network.no_sync():
            yield
    else:
        yield


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tree: Any) -> Any:
    """A state dict with every sharded tensor gathered; all processes have to call it."""
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [whole(value) for value in tree]
    return tree.full_tensor() if isinstance(tree, DTensor) else tree


def shard_like(value: Any, parameter: Tensor) -> Any:
    """A whole tensor cut as `parameter` is, where it has its shape."""
    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value
