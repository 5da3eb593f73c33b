"""A short search of launch configurations for the model's own calls: each tile checked, timed in a CUDA graph."""

import itertools
from collections.abc import Iterator
from functools import partial

import torch

from amuse_kernels.launch import architecture
from benchmarks.gpu.journal import Record, reason_of
from benchmarks.gpu.stage import Context, Item

MOST = 6  # tiles of a key, besides the fastest with another limit of registers: under 60 for all keys


def items(context: Context) -> Iterator[Item]:
    if context.device.dry:
        yield Item("keys", lambda: [{"status": "not run", "reason": "tiles are timed on a GPU"}])
        return
    from amuse_kernels.attention.triton import tiles
    from amuse_kernels.attention.triton.tiles import Row, TileKey
    from benchmarks import tune

    measured: list[Row] = []

    def searched(key: TileKey, queries: str) -> Iterator[Record]:
        found = []
        reasons: dict[object, str] = {}

        def time(key: TileKey, tile: tiles.Tile) -> float:
            try:
                return tune.checked_time(key, tile)
            except Exception as error:
                if context.device.is_lost():
                    raise
                reasons[tile] = reason_of(error)
                return float("inf")

        for tile, milliseconds in tune.search(key, time, MOST):
            found.append((milliseconds, tile))
            yield {"tile": tile._asdict(), "reason": reasons.get(tile)} | (
                {"ms": milliseconds} if tile not in reasons else {}
            )
            if context.left <= 0:
                break
        milliseconds, best = min(found, key=lambda pair: pair[0])
        if milliseconds == float("inf"):
            raise RuntimeError(f"no tile ran; the one in use: {reasons[found[0][1]]}")
        measured.append(tune.row_of(key, queries, best, torch.cuda.get_device_name(context.device.device)))
        target = context.folder / "tiles.csv"
        tiles.write(tune.in_front(measured, tiles.read()), target)
        yield {"best": best._asdict(), "ms": milliseconds, "in_use_ms": found[0][0], "file": target.name}

    arch = architecture(context.device.device)
    for size, kernel, (queries, count) in itertools.product(
        (2, 4), ("forward", "backward"), {"64": 64, "any": 256}.items()
    ):
        key = TileKey(kernel, arch, size, "masks", 64, count)
        yield Item(f"{kernel} {8 * size} bits, {queries} queries", partial(searched, key, queries))
