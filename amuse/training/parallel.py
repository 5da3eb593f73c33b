"""Training in several processes: torchrun, gloo on CPUs and NCCL on GPUs, DDP or FSDP.

A batch is divided among all processes by dialogues. Loss denominators count the whole batch, and contrastive losses see
the descriptors of all processes, so the summed gradient equals, up to rounding, the one that a single process computes
from the same batch.
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
    """The module that training calls instead of the model; the model itself in a single process.

    Args:
        model: With the same weights in every process.
        world: The processes.
        strategy: "ddp": every process holds all weights | "fsdp": each holds a shard, and gathers a block when it runs.
        blocks: The parts that FSDP gathers one at a time; all other parameters are gathered together.
        partly_used: Whether a step may leave parameters without a gradient.
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
    """Context of a forward and backward pass, which exchanges gradients only if it is the `last` of a step."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(last)
    if isinstance(network, DistributedDataParallel) and not last:
        with network.no_sync():
            yield
    else:
        yield


def local(tensor: Tensor) -> Tensor:
    """This process's shard, sharing its memory; a tensor that is not sharded as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tree: Any) -> Any:
    """A state dict with every sharded tensor gathered; every process must call it."""
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [whole(value) for value in tree]
    return tree.full_tensor() if isinstance(tree, DTensor) else tree


def shard_like(value: Any, parameter: Tensor) -> Any:
    """A whole tensor sharded as `parameter` is, if they have the same shape; any other value as it is."""
    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value
