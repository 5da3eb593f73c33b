"""The last seconds of sound and pictures; older ones are forgotten, so that memory is bounded however long one listens.

Both are written by the thread that captures, and read by the one that predicts.
"""

from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple

import numpy as np

from amuse.encoders.signal import SAMPLE_RATE
from amuse.media.decode import middles, note_silence, shortened
from amuse.media.sources import Span
from amuse.media.tracks import MediaError, Note

MOST_BYTES = 256 * 2**20
"""Bytes of pictures that are remembered."""


class RecentSound:
    """A ring of the last `seconds` of float32 samples at 16 kHz; `heard` counts the samples of all time."""

    def __init__(self, seconds: float) -> None:
        self._ring = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
        self._lock = Lock()
        self.heard = 0

    @property
    def size(self) -> int:
        """Samples that are kept at most."""
        return len(self._ring)

    def add(self, samples: np.ndarray) -> None:
        """Append float32 `(samples,)`."""
        with self._lock:
            size = len(self._ring)
            kept = samples[-size:]
            self.heard += len(samples)
            begin = (self.heard - len(kept)) % size
            first = min(len(kept), size - begin)
            self._ring[begin : begin + first] = kept[:first]
            self._ring[: len(kept) - first] = kept[first:]

    def between(self, begin: float, end: float) -> np.ndarray:
        """A copy of the samples between two times in seconds, as far as they have been heard.

        Raises:
            MediaError: out_of_range, if they are forgotten, or not yet heard.
        """
        with self._lock:
            first, last = max(round(begin * SAMPLE_RATE), 0), min(round(end * SAMPLE_RATE), self.heard)
            if first < self.heard - len(self._ring) or first >= last:
                kept = max(self.heard - len(self._ring), 0) / SAMPLE_RATE
                heard = self.heard / SAMPLE_RATE
                raise MediaError(
                    "out_of_range", f"{begin:.2f} to {end:.2f} s; heard until {heard:.2f}, kept from {kept:.2f}"
                )
            return self._ring.take(range(first, last), mode="wrap")

    def read_audio(self, span: Span, max_seconds: float, note: Note) -> np.ndarray:
        """As `amuse.media.decode.read_audio`, from memory."""
        assert span.end is not None
        samples = self.between(span.begin, shortened(span, span.end, max_seconds, note))
        note_silence(samples, span, note)
        return samples


class _Shown(NamedTuple):
    time: float
    picture: Callable[[], np.ndarray]
    nbytes: int


class RecentPictures:
    """The pictures of the last `seconds`, at most `most_bytes` of them."""

    def __init__(self, seconds: float, most_bytes: int = MOST_BYTES) -> None:
        self._seconds, self._most_bytes = seconds, most_bytes
        self._shown: deque[_Shown] = deque()
        self._lock = Lock()
        self.nbytes = 0

    def add(self, time: float, picture: Callable[[], np.ndarray], nbytes: int) -> None:
        """Append a picture.

        Args:
            time: When it appears, in seconds; not before the last one.
            picture: Gives it as uint8 `(H, W, 3)` RGB; only called for the few that are used.
            nbytes: Memory that it holds.
        """
        with self._lock:
            self._shown.append(_Shown(time, picture, nbytes))
            self.nbytes += nbytes
            while len(self._shown) > 1 and (
                self.nbytes > self._most_bytes or self._shown[1].time < time - self._seconds
            ):
                self.nbytes -= self._shown.popleft().nbytes

    def read_frames(self, span: Span, count: int, max_seconds: float, note: Note) -> list[np.ndarray]:
        """As `amuse.media.decode.read_frames`, from memory.

        Raises:
            MediaError: no_video, if there are no pictures, or out_of_range, if they are forgotten.
        """
        assert span.end is not None
        end = min(span.end, span.begin + max_seconds)
        with self._lock:
            shown = list(self._shown)
        if not shown or shown[0].time >= end:
            kind = "out_of_range" if shown else "no_video"
            raise MediaError(kind, f"{span.path.name}: no picture between {span.begin:.2f} and {end:.2f} s in memory")
        times = np.array([each.time for each in shown])
        chosen = np.maximum(np.searchsorted(times, middles(span.begin, end, count), side="right") - 1, 0)
        pictures = {index: shown[index].picture() for index in dict.fromkeys(chosen.tolist())}
        return [pictures[index] for index in chosen.tolist()]
