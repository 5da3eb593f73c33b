"""When somebody has finished: voice activity closes a stretch of speech at a pause.

The pauses, and the segments between them, are those that `amuse.media.segments.by_voice` finds in the whole recording.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from amuse.encoders.signal import SAMPLE_RATE
from amuse.media.segments import PAD, PAUSE, WINDOW, VoiceDetector, voiced
from amuse.speech.transcription import PIECE_PAUSE, SHORTEST_PIECE
from amuse.speech.utterances import LONGEST_STRETCH

VOICE, NO_VOICE = 0.5, 0.35
"""Silero's thresholds: at or above the first a voice begins, below the second it ends."""
SILENCE = round((PAUSE + 2 * PAD) * SAMPLE_RATE)
"""Samples of silence that close a stretch; the ends of its speech are `PAD` away from it."""
BEFORE = 2
"""Windows that are kept from before a voice begins; they hold the `PAD`."""


class Stretch(NamedTuple):
    """Speech between two pauses: its segments between short pauses, begin and end in seconds, in order."""

    pieces: list[tuple[float, float]]

    @property
    def start(self) -> float:
        return self.pieces[0][0]

    @property
    def end(self) -> float:
        return self.pieces[-1][1]


class VoiceGate:
    """From sound in blocks of any length to stretches of speech, each given as soon as its pause is heard.

    Args:
        detect: The probability of a voice in the next window; None = Silero's.

    Raises:
        ImportError: Silero-vad is not installed.
    """

    def __init__(self, detect: Callable[[np.ndarray], float] | None = None) -> None:
        self._detect = detect or VoiceDetector()
        self._rest = np.zeros(0, np.float32)
        self._probabilities: list[float] = []
        self._first = 0  # number of the first of these windows
        self._triggered = False
        self._silent_since: int | None = None  # sample of the recording

    def hear(self, samples: np.ndarray) -> Iterator[Stretch]:
        """The stretches that end in the next samples, float32 at 16 kHz."""
        sound = np.concatenate([self._rest, samples])
        whole = len(sound) // WINDOW * WINDOW
        self._rest = sound[whole:]
        for begin in range(0, whole, WINDOW):
            yield from self._hear_window(self._detect(sound[begin : begin + WINDOW]))

    def finish(self) -> Iterator[Stretch]:
        """The stretch that the end of the recording closes, if somebody is speaking."""
        end = len(self._probabilities) * WINDOW + len(self._rest)
        if len(self._rest):
            self._probabilities.append(self._detect(self._rest))
            self._rest = self._rest[:0]
        yield from self._close(end)

    @property
    def speaking(self) -> bool:
        return self._triggered and self._silent_since is None

    def _hear_window(self, probability: float) -> Iterator[Stretch]:
        now = (self._first + len(self._probabilities)) * WINDOW
        self._probabilities.append(probability)
        if probability >= VOICE:
            self._triggered, self._silent_since = True, None
        elif not self._triggered:
            self._forget(len(self._probabilities) - BEFORE)
        elif probability < NO_VOICE:
            self._silent_since = now if self._silent_since is None else self._silent_since
            if now - self._silent_since >= SILENCE:
                yield from self._close(len(self._probabilities) * WINDOW)
        if len(self._probabilities) * WINDOW > LONGEST_STRETCH * SAMPLE_RATE:
            yield from self._cut()

    def _close(self, samples: int) -> Iterator[Stretch]:
        pieces = self._pieces(samples)
        self._forget(len(self._probabilities) - BEFORE)
        self._triggered, self._silent_since = False, None
        if pieces:
            yield Stretch(pieces)

    def _cut(self) -> Iterator[Stretch]:
        """All but the last segment of speech that had no pause for too long."""
        *finished, last = self._pieces(len(self._probabilities) * WINDOW) or [(0.0, 0.0)]
        if finished:
            self._forget(int(last[0] * SAMPLE_RATE) // WINDOW - self._first)
            yield Stretch(finished)

    def _pieces(self, samples: int) -> list[tuple[float, float]]:
        return voiced(
            self._probabilities,
            samples,
            pause=PIECE_PAUSE,
            shortest=SHORTEST_PIECE,
            longest=LONGEST_STRETCH,
            first=self._first,
        )

    def _forget(self, count: int) -> None:
        """The first `count` windows."""
        if count > 0:
            del self._probabilities[:count]
            self._first += count
