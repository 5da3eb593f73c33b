"""Assembles decoded sound by the times of its frames, as mono at 16 kHz."""

from typing import Any

import numpy as np

from amuse.encoders.signal import SAMPLE_RATE
from amuse.media.tracks import pyav

TOLERANCE = 0.05
"""A frame that begins at least this many seconds from the end of the previous one follows a gap or a jump."""
CANCELLED = 0.01
"""Two channels cancel each other out if their mean has less than this share of their power."""


class _Run:
    """Consecutive frames without a gap: the first one's start in seconds, and the resampled sound."""

    def __init__(self, start: float, frame: Any) -> None:
        self.start, self.seconds = start, 0.0
        self.kind = _kind(frame)
        layout = "mono" if frame.layout.nb_channels == 1 else "stereo"
        self._resampler = pyav().AudioResampler(format="fltp", layout=layout, rate=SAMPLE_RATE)
        self._chunks: list[np.ndarray] = []

    @property
    def end(self) -> float:
        return self.start + self.seconds

    def add(self, frame: Any) -> None:
        self._chunks += [part.to_ndarray() for part in self._resampler.resample(frame)]
        self.seconds += frame.samples / frame.sample_rate

    def samples(self) -> np.ndarray:
        """float32 `(channels, samples)` for exactly the run's duration."""
        chunks = self._chunks + [part.to_ndarray() for part in self._resampler.resample(None)]
        return np.concatenate(chunks, axis=1)[:, : round(self.seconds * SAMPLE_RATE)]


class Timeline:
    """The sound from a time in seconds; silent where no frame is.

    Attributes:
        end: End of the last frame; None without any.
    """

    def __init__(self, begin: float) -> None:
        self.begin = begin
        self._runs: list[_Run] = []

    @property
    def end(self) -> float | None:
        return self._runs[-1].end if self._runs else None

    def add(self, time: float, frame: Any) -> None:
        """A decoded frame that begins at `time`; later ones win where frames overlap."""
        last = self._runs[-1] if self._runs else None
        if last is None or abs(time - last.end) >= TOLERANCE or last.kind != _kind(frame):
            self._runs.append(_Run(time, frame))
        self._runs[-1].add(frame)

    def samples(self, end: float) -> tuple[np.ndarray, float, bool]:
        """The sound up to `end`.

        Returns:
            float32 `(samples,)`; the seconds that no frame covers; whether the two channels cancel each other out, so
            that the louder one is used instead of their mean.
        """
        length = max(round((end - self.begin) * SAMPLE_RATE), 0)
        channels, covered = np.zeros((2, length), np.float32), np.zeros(length, bool)
        for run in self._runs:
            place = round((run.start - self.begin) * SAMPLE_RATE)
            samples = run.samples()[:, max(-place, 0) :]
            place = max(place, 0)
            samples = samples[:, : max(length - place, 0)]
            channels[:, place : place + samples.shape[1]] = samples
            covered[place : place + samples.shape[1]] = True
        if not length:
            return channels[0], 0.0, False
        mean, power = channels.mean(axis=0), np.square(channels).mean(axis=1)
        cancelled = bool(np.square(mean).mean() < CANCELLED * power.mean())
        return (channels[power.argmax()] if cancelled else mean), float((~covered).sum()) / SAMPLE_RATE, cancelled


def _kind(frame: Any) -> tuple[Any, ...]:
    return frame.format.name, frame.layout.name, frame.sample_rate
