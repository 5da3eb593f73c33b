"""Encodes shards on a Ray cluster whose machines share the folders.

Tasks read clips on CPUs, actors hold the networks, tasks write the files. Ray places and retries them; this process
only limits how many shards are under way. These are plain tasks and not a dataset of Ray Data, which would pack the
decoded pictures of a shard, hundreds of megabytes, into a cell of an Arrow table and out of it again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

import torch

from amuse.cluster import RETRIES, cluster, result
from amuse.media.encoding import (
    EncodedShard,
    Part,
    encode_parts,
    make_shard,
    parts_of,
    read_part,
    worker_extractor,
    write,
)
from amuse.media.extract import Extractor, Options
from amuse.media.shards import Shard
from amuse.media.sources import Clip

AHEAD = 2
"""Shards under way for each network: one that is encoded, one that is read meanwhile."""


class Job(NamedTuple):
    """Instructions that every task gets.

    Attributes:
        options: What to encode.
        root: Folder of the source.
        here: Working directory of the driver, from which relative paths are meant.
    """

    options: Options
    root: Path
    here: Path


def encode_on_cluster(
    shards: list[Shard], extractor: Extractor, root: Path, workers: int | None, device: str
) -> Iterator[Shard]:
    """Makes the files of shards, and yields each shard when it is finished.

    Args:
        shards: Those to make.
        extractor: Says what to encode; the cluster's processes make their own.
        root: Folder of the source.
        workers: Networks, each with a GPU or, on CPUs, a core; None = one per GPU, or one for every two cores. Without
            any network, the number of shards that are made at a time; None = one per core.
        device: Where the networks run, cpu or cuda.

    Raises:
        ImportError: Ray is not installed.
        ValueError: Too few CPUs or GPUs, or a task whose process dies in every attempt.
    """
    if not shards:
        return
    job = Job(extractor.options, root, Path.cwd())
    with cluster() as ray:
        resources = ray.cluster_resources()
        if extractor.has_network():
            lanes = _with_networks(ray, job, networks(resources, workers, device), device)
        else:
            make = ray.remote(max_retries=RETRIES)(_make)
            lanes = [lambda shard: make.remote(job, shard)] * (workers or max(int(resources["CPU"]), 1))
        waiting = list(reversed(shards))
        running: dict[Any, tuple[Shard, Callable[[Shard], Any]]] = {}
        free = [lane for _ in range(AHEAD) for lane in lanes]
        while waiting or running:
            while waiting and free:
                shard, lane = waiting.pop(), free.pop()
                running[lane(shard)] = shard, lane
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            shard, lane = running.pop(done)
            result(ray, done, shard.path.name)
            free.append(lane)
            yield shard


def networks(resources: dict[str, float], workers: int | None, device: str) -> int:
    """How many to start on a cluster of these resources.

    Raises:
        ValueError: More than there are GPUs, or so many that no core is left to read clips.
    """
    cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    on_gpu = device.startswith("cuda")
    if on_gpu and not gpus:
        raise ValueError(f"device: expected GPUs in the cluster for {device}, got none")
    count = workers or (gpus if on_gpu else max(cores // 2, 1))
    most = min(gpus, cores - 1) if on_gpu else cores - 1
    if count > most:
        raise ValueError(
            f"workers: expected at most {most} on a cluster of {cores} cores and {gpus} GPUs, one core of which reads "
            f"clips, got {count}"
        )
    return count


def _with_networks(ray: Any, job: Job, count: int, device: str) -> list[Callable[[Shard], Any]]:
    """For each network a function that starts all tasks of a shard, and returns the last one's reference."""
    read, write_file = (ray.remote(max_retries=RETRIES)(task) for task in (_read, _write))
    actor = ray.remote(max_restarts=-1, max_task_retries=RETRIES, num_cpus=1, num_gpus=int(device.startswith("cuda")))(
        _Network
    )

    def lane(network: Any) -> Callable[[Shard], Any]:
        def begin(shard: Shard) -> Any:
            parts = [read.remote(job, shard.split, clips) for clips in parts_of(shard)]
            return write_file.options(num_cpus=0).remote(job, shard, network.encode.remote(*parts))

        return begin

    return [lane(actor.remote(job, device)) for _ in range(count)]


class _Network:
    """An actor."""

    def __init__(self, job: Job, device: str) -> None:
        torch.set_num_threads(1)  # as everywhere, so that the bytes are the same
        with chdir(job.here):
            self.extractor = Extractor(job.options, device)

    def encode(self, *parts: Part) -> EncodedShard:
        return encode_parts(self.extractor, parts)


def _read(job: Job, split: str, clips: Sequence[Clip]) -> Part:
    with chdir(job.here):
        return read_part(worker_extractor(job.options, None), split, clips, job.root)


def _write(job: Job, shard: Shard, encoded: EncodedShard) -> None:
    with chdir(job.here):
        write(shard, encoded)


def _make(job: Job, shard: Shard) -> None:
    with chdir(job.here):
        make_shard(shard, worker_extractor(job.options, "cpu"), job.root)
