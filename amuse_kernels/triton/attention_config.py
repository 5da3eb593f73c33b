"""Tile sizes of the attention kernels by architecture, dtype, head dim and number of queries.

Chosen by what the compiler reports, not by timings: with gates and key masks (no groups, no dropout) at most 16 bytes a
thread leave the registers up to a head dim of 128, and shared memory fits the smallest chip (99 KiB on sm_86, 89, 120).
"""

from typing import NamedTuple

import torch
import triton


class Tile(NamedTuple):
    queries: int
    keys: int
    num_warps: int
    num_stages: int


# by the largest head dim that they serve
_FORWARD_16 = {64: Tile(64, 32, 4, 2), 128: Tile(64, 64, 8, 2), 256: Tile(32, 32, 4, 2)}
_FORWARD_32 = {32: Tile(32, 32, 4, 2), 64: Tile(32, 32, 8, 1), 256: Tile(16, 32, 8, 1)}
_BACKWARD_16 = {64: Tile(64, 32, 4, 2), 128: Tile(64, 32, 8, 2), 256: Tile(16, 32, 4, 1)}
_BACKWARD_32 = {32: Tile(32, 32, 4, 1), 64: Tile(32, 32, 8, 1), 128: Tile(16, 32, 8, 1), 256: Tile(16, 16, 8, 1)}
# wgmma and tcgen05 read operands from shared memory: that leaves registers free, but for the gradients of wide heads
_WARPGROUP_ARCHITECTURES = (90, 100)
_FORWARD_WARPGROUP, _BACKWARD_WARPGROUP_WIDE = Tile(64, 64, 4, 2), Tile(32, 32, 8, 2)


def forward_tile(dtype: torch.dtype, head_dim: int, queries: int, arch: int) -> Tile:
    if dtype != torch.float32 and head_dim <= 64 and arch in _WARPGROUP_ARCHITECTURES:
        return _shortened(_FORWARD_WARPGROUP, queries)
    return _shortened(_serving(_FORWARD_32 if dtype == torch.float32 else _FORWARD_16, head_dim), queries)


def backward_tile(dtype: torch.dtype, head_dim: int, queries: int, arch: int) -> Tile:
    if dtype != torch.float32 and 64 < head_dim <= 128 and arch in _WARPGROUP_ARCHITECTURES:
        return _shortened(_BACKWARD_WARPGROUP_WIDE, queries)
    return _shortened(_serving(_BACKWARD_32 if dtype == torch.float32 else _BACKWARD_16, head_dim), queries)


def _serving(tiles: dict[int, Tile], head_dim: int) -> Tile:
    return next(tile for limit, tile in tiles.items() if head_dim <= limit)


def _shortened(tile: Tile, queries: int) -> Tile:
    """With no more rows than the queries need, in powers of two from 16."""
    rows = max(16, triton.next_power_of_2(queries))
    return tile._replace(queries=min(tile.queries, rows))
