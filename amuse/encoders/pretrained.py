"""Audio and vision encoders of transformers, by hub name or local folder."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amuse.encoders.hub import encoder_folder
from amuse.encoders.signal import MIN_SAMPLES, SAMPLE_RATE, pool, token_count
from amuse.encoders.trainable import average_hidden, pretrained_model
from amuse.files import sha256


class _Pretrained:
    def __init__(self, name: str, device: str) -> None:
        model, folder = pretrained_model(name)
        self.name = name
        self.device = torch.device(device)
        self.model = model.eval().to(self.device)
        self.fingerprint = sha256(*sorted([*folder.glob("*config.json"), *folder.glob("*.safetensors")]))
        self.description = f"last hidden layer of {type(model).__name__}"


class PretrainedAudio(_Pretrained):
    """An audio encoder such as wav2vec 2.0, HuBERT, WavLM or Whisper's: hidden states, averaged within each token.

    Raises:
        ImportError, FileNotFoundError: See `encoder_folder`.
        ValueError: Incomplete weights, no feature extractor, or one for a sampling rate other than 16 kHz.
    """

    def __init__(self, name: str, rate: float, device: str = "cpu") -> None:
        super().__init__(name, device)
        self.rate = rate
        self.extractor = feature_extractor(name)
        self.width = int(self.model.config.hidden_size)
        self.description += ", mean over each token's time"

    @torch.inference_mode()
    def __call__(self, signal: np.ndarray) -> Tensor:
        padded = np.pad(signal, (0, max(MIN_SAMPLES - len(signal), 0)))
        inputs = self.extractor(padded, sampling_rate=SAMPLE_RATE, return_tensors="pt").to(self.device)
        hidden = self.model(**inputs).last_hidden_state[0].float().cpu()
        window = getattr(self.extractor, "n_samples", None)  # Whisper's extractor pads to 30 s
        if window is not None:
            hidden = hidden[: max(round(len(hidden) * len(signal) / window), 1)]
        return pool(hidden, token_count(len(signal), self.rate))


class PretrainedVision(_Pretrained):
    """An image encoder such as ViT, DINOv2, CLIP or ResNet: the mean of a frame's patches is one token.

    Raises:
        ImportError, FileNotFoundError: See `encoder_folder`.
        ValueError: Incomplete weights or no image processor.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        super().__init__(name, device)
        self.processor = image_processor(name)
        self.width = self([np.zeros((64, 64, 3), np.uint8)]).shape[1]
        self.description += ", mean over patches"

    @torch.inference_mode()
    def __call__(self, signal: Sequence[np.ndarray]) -> Tensor:
        inputs = self.processor(list(signal), return_tensors="pt").to(self.device)
        return average_hidden(self.model(pixel_values=inputs["pixel_values"]).last_hidden_state).float().cpu()


def feature_extractor(name: str) -> Any:
    """The feature extractor that prepares sound for the audio encoder of that name.

    Raises:
        ValueError: There is none, or one for a sampling rate other than 16 kHz.
    """
    from transformers import AutoFeatureExtractor

    extractor = _processor(AutoFeatureExtractor, name)
    if extractor.sampling_rate != SAMPLE_RATE:
        raise ValueError(f"encoder: {name} reads {extractor.sampling_rate} Hz, expected {SAMPLE_RATE} Hz")
    return extractor


def image_processor(name: str) -> Any:
    """The image processor that prepares pictures for the vision encoder of that name.

    Raises:
        ValueError: There is none.
    """
    from transformers import AutoImageProcessor

    return _processor(AutoImageProcessor, name)


def _processor(kind: Any, name: str) -> Any:
    try:
        return kind.from_pretrained(encoder_folder(name), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"encoder: {name} has no usable preprocessor_config.json: {error}") from None
