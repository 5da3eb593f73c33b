"""Files of a run. Each is written under a temporary name, flushed and renamed, so it is complete or absent."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amuse.errors import in_words

if TYPE_CHECKING:  # torch takes seconds, and most of what is written is text
    from torch import Tensor

CONFIG_FILE = "config.yaml"
LOG_FILE = "log.jsonl"  # one line per epoch
BEST = "best"  # folder of the best model in a run's folder
STANDARDIZER_FILE = "standardizer.safetensors"  # in BEST
MEDIA_FILE = "media.json"  # in BEST: the manifest of prepared data, so that `amuse predict` makes the same features
CALIBRATION_FILE = "calibration.json"  # in BEST


def check_folder_of(path: Path | None) -> None:
    """Refuse the path of a new file in a folder that does not exist, before the work that leads to it; None passes.

    Raises:
        FileNotFoundError: No such folder.
    """
    if path is not None and not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: expected a file in a folder that exists, got no folder {path.parent}")


def check_recording(path: Path) -> None:
    """Refuse what cannot be a video or audio file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A folder.
    """
    if path.is_dir():
        raise ValueError(f"{path}: expected a video or audio file, got a folder")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a video or audio file")


def write_text(text: str, path: Path) -> None:
    write_bytes(text.encode(), path)


def write_bytes(content: bytes, path: Path) -> None:
    replace_file(path, lambda temporary: temporary.write_bytes(content))


def write_csv(rows: Iterable[Iterable[object]], path: Path) -> None:
    write_text(csv_text(rows), path)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: The file is truncated or not a JSON object.
    """
    return parse_json(path.read_bytes(), path)


def parse_json(text: bytes, source: object) -> dict[str, Any]:
    """The object in JSON text; errors name its source.

    Raises:
        ValueError: The text is truncated or not a JSON object.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: not a complete JSON file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{source}: expected a JSON object, got {type(content).__name__}")
    return content


def save_tensors(tensors: dict[str, "Tensor"], path: Path, metadata: dict[str, str] | None = None) -> None:
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace_file(path, lambda temporary: save_file(contiguous, temporary, metadata))


def load_tensors(path: Path) -> dict[str, "Tensor"]:
    """Tensors of a safetensors file.

    Raises:
        ValueError: The file is truncated or of another format, such as a pickle, which is never read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a complete safetensors file: {in_words(error)}") from None


def save_state(state: object, path: Path) -> None:
    """Optimiser and counters, to be read by `torch.load(weights_only=True)`."""
    import torch

    replace_file(path, lambda temporary: torch.save(state, temporary))


def remove_leftovers(folder: Path) -> None:
    """Delete the half-written files of a killed process. Nothing else may be writing to the folder."""
    for temporary in folder.glob(".*.writing"):
        temporary.unlink()


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Has `write` make a file, which takes the place of `path` when it is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(*paths: Path) -> str:
    """SHA-256 of the concatenated contents of files, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()
