"""Audio and vision encoders of transformers, by hub name or local folder.

Their inputs are prepared on a CPU, by any process; the network then encodes the inputs of many utterances in batches.
"""

import inspect
import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from amuse.encoders.hub import encoder_folder
from amuse.encoders.signal import MIN_SAMPLES, SAMPLE_RATE, pool, token_count
from amuse.encoders.trainable import average_hidden, pretrained_model
from amuse.files import sha256

logger = logging.getLogger(__name__)


class Limits(NamedTuple):
    """Limits of one forward pass."""

    seconds: float
    pictures: int
    padding: float  # length of the longest sound, relative to the shortest


CPU = Limits(32.0, 16, 1.1)  # where larger passes are not faster, and padding costs as much as sound
ACCELERATOR = Limits(240.0, 256, 2.0)
TOLERANCE = 1e-3  # of features in a padded batch, relative to the largest; rounding gives 1e-6, a wrong mask 0.1


class SoundInput(NamedTuple):
    """A network's input for one utterance's sound.

    Attributes:
        arrays: Name of the network's argument -> its value, without the dimension of the batch.
        samples: Length of the sound at 16 kHz.
    """

    arrays: dict[str, np.ndarray]
    samples: int


class _Pretrained:
    """Without a device the weights are not loaded, and only `prepare` works."""

    def __init__(self, name: str, device: str | None) -> None:
        self.name = name
        if device is None:
            return
        model, folder = pretrained_model(name)
        self.device = torch.device(device)
        self.limits = CPU if self.device.type == "cpu" else ACCELERATOR
        self.model = model.eval().to(self.device)
        self.fingerprint = sha256(*sorted([*folder.glob("*config.json"), *folder.glob("*.safetensors")]))
        self.description = f"last hidden layer of {type(model).__name__}"


class PretrainedAudio(_Pretrained):
    """An audio encoder such as wav2vec 2.0, HuBERT, WavLM or Whisper's: hidden states, averaged within each token.

    Args:
        name: Hub name or local folder.
        rate: Tokens per second.
        device: Where the network runs; None loads none, to prepare inputs only.

    Raises:
        ImportError, FileNotFoundError: See `encoder_folder`.
        ValueError: Incomplete weights, no feature extractor, or one for a sampling rate other than 16 kHz.
    """

    def __init__(self, name: str, rate: float, device: str | None = "cpu") -> None:
        super().__init__(name, device)
        self.rate = rate
        self.extractor = feature_extractor(name)
        if device is None:
            return
        self.width = int(self.model.config.hidden_size)
        self.description += ", mean over each token's time"
        if getattr(self.model.config, "feat_extract_norm", None) == "group":
            self.model.feature_extractor = _RowByRow(self.model.feature_extractor)

    def __call__(self, signal: np.ndarray) -> Tensor:
        return self.encode([self.prepare(signal)])[0]

    def prepare(self, signal: np.ndarray) -> SoundInput:
        """The network's input for float32 `(samples,)` at 16 kHz."""
        padded = np.pad(signal, (0, max(MIN_SAMPLES - len(signal), 0)))
        inputs = self.extractor(padded, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        return SoundInput({name: tensor[0].numpy() for name, tensor in inputs.items()}, len(signal))

    @torch.inference_mode()
    def encode(self, inputs: Sequence[SoundInput]) -> list[Tensor]:
        """float32 `(L, width)` on the CPU for each input; those of similar length share a forward pass."""
        features: dict[int, Tensor] = {}
        for rows in self._batches(inputs):
            for row, hidden in zip(rows, self._hidden([inputs[row].arrays for row in rows]), strict=True):
                samples = inputs[row].samples
                if self.window is not None:
                    hidden = hidden[: max(round(len(hidden) * samples / self.window), 1)]
                features[row] = pool(hidden.float(), token_count(samples, self.rate)).cpu()
        return [features[row] for row in range(len(inputs))]

    @property
    def window(self) -> int | None:
        """Samples to which the extractor pads every sound, as Whisper's does to 30 s."""
        return getattr(self.extractor, "n_samples", None)

    @cached_property
    def pads(self) -> bool:
        """Whether sounds of different lengths can share a forward pass: tried, since architectures differ."""
        if "attention_mask" not in inspect.signature(self.model.forward).parameters:
            return False
        noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32)
        pair = [self.prepare(part).arrays for part in (noise, noise[: SAMPLE_RATE * 2 // 3])]
        try:
            together, alone = self._hidden(pair), [self._hidden([arrays])[0] for arrays in pair]
            same = all(
                a.shape == b.shape and (a - b).abs().max() <= TOLERANCE * b.abs().max()
                for a, b in zip(together, alone, strict=True)
            )
        except (RuntimeError, ValueError, TypeError) as error:
            logger.debug("%s: no padding: %s", self.name, error)
            same = False
        if not same:
            logger.warning("%s: sounds of different lengths are encoded one by one", self.name)
        return same

    def _batches(self, inputs: Sequence[SoundInput]) -> Iterator[list[int]]:
        """Rows that share a forward pass, from the longest on."""
        lengths = [len(_main(each.arrays)) for each in inputs]
        rows: list[int] = []
        for row in sorted(range(len(inputs)), key=lambda row: (-lengths[row], row)):
            if rows:
                longest = max(inputs[rows[0]].samples, self.window or 0)
                full = (len(rows) + 1) * longest > self.limits.seconds * SAMPLE_RATE
                differs = lengths[row] != lengths[rows[0]]
                far = lengths[rows[0]] > self.limits.padding * lengths[row]
                if full or (differs and (far or not self.pads)):
                    yield rows
                    rows = []
            rows.append(row)
        if rows:
            yield rows

    def _hidden(self, rows: Sequence[dict[str, np.ndarray]]) -> list[Tensor]:
        """`(T, width)` of each row, on the device."""
        lengths = [len(_main(arrays)) for arrays in rows]
        tensors = {
            name: pad_sequence([torch.from_numpy(arrays[name]) for arrays in rows], batch_first=True).to(self.device)
            for name in rows[0]
        }
        if len(set(lengths)) == 1:
            return list(self.model(**tensors).last_hidden_state)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        tensors["attention_mask"] = mask.long().to(self.device)
        if isinstance(getattr(self.model, "feature_extractor", None), _RowByRow):
            self.model.feature_extractor.lengths = lengths
        hidden = self.model(**tensors).last_hidden_state
        shrunk = getattr(self.model, "_get_feat_extract_output_lengths", None)
        used = lengths if shrunk is None else shrunk(torch.tensor(lengths)).tolist()
        return [row[:length] for row, length in zip(hidden, used, strict=True)]


class _RowByRow(nn.Module):
    """The convolutions of wav2vec 2.0, one sound at a time: their group norm would take a batch's padding for sound.

    Attributes:
        lengths: Samples of each row of the next batch; None for rows without padding.
    """

    def __init__(self, convolutions: nn.Module) -> None:
        super().__init__()
        self.convolutions = convolutions
        self.lengths: list[int] | None = None

    def forward(self, sounds: Tensor) -> Tensor:
        """`(N, samples)` to `(N, width, T)`."""
        lengths, self.lengths = self.lengths or [sounds.shape[1]] * len(sounds), None
        rows = [self.convolutions(sound[None, :length])[0].T for sound, length in zip(sounds, lengths, strict=True)]
        return pad_sequence(rows, batch_first=True).transpose(1, 2)


class PretrainedVision(_Pretrained):
    """An image encoder such as ViT, DINOv2, CLIP or ResNet: the mean of a frame's patches is one token.

    Args:
        name: Hub name or local folder.
        device: Where the network runs; None loads none, to prepare inputs only.

    Raises:
        ImportError, FileNotFoundError: See `encoder_folder`.
        ValueError: Incomplete weights or no image processor.
    """

    def __init__(self, name: str, device: str | None = "cpu") -> None:
        super().__init__(name, device)
        self.processor = image_processor(name)
        if device is None:
            return
        self.width = self([np.zeros((64, 64, 3), np.uint8)]).shape[1]
        self.description += ", mean over patches"

    def __call__(self, signal: Sequence[np.ndarray]) -> Tensor:
        return self.encode([self.prepare(signal)])[0]

    def prepare(self, signal: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The network's inputs `(3, H, W)` for uint8 `(h, w, 3)` frames."""
        # one by one: not every processor takes pictures of several sizes
        return [self.processor(frame, return_tensors="pt")["pixel_values"][0].numpy() for frame in signal]

    @torch.inference_mode()
    def encode(self, inputs: Sequence[Sequence[np.ndarray]]) -> list[Tensor]:
        """float32 `(L, width)` on the CPU for the L pictures of each utterance; pictures of one shape share passes."""
        pictures = [picture for utterance in inputs for picture in utterance]
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, picture in enumerate(pictures):
            groups.setdefault(picture.shape, []).append(place)
        tokens: dict[int, Tensor] = {}
        for places in groups.values():
            for begin in range(0, len(places), self.limits.pictures):
                chunk = places[begin : begin + self.limits.pictures]
                pixels = torch.from_numpy(np.stack([pictures[place] for place in chunk])).to(self.device)
                rows = average_hidden(self.model(pixel_values=pixels).last_hidden_state).float().cpu()
                tokens.update(zip(chunk, rows, strict=True))
        counts = [len(utterance) for utterance in inputs]
        return list(torch.stack([tokens[place] for place in range(len(pictures))]).split(counts)) if pictures else []


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


def _main(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The sound itself among the network's arguments, time first unless its length is fixed."""
    return next(array for name, array in arrays.items() if name != "attention_mask")
