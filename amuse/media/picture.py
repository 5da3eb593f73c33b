"""A decoded frame as a player shows it: upright, not mirrored, with the right aspect ratio."""

from typing import Any

import numpy as np

LONGEST_SIDE = 640
"""Frames are scaled down to this, more than detectors and encoders read."""
WIDEST_PIXEL = 4.0
"""A pixel aspect ratio beyond this, or below its inverse, is an error of the file; pixels are then taken as square."""


def picture(frame: Any, pixel_aspect: float = 1.0) -> np.ndarray:
    """uint8 `(H, W, 3)` RGB, at most `LONGEST_SIDE` high and wide.

    Args:
        frame: PyAV's VideoFrame.
        pixel_aspect: Width of a pixel by its height; not 1 on DVDs and DV tapes.
    """
    if not 1 / WIDEST_PIXEL <= pixel_aspect <= WIDEST_PIXEL:
        pixel_aspect = 1.0
    shown = frame.width * pixel_aspect
    scale = min(LONGEST_SIDE / max(shown, frame.height), 1.0)
    width, height = max(round(shown * scale), 1), max(round(frame.height * scale), 1)
    return upright(frame.reformat(width=width, height=height, format="rgb24").to_ndarray(), _display_matrix(frame))


def upright(image: np.ndarray, matrix: tuple[int, ...] | None) -> np.ndarray:
    """An image turned and mirrored as a display matrix says, to the nearest quarter turn.

    Args:
        image: `(H, W, 3)`.
        matrix: FFmpeg's 9 numbers `(a, b, u, c, d, v, x, y, w)`: column p and row q of the stored image are shown at
            x = a p + c q, y = b p + d q. None leaves it as it is.
    """
    if matrix is None:
        return image
    a, b, _, c, d = matrix[:5]
    turned = abs(b) + abs(c) > abs(a) + abs(d)
    if turned:
        image = image.swapaxes(0, 1)
    if (c if turned else a) < 0:
        image = image[:, ::-1]
    if (b if turned else d) < 0:
        image = image[::-1]
    return np.ascontiguousarray(image)


def _display_matrix(frame: Any) -> tuple[int, ...] | None:
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            return tuple(np.frombuffer(data, "=i4").tolist())
    return None
