"""Utterances of a recording without a transcript: stretches of speech between pauses."""

from typing import Any, NamedTuple

import numpy as np
import torch

from amuse.encoders.signal import SAMPLE_RATE

FRAME = 0.03  # seconds
PAUSE = 0.4  # the shortest silence that ends an utterance, seconds
SHORTEST, LONGEST = 0.3, 10.0  # seconds of an utterance
WINDOW = 512  # samples that the voice activity detector reads at a time
PAD = 0.03  # seconds that are added to both ends of speech


class Segments(NamedTuple):
    """Begin and end of each utterance in seconds, and how they were found, in words."""

    times: list[tuple[float, float]]
    how: str


def speech_segments(samples: np.ndarray) -> Segments:
    """Utterances by voice, where silero-vad is installed and hears one; by loudness alone otherwise.

    Args:
        samples: float32 `(samples,)` at 16 kHz.
    """
    try:
        times = by_voice(samples)
    except ImportError:
        return Segments(by_loudness(samples), "by loudness alone; by voice: pip install amuse-kernels[speech]")
    return (
        Segments(times, "by voice") if times else Segments(by_loudness(samples), "by loudness, since no voice is heard")
    )


def by_voice(
    samples: np.ndarray, *, pause: float = PAUSE, shortest: float = SHORTEST, longest: float = LONGEST
) -> list[tuple[float, float]]:
    """Speech according to Silero's voice activity detector (Silero Team 2024); deterministic.

    Args:
        samples: float32 `(samples,)` at 16 kHz.
        pause: The shortest silence that ends a segment, in seconds.
        shortest, longest: Bounds on the length of a segment, in seconds.

    Raises:
        ImportError: Silero-vad is not installed.
    """
    detector = VoiceDetector()
    windows = [samples[begin : begin + WINDOW] for begin in range(0, len(samples), WINDOW)]
    probabilities = [detector(window) for window in windows]
    return voiced(probabilities, len(samples), pause=pause, shortest=shortest, longest=longest)


class VoiceDetector:
    """Silero's network, window after window; it remembers the windows before.

    Raises:
        ImportError: Silero-vad is not installed.
    """

    def __init__(self) -> None:
        threads = torch.get_num_threads()
        try:
            import silero_vad  # sets the number of threads to 1

            self._model: Any = silero_vad.load_silero_vad()
        finally:
            torch.set_num_threads(threads)

    @torch.inference_mode()
    def __call__(self, window: np.ndarray) -> float:
        """The probability that the next window, float32 of at most `WINDOW` samples at 16 kHz, has a voice."""
        padded = np.zeros(WINDOW, np.float32)
        padded[: len(window)] = window
        return float(self._model(torch.from_numpy(padded), SAMPLE_RATE))


def voiced(
    probabilities: list[float],
    samples: int,
    *,
    pause: float = PAUSE,
    shortest: float = SHORTEST,
    longest: float = LONGEST,
    first: int = 0,
) -> list[tuple[float, float]]:
    """Speech, from the probability of a voice in each window; begin and end in seconds.

    Args:
        probabilities: Of consecutive windows.
        samples: Their number in these windows, of which the last one may be incomplete.
        pause, shortest, longest: See `by_voice`.
        first: Number of the first window in the recording.
    """
    import silero_vad.utils_vad as silero

    found = silero.get_speech_timestamps_from_probs(
        probabilities,
        sampling_rate=SAMPLE_RATE,
        min_speech_duration_ms=round(1000 * shortest),
        max_speech_duration_s=longest,
        min_silence_duration_ms=round(1000 * pause),
        speech_pad_ms=round(1000 * PAD),
        audio_length_samples=samples,
    )
    before = first * WINDOW
    return [
        (round((part["start"] + before) / SAMPLE_RATE, 3), round((part["end"] + before) / SAMPLE_RATE, 3))
        for part in found
    ]


def by_loudness(samples: np.ndarray) -> list[tuple[float, float]]:
    """Everything well above the quietest tenth of the recording."""
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
    return [(round(float(b), 3), round(float(e), 3)) for b, e in segments if e - b >= SHORTEST]
