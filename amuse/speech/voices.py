"""Speaker embeddings: Resemblyzer's network, or an x-vector model of transformers."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, relu

from amuse.encoders.hub import encoder_folder, import_transformers
from amuse.encoders.pretrained import feature_extractor
from amuse.encoders.signal import SAMPLE_RATE
from amuse.encoders.tflite import packaged_file

RESEMBLYZER = "resemblyzer"
BATCH = 64


class VoiceEncoder(Protocol):
    """From sound to speaker embeddings.

    Attributes:
        description: Which one it is, in words.
    """

    description: str

    def __call__(self, windows: Sequence[np.ndarray]) -> Tensor:
        """float32 `(N, d)`, rows of norm one, from N windows of speech, equally long float32 `(samples,)` at 16 kHz."""


def voice_encoder(name: str = RESEMBLYZER) -> VoiceEncoder:
    """The encoder of that name: `"resemblyzer"`, or a folder or hub name of a transformers x-vector model.

    Raises:
        ImportError: Weights or a library are missing; says how to install them.
        FileNotFoundError, ValueError: No usable model of that name.
    """
    return Resemblyzer() if name == RESEMBLYZER else XVector(name)


class Resemblyzer(nn.Module):
    """The network of Wan et al. (2018), "Generalized end-to-end loss for speaker verification", trained by Resemblyzer.

    The weights are in the package Resemblyzer, whose own code is not used: it needs librosa and a C compiler.
    """

    description = "Resemblyzer's voice encoder"
    _FFT, _HOP, _BANDS, _WIDTH = 400, 160, 40, 256

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(self._BANDS, self._WIDTH, num_layers=3, batch_first=True)
        self.linear = nn.Linear(self._WIDTH, self._WIDTH)
        path = packaged_file("resemblyzer", "Resemblyzer", "pretrained.pt")
        state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
        self.load_state_dict({key: value for key, value in state.items() if not key.startswith("similarity_")})
        self.requires_grad_(False)
        self._window = torch.hann_window(self._FFT)
        self._filters = slaney_filters(self._BANDS, self._FFT)

    @torch.inference_mode()
    def forward(self, windows: Sequence[np.ndarray]) -> Tensor:
        rows = []
        for begin in range(0, len(windows), BATCH):
            sound = torch.from_numpy(np.stack(windows[begin : begin + BATCH]))
            # quiet sound is raised to the level of the training data; loud sound stays as it is
            level = sound.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-8)
            sound = sound * (10 ** (-30 / 20) / level).clamp(min=1.0)
            spectrum = torch.stft(
                sound, self._FFT, self._HOP, window=self._window, pad_mode="constant", return_complex=True
            )
            mel = (self._filters @ spectrum.abs().square()).transpose(1, 2)
            hidden = self.lstm(mel)[1][0][-1]
            rows.append(normalize(relu(self.linear(hidden)), dim=1))
        return torch.cat(rows)


class XVector:
    """A transformers model with an x-vector head, such as WavLM's for speaker verification.

    Raises:
        ImportError, FileNotFoundError: See `encoder_folder`.
        ValueError: Not such a model, or incomplete weights.
    """

    def __init__(self, name: str) -> None:
        transformers = import_transformers()
        folder = encoder_folder(name)
        try:
            self.model, info = transformers.AutoModelForAudioXVector.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except ValueError as error:
            raise ValueError(f"voices: {name} is not an x-vector model: {str(error).splitlines()[0]}") from None
        # the last layer, which classifies the speakers of the training data, is not used
        absent = sorted(key for key in info["missing_keys"] if not key.startswith(("objective", "classifier")))
        if absent:
            raise ValueError(f"voices: {name} lacks {len(absent)} weights of its architecture, e.g. {absent[0]}")
        self.model.eval()
        self.extractor: Any = feature_extractor(name)
        self.description = f"x-vectors of {name}"

    @torch.inference_mode()
    def __call__(self, windows: Sequence[np.ndarray]) -> Tensor:
        rows = []
        for begin in range(0, len(windows), BATCH):
            inputs = self.extractor(
                list(windows[begin : begin + BATCH]), sampling_rate=SAMPLE_RATE, padding=True, return_tensors="pt"
            )
            rows.append(normalize(self.model(**inputs).embeddings.float(), dim=1))
        return torch.cat(rows)


def slaney_filters(bands: int, window: int) -> Tensor:
    """Triangles of equal area on Slaney's mel scale, linear below 1 kHz: `(bands, window // 2 + 1)`."""
    bends, step, growth = 1000.0, 200.0 / 3, np.log(6.4) / 27.0
    highest = bends / step + np.log(SAMPLE_RATE / 2 / bends) / growth
    mel = np.linspace(0.0, highest, bands + 2)
    edges = np.where(mel < bends / step, step * mel, bends * np.exp(growth * (mel - bends / step)))
    hertz = np.arange(window // 2 + 1) * SAMPLE_RATE / window
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((hertz - low) / (middle - low), (high - hertz) / (high - middle)).clip(min=0)
    return torch.from_numpy(triangles * 2 / (high - low)).float()
