"""Several processes that train as one: torchrun, gloo on CPUs and NCCL on GPUs, DDP or FSDP.

A batch belongs to all processes together, and each takes its share of the batch's dialogues. Every sum that a loss is
divided by counts the whole batch, and contrastive losses see the descriptors of all processes, so that the summed
gradient is the one that a single process gets from the same batch, up to rounding.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from amuse.world import World


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
