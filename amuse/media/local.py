"""Encodes shards with the processes of this machine."""

import multiprocessing
import os
import pickle
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path

import torch

from amuse.media.encoding import Part, encode_parts, make_shard, parts_of, read_part, worker_extractor, write
from amuse.media.extract import Extractor, Options
from amuse.media.shards import Shard
from amuse.media.sources import Clip


def encode_locally(shards: list[Shard], extractor: Extractor, root: Path, workers: int | None) -> Iterator[Shard]:
    """Makes the files of shards, and yields each shard when it is finished.

    On a CPU every process makes whole shards. On a GPU this process encodes, while others read what is next.

    Args:
        shards: Those to make.
        extractor: On the device that encodes.
        root: Folder of the source.
        workers: Processes, each on one CPU thread; None = one per CPU core. On a CPU, 1 = this process.

    Raises:
        ValueError: A process died.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    if not shards:
        return
    with _one_thread():
        if extractor.device != "cpu" and extractor.has_network():
            yield from encode_with_readers(shards, extractor, root, workers)
        elif workers == 1 or len(shards) == 1:
            for shard in shards:
                make_shard(shard, extractor, root)
                yield shard
        else:
            with _pool(min(workers, len(shards))) as pool:
                running = {pool.submit(_make, shard, extractor.options, root): shard for shard in shards}
                for done in as_completed(running):
                    done.result()
                    yield running[done]


def encode_with_readers(shards: list[Shard], extractor: Extractor, root: Path, workers: int) -> Iterator[Shard]:
    """Encodes in this process what `workers` others have read; at most two parts per reader are ahead."""
    parts = ((shard, clips) for shard in shards for clips in parts_of(shard))
    with _pool(workers) as pool:
        ahead: deque[Future[bytes]] = deque()

        def read_next() -> None:
            if (following := next(parts, None)) is not None:
                shard, clips = following
                ahead.append(pool.submit(_read, extractor.options, shard.split, clips, root))

        for _ in range(2 * workers):
            read_next()
        for shard in shards:
            read: list[Part] = []
            for _ in parts_of(shard):
                read.append(pickle.loads(ahead.popleft().result()))
                read_next()
            write(shard, encode_parts(extractor, read))
            yield shard


def _make(shard: Shard, options: Options, root: Path) -> None:
    make_shard(shard, worker_extractor(options, "cpu"), root)


def _read(options: Options, split: str, clips: Sequence[Clip], root: Path) -> bytes:
    # pickled here, since multiprocessing would send each tensor as a file descriptor
    return pickle.dumps(read_part(worker_extractor(options, None), split, clips, root))


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    # a forked process would share torch's threads and FFmpeg's locks
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            message = (
                "a worker process ended abruptly (out of memory, or a decoder crashed); finished shards are kept: "
            )
            raise ValueError(f"{message}run again, with fewer --workers if memory is short") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in the workers, so that the result is the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _end_with_parent() -> None:
    """Workers of a killed parent would wait forever."""
    threading.Thread(target=_await_parent, daemon=True).start()


def _await_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
