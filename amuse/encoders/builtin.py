"""Three encoders that need no download: log-mel bands, histograms of oriented gradients, a small expression network."""

from collections.abc import Sequence
from math import pi

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from amuse.encoders.signal import SAMPLE_RATE, pool, resized, token_count
from amuse.encoders.tflite import TfliteModel, packaged_file
from amuse.files import sha256


class LogMel:
    """Log-mel spectrogram: 64 HTK bands from 20 to 8000 Hz, 25 ms windows every 10 ms, pooled to tokens."""

    name = "logmel"
    bands = 64
    width = 2 * bands
    description = "mean and deviation of 64 log-mel bands over each token's time"

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.fingerprint = "logmel 1"
        self._window = torch.hann_window(400)
        self._filters = _mel_filters(self.bands, 512)

    def spectrogram(self, signal: np.ndarray) -> Tensor:
        """`(T, 64)`, one row every 10 ms."""
        wave = torch.from_numpy(signal)
        wave = pad(wave, (0, max(400 - len(wave), 0)))
        spectrum = torch.stft(wave, 512, hop_length=160, win_length=400, window=self._window, return_complex=True)
        return torch.log(spectrum.abs().square().T @ self._filters.T + 1e-6)

    def __call__(self, signal: np.ndarray) -> Tensor:
        frames = self.spectrogram(signal)
        tokens = token_count(len(signal), self.rate)
        mean = pool(frames, tokens)
        deviation = (pool(frames.square(), tokens) - mean.square()).clamp(min=0).sqrt()
        return torch.cat([mean, deviation], dim=1)


class Hog:
    """Histograms of oriented gradients (Dalal and Triggs 2005) and mean colours on a 4 x 4 grid of a 64 x 64 picture.

    Hand-crafted, not learned: it captures pose, framing and light, and little of expressions.
    """

    name = "hog"
    side, grid, bins = 64, 4, 9
    width = grid * grid * (bins + 3)
    description = "histograms of oriented gradients and mean colours on a 4 x 4 grid; not learned"
    fingerprint = "hog 1"

    def __call__(self, signal: Sequence[np.ndarray]) -> Tensor:
        images = torch.stack([resized(frame, self.side) for frame in signal]) / 255  # (L, 3, side, side)
        grey = images.mean(dim=1)
        right = pad(grey[:, :, 2:] - grey[:, :, :-2], (1, 1))
        down = pad(grey[:, 2:] - grey[:, :-2], (0, 0, 1, 1))
        magnitude = torch.hypot(right, down)
        direction = torch.atan2(down, right) % pi  # direction of an edge, regardless of which side is brighter
        bin_of = (direction * (self.bins / pi)).long().clamp(max=self.bins - 1)
        votes = torch.zeros(len(images), self.bins, self.side, self.side).scatter_(
            1, bin_of[:, None], magnitude[:, None]
        )
        histograms = normalize(self._cells(votes).flatten(1), dim=1)
        return torch.cat([histograms, self._cells(images).flatten(1)], dim=1)

    def _cells(self, maps: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(maps, self.side // self.grid)


class Fer:
    """Seven expression probabilities of a face, by the small network of the package fer (trained on FER-2013)."""

    name = "fer"
    classes = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    width = 7
    description = (
        "probabilities of angry, disgust, fear, happy, sad, surprise, neutral by the network of the package fer"
    )

    def __init__(self) -> None:
        path = packaged_file("fer", "fer", "data/emotion_model_quantized.tflite")
        self._model = TfliteModel(path)
        self.fingerprint = sha256(path)

    def __call__(self, signal: Sequence[np.ndarray]) -> Tensor:
        rows = []
        for frame in signal:
            grey = resized(frame, 64).mean(dim=0) / 127.5 - 1
            rows.append(self._model(grey.numpy()[None, :, :, None])[0][0])
        return torch.from_numpy(np.stack(rows)).float()


def _mel_filters(bands: int, window: int) -> Tensor:
    """Triangles of equal height, evenly spaced on the HTK mel scale: `(bands, window // 2 + 1)`."""
    lowest, highest = (float(2595 * np.log10(1 + hertz / 700)) for hertz in (20, SAMPLE_RATE / 2))
    mel = torch.linspace(lowest, highest, bands + 2, dtype=torch.float64)
    edges = 700 * (10 ** (mel / 2595) - 1)
    bins = torch.arange(window // 2 + 1, dtype=torch.float64) * SAMPLE_RATE / window
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return torch.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)).clamp(min=0).float()
