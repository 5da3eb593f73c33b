"""Sound and pictures as a transformers encoder reads them, for an encoder that is trained with the model."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from amuse.encoders.hub import encoder_folder
from amuse.encoders.pretrained import feature_extractor, image_processor
from amuse.encoders.signal import MIN_SAMPLES, RAW, SAMPLE_RATE, RawStream
from amuse.files import sha256


class _Raw:
    def __init__(self, encoder: str, shape: Sequence[int], description: str) -> None:
        self.name = RAW + encoder
        self.raw = RawStream(encoder, list(shape))
        self.width = math.prod(shape)
        self.description = description
        self.fingerprint = sha256(*sorted(encoder_folder(encoder).glob("*processor_config.json")))


class RawAudio(_Raw):
    """Windows of sound, 1 / rate seconds each, as the encoder's feature extractor gives them; the last is padded.

    Raises:
        ImportError, FileNotFoundError: See `encoder_folder`.
        ValueError: No feature extractor for 16 kHz, one that pads to a fixed time, or windows that are too short.
    """

    def __init__(self, encoder: str, rate: float) -> None:
        self.window = round(SAMPLE_RATE / rate)
        if self.window < MIN_SAMPLES:
            raise ValueError(
                f"audio_rate: {rate:g} gives windows of {self.window} samples, expected at least {MIN_SAMPLES}. "
                f"Choose a rate of at most {SAMPLE_RATE / MIN_SAMPLES:g}; a rate of 1 gives windows of one second."
            )
        self.extractor = feature_extractor(encoder)
        if hasattr(self.extractor, "n_samples"):
            raise ValueError(
                f"encoder: {encoder} pads every window to {self.extractor.n_samples / SAMPLE_RATE:g} s. "
                "Training expects one that reads short windows, such as wav2vec 2.0."
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
        ImportError, FileNotFoundError: See `encoder_folder`.
        ValueError: No image processor, or one whose output has the shape of the frame.
    """

    def __init__(self, encoder: str) -> None:
        self.processor = image_processor(encoder)
        high, wide = (self._inputs([np.zeros(size, np.uint8)]).shape[1:] for size in ((96, 64, 3), (64, 96, 3)))
        if high != wide:
            raise ValueError(
                f"encoder: {encoder} keeps the shape of each picture, {tuple(high)} or {tuple(wide)}. "
                "Training expects an image processor that resizes or crops to one size."
            )
        super().__init__(encoder, high, f"pictures for {encoder}, to be trained")

    def __call__(self, signal: Sequence[np.ndarray]) -> Tensor:
        return self._inputs(signal).flatten(1)

    def _inputs(self, pictures: Sequence[np.ndarray]) -> Tensor:
        # one by one: not every processor takes pictures of several sizes
        return torch.cat([self.processor(picture, return_tensors="pt")["pixel_values"] for picture in pictures]).float()
