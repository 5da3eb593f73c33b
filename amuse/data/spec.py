"""A model's inputs and outputs, which follow from the data and not from its configuration."""

import math
from dataclasses import dataclass, field

from amuse.data.conversation import TOKEN_IDS
from amuse.encoders.signal import RawStream


@dataclass(frozen=True)
class DataSpec:
    """Inputs and outputs of a model.

    Attributes:
        modalities: Token stream -> width of its features; 0 = token ids.
        label_names: Classes; None = regression.
        text_encoder: Encoder of token ids, trained with the model: "minilm", a local folder or a hub name.
        raw: Streams that `amuse data prepare` stored for an encoder that is trained with the model.

    Raises:
        ValueError: No modality, or a raw stream whose width does not match its shape.
    """

    modalities: dict[str, int]
    label_names: list[str] | None = None
    text_encoder: str | None = None
    raw: dict[str, RawStream] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.modalities:
            raise ValueError("modalities: expected at least one modality, got none")
        if TOKEN_IDS in self.modalities.values() and self.text_encoder is None:
            name = next(name for name, width in self.modalities.items() if width == TOKEN_IDS)
            raise ValueError(f"text_encoder: modality {name!r} has token ids and needs an encoder, got None")
        for name, stream in self.raw.items():
            if self.modalities.get(name) != math.prod(stream.shape):
                raise ValueError(
                    f"raw: {name!r} has inputs of shape {stream.shape}, expected {math.prod(stream.shape)} numbers per "
                    f"token, got {self.modalities.get(name, 'no such stream')}"
                )

    @property
    def regression(self) -> bool:
        return self.label_names is None

    @property
    def num_outputs(self) -> int:
        return 1 if self.label_names is None else len(self.label_names)
