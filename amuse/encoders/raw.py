"""Sound and pictures as a transformers encoder reads them, to be encoded by the model that is trained."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from amuse.encoders.hub import encoder_folder
from amuse.encoders.pretrained import feature_extractor, image_processor
from amuse.encoders.signal import RAW, SAMPLE_RATE, RawStream
from amuse.files import sha256

SHORTEST = 800
"""Samples of a window; a convolution needs more than a click."""


class _Raw:
    def __init__(self, encoder: str, shape: Sequence[int], description: str) -> None:
        self.name = RAW + encoder
        self.raw = RawStream(encoder, list(shape))
        self.width = math.prod(shape)
        self.description = description
        self.fingerprint = sha256(*sorted(encoder_folder(encoder).glob("*processor_config.json")))


class RawAudio(_Raw):
    """Windows of sound, 1 / rate seconds each, as the encoder's feature extractor gives them; silence fills the last.

    Raises:
        ImportError, FileNotFoundError: see `encoder_folder`.
        ValueError: no feature extractor for 16 kHz, one that fills up to a fixed time, or windows too short.
    """

    def __init__(self, encoder: str, rate: float) -> None:
        self.window = round(SAMPLE_RATE / rate)
        if self.window < SHORTEST:
            raise ValueError(
                f"audio_rate: {rate:g} makes windows of {self.window} samples, expected at least {SHORTEST}. "
                f"Choose a rate of at most {SAMPLE_RATE / SHORTEST:g}; 1 makes windows of a second."
            )
        self.extractor = feature_extractor(encoder)
        if hasattr(self.extractor, "n_samples"):
            raise ValueError(
                f"encoder: {encoder} fills every window up to {self.extractor.n_samples / SAMPLE_RATE:g} s. "
                "Expected one that reads short windows to train it, such as wav2vec 2.0."
            )
        shape = self._inputs([np.zeros(self.window, np.float32)]).shape[1:]
        super().__init__(encoder, shape, f"windows of {self.window} samples for {encoder}, to be trained")

    def __call__(self, signal: np.ndarray) -> Tensor:
        count = max(math.ceil(len(signal) / self.window), 1)
        padded = np.pad(signal, (0, count * self.window - len(signal)))
        return self._inputs(np.split(padded, count)).flatten(1)

    def _inputs(self, windows: Sequence[np.ndarray]) -> Tensor:
        inputs = self.extractor(list(windows), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        return inputs[self.extractor.model_input_names[0]].float()


class RawVision(_Raw):
    """Key frames as the encoder's image processor gives them.

    Raises:
        ImportError, FileNotFoundError: see `encoder_folder`.
        ValueError: no image processor, or one whose output has the shape of the frame.
    """

    def __init__(self, encoder: str) -> None:
        self.processor = image_processor(encoder)
        high, wide = (self._inputs([np.zeros(size, np.uint8)]).shape[1:] for size in ((96, 64, 3), (64, 96, 3)))
        if high != wide:
            raise ValueError(
                f"encoder: {encoder} reads pictures of their own shape, {tuple(high)} or {tuple(wide)}. "
                "Expected an image processor that resizes or crops to one size to train it."
            )
        super().__init__(encoder, high, f"pictures for {encoder}, to be trained")

    def __call__(self, signal: Sequence[np.ndarray]) -> Tensor:
        return self._inputs(signal).flatten(1)

    def _inputs(self, pictures: Sequence[np.ndarray]) -> Tensor:
        # one by one: not every processor takes pictures of several sizes
        return torch.cat([self.processor(picture, return_tensors="pt")["pixel_values"] for picture in pictures]).float()
