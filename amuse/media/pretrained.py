"""Audio and vision encoders of transformers, by hub name or local folder."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amuse.data.text import encoder_folder
from amuse.media.decode import SAMPLE_RATE
from amuse.media.encoders import pool, sha256, token_count


class _Pretrained:
    def __init__(self, name: str, device: str) -> None:
        import transformers

        folder = encoder_folder(name)
        model, info = transformers.AutoModel.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        # weights that a checkpoint lacks would be random; a pooler is not used, and often missing
        absent = sorted(key for key in info["missing_keys"] if "pooler" not in key and "mask" not in key)
        if absent:
            raise ValueError(f"encoder: {name} lacks {len(absent)} weights of its architecture, e.g. {absent[0]}")
        self.name = name
        self.device = torch.device(device)
        self.model = model.float().eval().to(self.device)
        self.folder = folder
        self.fingerprint = sha256(*sorted([*folder.glob("*config.json"), *folder.glob("*.safetensors")]))
        self.description = f"last hidden layer of {type(model).__name__}"

    def _processor(self, kind: Any) -> Any:
        try:
            return kind.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"encoder: {self.name} has no usable preprocessor_config.json: {error}") from None


class PretrainedAudio(_Pretrained):
    """An audio encoder such as wav2vec 2.0, HuBERT, WavLM or Whisper's: hidden states, averaged within each token.

    Raises:
        ImportError, FileNotFoundError: see `encoder_folder`.
        ValueError: incomplete weights, no feature extractor, or one for another sampling rate than 16 kHz.
    """

    def __init__(self, name: str, rate: float, device: str = "cpu") -> None:
        super().__init__(name, device)
        from transformers import AutoFeatureExtractor

        self.rate = rate
        self.extractor = self._processor(AutoFeatureExtractor)
        if self.extractor.sampling_rate != SAMPLE_RATE:
            got = self.extractor.sampling_rate
            raise ValueError(f"encoder: {name} reads {got} Hz, expected {SAMPLE_RATE} Hz")
        if self.model.config.is_encoder_decoder:
            self.model = self.model.get_encoder()
        self.width = int(self.model.config.hidden_size)
        self.description += ", mean over each token's time"

    @torch.inference_mode()
    def __call__(self, signal: np.ndarray) -> Tensor:
        padded = np.pad(signal, (0, max(800 - len(signal), 0)))  # a convolution needs more than a click
        inputs = self.extractor(padded, sampling_rate=SAMPLE_RATE, return_tensors="pt").to(self.device)
        hidden = self.model(**inputs).last_hidden_state[0].float().cpu()
        window = getattr(self.extractor, "n_samples", None)  # Whisper's extractor fills up to 30 s
        if window is not None:
            hidden = hidden[: max(round(len(hidden) * len(signal) / window), 1)]
        return pool(hidden, token_count(len(signal), self.rate))


class PretrainedVision(_Pretrained):
    """An image encoder such as ViT, DINOv2, CLIP or ResNet: the mean of a frame's patches is one token.

    Raises:
        ImportError, FileNotFoundError: see `encoder_folder`.
        ValueError: incomplete weights or no image processor.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        super().__init__(name, device)
        from transformers import AutoImageProcessor

        self.processor = self._processor(AutoImageProcessor)
        self.model = getattr(self.model, "vision_model", self.model)  # of CLIP and its kin
        self.width = self([np.zeros((64, 64, 3), np.uint8)]).shape[1]
        self.description += ", mean over patches"

    @torch.inference_mode()
    def __call__(self, signal: Sequence[np.ndarray]) -> Tensor:
        inputs = self.processor(list(signal), return_tensors="pt").to(self.device)
        hidden = self.model(pixel_values=inputs["pixel_values"]).last_hidden_state
        # (L, patches, d) of transformers, (L, d, H, W) of convolutional networks
        tokens = hidden.mean(dim=1) if hidden.dim() == 3 else hidden.mean(dim=(2, 3))
        return tokens.float().cpu()
