"""Tile sizes of the attention kernels by architecture, dtype, head dim and number of queries."""

from typing import NamedTuple

import torch


class Tile(NamedTuple):
    queries: int
    keys: int
    num_warps: int
    num_stages: int


def forward_tile(dtype: torch.dtype, head_dim: int, queries: int, arch: int) -> Tile:
    return Tile(64, 64, 4, 2)


def backward_tile(dtype: torch.dtype, head_dim: int, queries: int, arch: int) -> Tile:
    return Tile(64, 64, 4, 2)
