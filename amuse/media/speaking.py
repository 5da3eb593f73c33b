"""Whose face speaks: the one whose mouth opens and closes with the sound.

Mouths are measured by the landmarks of `amuse.media.mesh`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from amuse.encoders.signal import SAMPLE_RATE
from amuse.media.faces import Box, FaceDetector, overlap
from amuse.media.mesh import FaceMesh

FPS = 15.0
"""Frames per second that are looked at; syllables come at four or five per second."""
LONGEST_LOOK = 8.0  # seconds of an utterance
FEWEST = 12
"""A face that is seen in fewer frames is not judged."""
LAG = 2
"""Frames by which the mouth may be ahead of the sound, or behind it."""
LEAST_CORRELATION, LEAST_LEAD = 0.3, 1.5
"""Least correlation of the speaker's mouth with the sound, and least ratio of its movement with it to other mouths'."""
LEAST_MOVEMENT = 0.01
"""Least movement of a speaker's mouth with the sound, in widths of the mouth."""
LOST = 4
"""Frames for which a face may go unseen and still be the same one."""

_INNER_LIPS = ((82, 87), (13, 14), (312, 317))  # upper and lower points of the mesh
_CORNERS = (78, 308)


@dataclass
class FaceTrack:
    """One face over the frames of an utterance.

    Attributes:
        boxes: Frame number -> where it is.
        openings: Frame number -> how far the lips are apart, in widths of the mouth.
    """

    boxes: dict[int, Box] = field(default_factory=dict)
    openings: dict[int, float] = field(default_factory=dict)

    def box_near(self, frame: float) -> Box:
        """Where it is in the seen frame next to a (fractional) frame number."""
        return self.boxes[min(self.boxes, key=lambda number: abs(number - frame))]


class MouthReader:
    """Measures mouths.

    Raises:
        ImportError: weights or runtime are not installed; says how to install them.
    """

    def __init__(self) -> None:
        self.mesh = FaceMesh()

    def __call__(self, frame: np.ndarray, box: Box) -> float:
        """How far the lips of the face in a box of a uint8 `(H, W, 3)` frame are apart, in widths of the mouth."""
        points, _ = self.mesh(frame, box)
        gaps = [np.linalg.norm(points[upper] - points[lower]) for upper, lower in _INNER_LIPS]
        width = np.linalg.norm(points[_CORNERS[0]] - points[_CORNERS[1]])
        return float(np.mean(gaps) / max(width, 1e-6))


def track_faces(frames: Sequence[np.ndarray], detector: FaceDetector, mouths: MouthReader) -> list[FaceTrack]:
    """Every face with its way through frames that follow each other closely."""
    tracks: list[FaceTrack] = []
    for number, frame in enumerate(frames):
        boxes = detector(frame)
        current = [track for track in tracks if number - max(track.boxes) <= LOST]
        pairs = [
            (overlap(np.array(track.box_near(number)), np.array(box)), track, box) for track in current for box in boxes
        ]
        taken: list[FaceTrack] = []
        for shared, track, box in sorted(pairs, key=lambda pair: -pair[0]):
            if shared > 0 and number not in track.boxes and box in boxes:
                track.boxes[number] = box
                boxes.remove(box)
                taken.append(track)
        for box in boxes:
            taken.append(FaceTrack({number: box}))
            tracks.append(taken[-1])
        for track in taken:
            track.openings[number] = mouths(frame, track.boxes[number])
    return tracks


def speaking(tracks: Sequence[FaceTrack], loudness: np.ndarray) -> FaceTrack | None:
    """The face whose mouth moves with the sound, clearly more than any other; None where that is undecided.

    Args:
        tracks: Of `track_faces`.
        loudness: `(frames,)`, of the sound during each frame.
    """
    moved = sorted(((_moves_with(track, loudness), track) for track in tracks), key=lambda pair: -pair[0])
    if not moved or moved[0][0] < LEAST_MOVEMENT:
        return None
    if len(moved) > 1 and moved[0][0] < LEAST_LEAD * moved[1][0]:
        return None
    return moved[0][1]


def loudness(samples: np.ndarray, frames: int) -> np.ndarray:
    """`(frames,)`, the root of the amplitude during equal parts of float32 `(samples,)`; hearing compresses alike."""
    parts = np.array_split(samples, frames)
    return np.array([np.sqrt(np.sqrt(np.square(part).mean())) if len(part) else 0.0 for part in parts])


def frames_to_look_at(seconds: float) -> int:
    """How many frames of an utterance are looked at."""
    return round(min(seconds, LONGEST_LOOK) * FPS)


def sound_looked_at(samples: np.ndarray) -> np.ndarray:
    """The sound that belongs to those frames."""
    return samples[: round(LONGEST_LOOK * SAMPLE_RATE)]


def _moves_with(track: FaceTrack, sound: np.ndarray) -> float:
    """How far a mouth moves with the sound: correlation times deviation, at the best lag, in widths of the mouth."""
    best = 0.0
    for lag in range(-LAG, LAG + 1):
        common = [number for number in track.openings if 0 <= number + lag < len(sound)]
        if len(common) < FEWEST:
            continue
        mouth = np.array([track.openings[number] for number in common])
        heard = sound[[number + lag for number in common]]
        if mouth.std() > 0 and heard.std() > 0:
            correlation = float(np.corrcoef(mouth, heard)[0, 1])
            if correlation >= LEAST_CORRELATION:
                best = max(best, correlation * float(mouth.std()))
    return best
