"""Folders that `amuse data prepare` makes: features in sharded safetensors, an index of conversations, a manifest.

manifest.json   encoders, options, versions, splits: everything that decided the features
index.json      dialogues, speakers, texts, labels, times; which shard holds an utterance's features
report.json     what was wrong with the raw data
verified.json   which shards were compared with their hashes, and when they had changed last
shards/         safetensors, keys "{utterance}/{modality}", float32 (L, width)
"""

import contextlib
import hashlib
import json
from os import PathLike
from pathlib import Path
from typing import Any

from amuse.data.conversation import Conversations, Dialogue, Utterance
from amuse.encoders.stored import Features, StoredTokens, stored_tensors
from amuse.files import read_json, write_text

MANIFEST_FILE, INDEX_FILE, REPORT_FILE, SHARDS = "manifest.json", "index.json", "report.json", "shards"
VERIFIED_FILE = "verified.json"
FORMAT = 1


def read_manifest(folder: str | PathLike[str]) -> dict[str, Any]:
    """The manifest of a prepared folder, with everything that decided its features.

    Raises:
        FileNotFoundError: No manifest: preparation has not finished, or it is another kind of folder.
        ValueError: A manifest of another version of the format.
    """
    return _read_json(Path(folder) / MANIFEST_FILE)


def read_prepared(folder: str | PathLike[str], split: str, *, verify: bool = False) -> Conversations:
    """One split, "train", "valid" or "test"; its features stay in their shards until they are looked up.

    Every shard is checked against its hash, once: `verified.json` remembers which files, by size and time of change.

    Args:
        folder: The prepared folder.
        split: Its name.
        verify: Check the hashes again.

    Raises:
        FileNotFoundError: No index, or a shard that it names is missing.
        ValueError: No such split, or a shard that was changed or damaged.
    """
    folder = Path(folder)
    index = _read_json(folder / INDEX_FILE)
    try:
        return _conversations(folder, index, split, verify)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX_FILE}: not an index of prepared data: {error!r}") from None


def _conversations(folder: Path, index: dict[str, Any], split: str, verify: bool) -> Conversations:
    if split not in index["splits"]:
        raise ValueError(f"{folder}: expected one of its splits {list(index['splits'])}, got {split!r}")
    content = index["splits"][split]
    modalities: dict[str, int] = index["modalities"]
    hashes = {folder / SHARDS / shard["file"]: shard["sha256"] for shard in content["shards"]}
    _verify(folder, hashes, again=verify)
    features: dict[str, dict[str, StoredTokens]] = {}
    for shard in hashes:
        for key, tokens in stored_tensors(shard).items():
            utterance, _, modality = key.rpartition("/")
            if modality in modalities:
                features.setdefault(utterance, {})[modality] = tokens
    dialogues = [
        Dialogue(
            dialogue["id"],
            [
                Utterance(**fields, features=Features(features.get(fields["id"], {})))
                for fields in dialogue["utterances"]
            ],
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


def _verify(folder: Path, hashes: dict[Path, str], again: bool) -> None:
    """Compares every shard with its hash, but for those that were compared before and have not changed since."""
    memory = folder / VERIFIED_FILE
    known, found = {}, {}
    if memory.is_file() and not again:
        with contextlib.suppress(ValueError):  # damaged: nothing is known
            known = read_json(memory)
    for path, sha256 in hashes.items():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; prepare the data again, which makes only missing shards")
        status = path.stat()
        state = [sha256, status.st_size, status.st_mtime_ns]
        if known.get(path.name) != state:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise ValueError(
                        f"{path}: its content does not match the index; delete it and prepare the data again"
                    )
            found[path.name] = state
    if found:
        with contextlib.suppress(OSError):  # a folder that may only be read is verified every time
            write_text(json.dumps({**known, **found}), memory)
