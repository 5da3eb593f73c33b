"""Utterances of a recording without a transcript: stretches of sound between pauses, by loudness alone."""

import numpy as np

from amuse.encoders.signal import SAMPLE_RATE

FRAME = 0.03  # seconds
PAUSE = 0.4  # the shortest silence that ends an utterance, seconds
SHORTEST, LONGEST = 0.3, 10.0  # of an utterance, seconds


def speech_segments(samples: np.ndarray) -> list[tuple[float, float]]:
    """Begin and end, in seconds, of everything well above the quietest tenth of the recording.

    Args:
        samples: float32 `(samples,)` at 16 kHz.
    """
    size = round(FRAME * SAMPLE_RATE)
    count = len(samples) // size
    if count == 0:
        return []
    levels = 10 * np.log10(np.square(samples[: count * size].reshape(count, size)).mean(axis=1) + 1e-10)
    floor, top = np.percentile(levels, [10, 95])
    # a third of the way up, and audible at all: below -60 dB of full scale there is nothing to hear
    voiced = np.flatnonzero(levels > max(floor + (top - floor) / 3, -60))
    segments: list[tuple[float, float]] = []
    for index in voiced:
        begin, end = index * FRAME, (index + 1) * FRAME
        if segments and begin - segments[-1][1] < PAUSE and end - segments[-1][0] <= LONGEST:
            segments[-1] = (segments[-1][0], end)
        else:
            segments.append((begin, end))
    return [(round(b, 3), round(e, 3)) for b, e in segments if e - b >= SHORTEST]
