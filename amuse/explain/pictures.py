"""The pictures behind a stream's tokens, encoded again with some of their regions covered."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

BATCH = 64  # pictures that are covered and encoded together; bounds the memory


class Pictures:
    """Regions of pictures as features of a stream: a grid of cells, row after row, each of which can be covered.

    A covered region is filled with the mean colour of its picture, as faces are in the background stream. The result
    for a picture depends only on which of its regions are visible, so it is computed once.

    Args:
        images: uint8 `(H, W, 3)`, one per token of the stream.
        encode: From images to features `(L, d)` as the model reads them (standardised), each image on its own.
        grid: Cells per side.
        moments: Number of runs of neighbouring pictures; a region is covered in all pictures of a run, since
            consecutive frames usually show the same things.

    Raises:
        ValueError: No cell or no moment.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        encode: Callable[[Sequence[np.ndarray]], Tensor],
        grid: int = 4,
        moments: int = 1,
    ) -> None:
        for name, value in (("grid", grid), ("moments", moments)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.images, self.encode, self.grid, self.moments = list(images), encode, grid, moments
        self._colours = [image.mean(axis=(0, 1)).astype(np.uint8) for image in self.images]
        self._known: dict[tuple[int, bytes], Tensor] = {}

    def __call__(self, kept: Tensor) -> Tensor:
        """Features `(S, L, d)` of S versions of the pictures; bool `(S, L, grid * grid)`, True = the region stays."""
        rows = kept.cpu().numpy()
        keys = [[(token, cells.tobytes()) for token, cells in enumerate(row)] for row in rows]
        missing = dict.fromkeys(key for row in keys for key in row if key not in self._known)
        wanted = list(missing)
        for begin in range(0, len(wanted), BATCH):
            batch = wanted[begin : begin + BATCH]
            tokens = self.encode([self._covered(token, np.frombuffer(cells, bool)) for token, cells in batch])
            self._known.update(zip(batch, tokens, strict=True))
        return torch.stack([torch.stack([self._known[key] for key in row]) for row in keys]).to(kept.device)

    def _covered(self, token: int, stays: np.ndarray) -> np.ndarray:
        image = self.images[token].copy()
        height, width = image.shape[:2]
        for index in np.flatnonzero(~stays):
            row, column = divmod(int(index), self.grid)
            rows = slice(row * height // self.grid, (row + 1) * height // self.grid)
            columns = slice(column * width // self.grid, (column + 1) * width // self.grid)
            image[rows, columns] = self._colours[token]
        return image


def cell_box(cell: int, grid: int) -> tuple[float, float, float, float]:
    """Left, top, width and height of a region as shares of its picture."""
    row, column = divmod(cell, grid)
    return column / grid, row / grid, 1 / grid, 1 / grid
