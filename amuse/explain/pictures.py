"""The pictures behind a stream's tokens, encoded again with some of their regions covered."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BATCH = 64  # pictures that are covered and encoded together; bounds the memory


class Regions(NamedTuple):
    """A division of pictures into the same regions, such as the parts of a face.

    Attributes:
        names: Of the regions.
        maps: Of each picture, int `(H, W)`, the region of each pixel.
    """

    names: Sequence[str]
    maps: Sequence[np.ndarray]

    @classmethod
    def grid(cls, images: Sequence[np.ndarray], side: int) -> "Regions":
        """Cells of equal size, `side` by `side`, row after row."""
        names = [f"row {row + 1}, column {column + 1}" for row in range(side) for column in range(side)]
        maps = []
        for image in images:
            rows, columns = (_cells(length, side) for length in image.shape[:2])
            maps.append(rows[:, None] * side + columns)
        return cls(names, maps)


class Pictures:
    """Regions of pictures as features of a stream, each of which can be covered.

    A covered region is filled with the mean colour of its picture, as faces are in the background stream. The result
    for a picture depends only on which of its regions are visible, so it is computed once.

    Args:
        images: uint8 `(H, W, 3)`, one per token of the stream.
        encode: From images to features `(L, d)` as the model reads them (standardised), each image on its own.
        grid: Cells per side, if no regions are given.
        moments: Number of runs of neighbouring pictures; a region is covered in all pictures of a run, since
            consecutive frames usually show the same things.
        regions: Those of the images; None = a grid.

    Raises:
        ValueError: No cell, no moment, or maps that do not fit the images.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        encode: Callable[[Sequence[np.ndarray]], Tensor],
        grid: int = 4,
        moments: int = 1,
        regions: Regions | None = None,
    ) -> None:
        for name, value in (("grid", grid), ("moments", moments)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.images, self.encode, self.moments = list(images), encode, moments
        self.regions = Regions.grid(self.images, grid) if regions is None else regions
        shapes = [image.shape[:2] for image in self.images]
        if [each.shape for each in self.regions.maps] != shapes:
            raise ValueError(f"regions.maps: expected {shapes}, got {[each.shape for each in self.regions.maps]}")
        self._colours = [image.mean(axis=(0, 1)).astype(np.uint8) for image in self.images]
        self._known: dict[tuple[int, bytes], Tensor] = {}

    @property
    def count(self) -> int:
        """Regions of each picture."""
        return len(self.regions.names)

    def __call__(self, kept: Tensor) -> Tensor:
        """Features `(S, L, d)` of S versions of the pictures; bool `(S, L, count)`, True = the region stays."""
        rows = kept.cpu().numpy()
        keys = [[(token, cells.tobytes()) for token, cells in enumerate(row)] for row in rows]
        missing = dict.fromkeys(key for row in keys for key in row if key not in self._known)
        wanted = list(missing)
        for begin in range(0, len(wanted), BATCH):
            batch = wanted[begin : begin + BATCH]
            tokens = self.encode([self._covered(token, np.frombuffer(cells, bool)) for token, cells in batch])
            self._known.update(zip(batch, tokens, strict=True))
        return torch.stack([torch.stack([self._known[key] for key in row]) for row in keys]).to(kept.device)

    def shown(self, kept: Tensor) -> Tensor:
        """Which pictures have a region left, bool `(S, L)`."""
        return kept.any(-1)

    def _covered(self, token: int, stays: np.ndarray) -> np.ndarray:
        image = self.images[token].copy()
        image[~stays[self.regions.maps[token]]] = self._colours[token]
        return image


def _cells(length: int, count: int) -> np.ndarray:
    """The number of the cell that each pixel along a side is in."""
    borders = np.arange(1, count) * length // count
    return np.searchsorted(borders, np.arange(length), side="right")


def cell_box(cell: int, grid: int) -> tuple[float, float, float, float]:
    """Left, top, width and height of a region as shares of its picture."""
    row, column = divmod(cell, grid)
    return column / grid, row / grid, 1 / grid, 1 / grid
