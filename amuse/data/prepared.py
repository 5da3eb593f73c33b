"""Folders that `amuse data prepare` makes: features in sharded safetensors, an index of conversations, a manifest.

manifest.json   encoders, options, versions, splits: everything that decided the features
index.json      dialogues, speakers, texts, labels, times; which shard holds an utterance's features
report.json     what was wrong with the raw data
shards/         safetensors, keys "{utterance}/{modality}", float32 (L, width)
"""

import hashlib
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from amuse.data.conversation import Conversations, Dialogue, Utterance
from amuse.files import read_json

MANIFEST_FILE, INDEX_FILE, REPORT_FILE, SHARDS = "manifest.json", "index.json", "report.json", "shards"
FORMAT = 1


def read_manifest(folder: str | PathLike[str]) -> dict[str, Any]:
    """The manifest of a prepared folder, with everything that decided its features.

    Raises:
        FileNotFoundError: No manifest: preparation has not finished, or it is another kind of folder.
        ValueError: A manifest of another version of the format.
    """
    return _read_json(Path(folder) / MANIFEST_FILE)


def read_prepared(folder: str | PathLike[str], split: str) -> Conversations:
    """One split, "train", "valid" or "test"; every shard is checked against its hash.

    Raises:
        FileNotFoundError: No index, or a shard that it names is missing.
        ValueError: No such split, or a shard that was changed or damaged.
    """
    folder = Path(folder)
    index = _read_json(folder / INDEX_FILE)
    try:
        return _conversations(folder, index, split)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX_FILE}: not an index of prepared data: {error!r}") from None


def _conversations(folder: Path, index: dict[str, Any], split: str) -> Conversations:
    if split not in index["splits"]:
        raise ValueError(f"{folder}: expected one of its splits {list(index['splits'])}, got {split!r}")
    content = index["splits"][split]
    modalities: dict[str, int] = index["modalities"]
    features: dict[str, dict[str, Tensor]] = {}
    for shard in content["shards"]:
        for key, tokens in _read_shard(folder / SHARDS / shard["file"], shard["sha256"]).items():
            utterance, _, modality = key.rpartition("/")
            if modality in modalities:
                features.setdefault(utterance, {})[modality] = tokens
    dialogues = [
        Dialogue(
            dialogue["id"],
            [Utterance(**fields, features=features.get(fields["id"], {})) for fields in dialogue["utterances"]],
        )
        for dialogue in content["dialogues"]
    ]
    try:
        return Conversations(dialogues, index["label_names"], modalities)
    except ValueError as error:
        raise ValueError(f"{folder / INDEX_FILE}: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a folder that `amuse data prepare` has completed")
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}, got {content.get('format')!r}; prepare the data again")
    return content


def _read_shard(path: Path, sha256: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; prepare the data again, which makes only missing shards")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{path}: its content does not match the index; delete it and prepare the data again")
    try:
        return load(data)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from None
