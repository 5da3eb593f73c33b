"""Encoders of sound and pictures by name: three that need no download, or any of transformers."""

from collections.abc import Callable

from amuse.encoders.builtin import Fer, Hog, LogMel
from amuse.encoders.signal import RAW, Encoder

AUDIO: dict[str, Callable[[float], Encoder]] = {"logmel": LogMel}
VISION: dict[str, Callable[[], Encoder]] = {"hog": Hog, "fer": Fer}


def audio_encoder(name: str, rate: float, device: str | None = "cpu") -> Encoder:
    """One of `AUDIO`, or a transformers audio encoder by name or folder, or `RAW` and one.

    Args:
        name: Its name.
        rate: Tokens per second.
        device: Where a network runs; None loads none, to prepare inputs only.

    Raises:
        ImportError, FileNotFoundError, ValueError: The encoder is unavailable; says why.
    """
    if name in AUDIO:
        return AUDIO[name](rate)
    if name.startswith(RAW):
        from amuse.encoders.raw import RawAudio

        return RawAudio(name.removeprefix(RAW), rate)
    from amuse.encoders.pretrained import PretrainedAudio

    return PretrainedAudio(name, rate, device)


def vision_encoder(name: str, device: str | None = "cpu") -> Encoder:
    """One of `VISION`, or a transformers vision encoder by name or folder, or `RAW` and one; see `audio_encoder`.

    Raises:
        ImportError, FileNotFoundError, ValueError: The encoder is unavailable; says why.
    """
    if name in VISION:
        return VISION[name]()
    if name.startswith(RAW):
        from amuse.encoders.raw import RawVision

        return RawVision(name.removeprefix(RAW))
    from amuse.encoders.pretrained import PretrainedVision

    return PretrainedVision(name, device)
