"""Sound and pictures as encoders read them, and the protocols of encoders."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, interpolate

SAMPLE_RATE = 16000

MIN_SAMPLES = 800
"""The fewest samples that the convolutions of audio encoders accept."""


@dataclass
class RawStream:
    """A stream of flattened windows of sound or key frames, for an encoder that is trained with the model."""

    encoder: str  # a transformers audio or vision model: local folder or hub name
    shape: list[int]  # its input for one token, e.g. [3, 224, 224]


class Encoder(Protocol):
    """Sound or pictures of one utterance to token features.

    Attributes:
        name: As the user chose it.
        width: Feature width.
        description: What the features are, in words.
        fingerprint: Changes whenever the features would.
    """

    name: str
    width: int
    description: str
    fingerprint: str

    def __call__(self, signal: Any) -> Tensor:
        """float32 `(L, width)` from float32 `(samples,)` at 16 kHz, or from L uint8 `(H, W, 3)` frames of any sizes.

        A frame's token depends on that frame alone: explanations encode single frames again.
        """


@runtime_checkable
class NetworkEncoder(Protocol):
    """An encoder in two steps: any process prepares inputs, the one with the network encodes many of them."""

    def prepare(self, signal: Any) -> Any:
        """The network's input for the signal of one utterance; NumPy arrays, cheap to send to another process."""

    def encode(self, inputs: Sequence[Any]) -> list[Tensor]:
        """The encoder's features of each of the signals, up to rounding."""


RAW = "raw:"
"""Prefix of a transformers encoder's name: store what it reads, and train it with the model."""


def token_count(samples: int, rate: float) -> int:
    """Number of tokens for sound of this length at `rate` tokens per second; at least one."""
    return max(round(samples / SAMPLE_RATE * rate), 1)


def pool(frames: Tensor, tokens: int) -> Tensor:
    """`(T, d)` to `(tokens, d)`, the mean of each of `tokens` equal parts."""
    return adaptive_avg_pool1d(frames.T[None], tokens)[0].T


def resized(frame: np.ndarray, side: int) -> Tensor:
    """A uint8 `(H, W, 3)` picture as float32 `(3, side, side)`, 0 to 255."""
    return scaled(frame, (side, side)).float()


def scaled(frame: np.ndarray, size: tuple[int, int]) -> Tensor:
    """A uint8 `(H, W, 3)` picture as uint8 `(3, *size)`, antialiased."""
    pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
    return interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)[0]
