"""Launch configurations of the attention kernels: tiles.csv, of which the first row that serves a launch is taken.

A row serves launches on its architecture ("any" for all, "gfx" for AMD) with elements of `bytes` bytes, up to its head
dim and number of queries, and up to its options: plain, masks (gates and key masks too), all options (relations,
causality and dropout too). Rows chosen by "registers" were chosen by what the compiler reports, not by timings: no
registers spill up to a head dim of 128, and shared memory fits the smallest chip (99 KiB on sm_86, 89, 120; 64 KiB on
AMD's, whose registers are those of gfx942). `python -m benchmarks.tune` puts rows measured on a GPU in front of them.

fp32 is multiplied as a row's `products` say: "ieee", or "tf32x3", three products of tensor cores that together are
about as exact. They keep both halves of their operands in registers: only tiles that do not spill have them.
"""

import csv
import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import triton

TILES = Path(__file__).with_name("tiles.csv")
OPTIONS = ("plain", "masks", "all options")


class Tile(NamedTuple):
    """How many queries and keys a program multiplies at a time, and what it is compiled with."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None  # of a thread; None: ptxas may spill a few to hold more warps
    products: str | None = None  # of fp32: "ieee" or "tf32x3"; None for 16 bits


class TileKey(NamedTuple):
    """The properties of a call that decide its tile."""

    kernel: str  # "forward", "backward" (all of it, or of the queries) or "backward keys"
    arch: int | str  # see `launch.architecture`
    bytes: int  # of an element
    options: str
    head_dim: int
    queries: int
    products: str | None = None  # "ieee" or "tf32" where fp32 has to be multiplied so


class Row(NamedTuple):
    """A line of tiles.csv."""

    kernel: str
    arch: str
    bytes: int
    options: str
    head_dim: int
    queries: str
    tile: Tile
    chosen_by: str

    def serves(self, key: TileKey) -> bool:
        return (
            (self.kernel, self.bytes) == (key.kernel, key.bytes)
            and self.arch in ("any", "gfx" if isinstance(key.arch, str) else str(key.arch), str(key.arch))
            and OPTIONS.index(key.options) <= OPTIONS.index(self.options)
            and key.head_dim <= self.head_dim
            and (self.queries == "any" or key.queries <= int(self.queries))
            and not (key.products == "ieee" and self.tile.products == "tf32x3")
        )


def read() -> list[Row]:
    """The rows of tiles.csv in their order."""
    with TILES.open(newline="", encoding="utf-8") as file:
        return [
            Row(kernel, arch, int(size), options, int(head_dim), queries, _tile(*tile), chosen_by)
            for kernel, arch, size, options, head_dim, queries, *tile, chosen_by in list(csv.reader(file))[1:]
        ]


def _tile(queries: str, keys: str, warps: str, stages: str, max_registers: str, products: str) -> Tile:
    limit = int(max_registers) if max_registers else None
    return Tile(int(queries), int(keys), int(warps), int(stages), limit, products or None)


def write(rows: Iterable[Row], path: Path | None = None) -> None:
    """Writes a table of launch configurations, by default the one in use, which stays whole if writing fails."""
    path = path or TILES
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        with unfinished.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            tile = ("tile_queries", "tile_keys", "warps", "stages", "max_registers", "products")
            writer.writerow([*Row._fields[: Row._fields.index("tile")], *tile, "chosen_by"])
            writer.writerows([*row[: Row._fields.index("tile")], *row.tile, row.chosen_by] for row in rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


_rows = functools.cache(read)


@functools.lru_cache(maxsize=4096)
def choose_tile(key: TileKey) -> Tile:
    """The tile of the first row that serves, with no more rows than the queries need: powers of two from 16.

    A tile that loses rows loses the warps that would have nothing to multiply.
    """
    tile = next(row.tile for row in _rows() if row.serves(key))
    tile = tile._replace(products=key.products or tile.products)
    queries = min(tile.queries, max(16, triton.next_power_of_2(key.queries)))
    if queries < tile.queries:
        tile = tile._replace(queries=queries)
        tile = tile._replace(num_warps=min(tile.num_warps, warps_fed(tile, key.head_dim)))
    return tile


def warps_fed(tile: Tile, head_dim: int) -> int:
    """How many warps have their own part of every product of a tile.

    The products are [queries, keys] and [queries, head dim]. A tensor core gives 16 x 8 numbers, and a thread that
    multiplies by itself at least one.
    """
    least = 32 if tile.products == "ieee" else 16 * 8
    return max(1, tile.queries * min(tile.keys, max(16, triton.next_power_of_2(head_dim))) // least)
