"""The words of an utterance as features that are stored with those of sound and pictures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from amuse.config import DataConfig
from amuse.encoders.hub import encoder_folder
from amuse.encoders.text import FrozenTextEncoder, TextModel, TokenSequence
from amuse.files import BEST, MEDIA_FILE, read_json, sha256


@dataclass(frozen=True)
class TextOptions:
    """Everything that decides the features of words: the fields of `DataConfig` of these names."""

    encoder: str = "minilm"
    layers: tuple[int, ...] = (-1,)
    merge: str = "mean"
    pool: bool = False
    context: int = 0
    speakers: bool = False
    max_tokens: int = 128

    @classmethod
    def of(cls, config: DataConfig) -> Self:
        """Those of a configuration."""
        values = {field.name: getattr(config, field.name) for field in fields(cls)}
        return cls(**{**values, "layers": tuple(config.layers)})

    def differences(self, manifest: dict[str, Any]) -> dict[str, tuple[Any, Any]] | None:
        """Option -> its value in a manifest and here, where they differ; None if it has no features of words."""
        there = manifest.get("options", {}).get("text")
        if there is None:
            return None
        here = {**asdict(self), "layers": list(self.layers)}
        return {name: (there.get(name), value) for name, value in here.items() if there.get(name) != value}


class WordsEncoder:
    """A frozen text encoder that reads one utterance's `TokenSequence`, as a `NetworkEncoder`.

    Args:
        options: Which encoder, and what is kept of it.
        device: Where the network runs; None for processes that only prepare inputs. It is loaded when first used.

    Raises:
        ImportError, FileNotFoundError: See `amuse.encoders.hub.encoder_folder`.
        ValueError: An unknown merge.
    """

    def __init__(self, options: TextOptions, device: str | None = "cpu") -> None:
        model = TextModel(options.encoder, device or "cpu")
        self.name = options.encoder
        self._frozen = FrozenTextEncoder(model, options.layers, options.merge, options.pool, progress=False)
        if device is None:
            return
        self.width = self._frozen.width
        self.fingerprint = text_fingerprint(options.encoder)
        layers = ", ".join(map(str, options.layers))
        self.description = f"hidden layers {layers} of {model.config.model_type}, the utterance's own tokens"

    def __call__(self, signal: TokenSequence) -> Tensor:
        return self.encode([signal])[0]

    def prepare(self, signal: TokenSequence) -> TokenSequence:
        return signal

    def encode(self, inputs: Sequence[TokenSequence]) -> list[Tensor]:
        """float32 `(L, width)` on the CPU for each input; inputs of similar length share a forward pass."""
        return self._frozen.encode(inputs)


def check_text_weights(run: str | Path, config: DataConfig) -> None:
    """Raises a ValueError if a run on words of prepared data would now read others with other weights."""
    if config.dataset != "prepared":
        return
    manifest = read_json(Path(run) / BEST / MEDIA_FILE)
    if config.encoder_mode != "frozen" or TextOptions.of(config).differences(manifest) != {}:
        return  # the run has encoded the words itself
    if text_fingerprint(config.encoder) != manifest["encoders"]["text"]["fingerprint"]:
        raise ValueError(f"text: encoder {config.encoder} has different weights here than where the data was prepared")


def text_fingerprint(encoder: str) -> str:
    """Changes whenever the features would: a hash of the encoder's configuration, tokenizer and weights.

    Raises:
        ImportError, FileNotFoundError: See `amuse.encoders.hub.encoder_folder`.
    """
    folder = encoder_folder(encoder)
    return sha256(
        *sorted([*folder.glob("*config.json"), *folder.glob("tokenizer.json"), *folder.glob("*.safetensors")])
    )
