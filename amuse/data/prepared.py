"""Folders that `amuse data prepare` makes: features in sharded safetensors, an index of conversations, a manifest.

manifest.json   encoders, options, versions, splits: everything that decided the features
index.json      dialogues, speakers, texts, labels, times; which shard holds an utterance's features
report.json     what was wrong with the raw data
verified.json   which shards were compared with their hashes, and when they had changed last
shards/         safetensors, keys "{utterance}/{modality}", float32 (L, width)

A folder may be at a URL that fsspec opens. Its shards are fetched whole into a cache when features of theirs are read.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from sys import intern
from typing import Any

from amuse.data.conversation import Conversations, Dialogue, Utterance
from amuse.encoders.stored import Features, StoredTokens, stored_tensors
from amuse.encoders.text import default_cache_dir
from amuse.files import parse_json, read_json, write_text
from amuse.remote import GIB, FileCache, RemoteFile, is_url, read_url

MANIFEST_FILE, INDEX_FILE, REPORT_FILE, SHARDS = "manifest.json", "index.json", "report.json", "shards"
VERIFIED_FILE = "verified.json"
FORMAT = 1
CACHE_GIB = 8.0  # of copies of remote shards
CONNECTIONS = 32  # headers of remote shards that are read at a time


def read_manifest(folder: str | PathLike[str]) -> dict[str, Any]:
    """The manifest of a prepared folder, or one at a URL, with everything that decided its features.

    Raises:
        FileNotFoundError: No manifest: preparation has not finished, or it is another kind of folder.
        ValueError: A manifest of another version of the format.
    """
    return _read_json(folder, MANIFEST_FILE)


def read_prepared(
    folder: str | PathLike[str], split: str, *, verify: bool = False, cache: FileCache | None = None
) -> Conversations:
    """One split, "train", "valid" or "test"; its features stay in their shards until they are looked up.

    Every shard is checked against its hash, once: `verified.json` remembers which files, by size and time of change.
    A remote shard is checked whenever it is fetched.

    Args:
        folder: The prepared folder, or a URL that fsspec opens: "s3://bucket/folder".
        split: Its name.
        verify: Check the hashes again.
        cache: Where copies of remote shards are kept; default: 8 GiB in the user's cache folder.

    Raises:
        FileNotFoundError: No index, or a shard that it names is missing.
        ImportError: A URL whose driver is not installed; names the package.
        ValueError: No such split, or a shard that was changed or damaged.
    """
    index = _read_json(folder, INDEX_FILE)

    def open_shards(shards: list[dict[str, str]]) -> Iterable[dict[str, StoredTokens]]:
        if is_url(folder):
            return _remote_shards(str(folder), shards, cache or default_cache(), verify)
        return _local_shards(Path(folder), shards, verify)

    try:
        return _conversations(str(folder), index, split, open_shards)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{_inside(folder, INDEX_FILE)}: not an index of prepared data: {error!r}") from None


def default_cache(folder: str | PathLike[str] | None = None, gib: float = CACHE_GIB) -> FileCache:
    """Copies of remote shards in `folder`, by default the user's cache, at most `gib` GiB of them."""
    return FileCache(Path(folder or default_cache_dir()).expanduser() / SHARDS, int(gib * GIB))


def shard_block(conversations: Conversations) -> int:
    """Dialogues per remote shard, rounded up: a block in which to shuffle; 0 if nothing is remote."""
    shards = {
        entry.path
        for utterance in conversations.utterances()
        for entry in utterance.entries.values()
        if isinstance(entry, StoredTokens) and isinstance(entry.path, RemoteFile)
    }
    return -(-len(conversations) // len(shards)) if shards else 0


def _conversations(
    folder: str,
    index: dict[str, Any],
    split: str,
    open_shards: Callable[[list[dict[str, str]]], Iterable[dict[str, StoredTokens]]],
) -> Conversations:
    if split not in index["splits"]:
        raise ValueError(f"{folder}: expected one of its splits {', '.join(index['splits'])}, got {split!r}")
    content = index["splits"][split]
    modalities: dict[str, int] = index["modalities"]
    features: dict[str, dict[str, StoredTokens]] = {}
    for shard in open_shards(content["shards"]):
        for key, tokens in shard.items():
            utterance, _, modality = key.rpartition("/")
            if modality in modalities:
                features.setdefault(utterance, {})[modality] = tokens
    dialogues = []
    waiting = content["dialogues"][::-1]
    content["dialogues"].clear()
    while waiting:  # what is used up makes room for what is made of it
        dialogue = waiting.pop()
        utterances = [
            Utterance(
                **{**fields, "speaker": intern(fields["speaker"])}, features=Features(features.pop(fields["id"], {}))
            )
            for fields in dialogue["utterances"]
        ]
        dialogues.append(Dialogue(dialogue["id"], utterances))
    try:
        return Conversations(dialogues, index["label_names"], modalities)
    except ValueError as error:
        raise ValueError(f"{_inside(folder, INDEX_FILE)}: {error}") from None


def _local_shards(folder: Path, shards: list[dict[str, str]], verify: bool) -> Iterable[dict[str, StoredTokens]]:
    hashes = {folder / SHARDS / shard["file"]: shard["sha256"] for shard in shards}
    _verify(folder, hashes, again=verify)
    return map(stored_tensors, hashes)


def _remote_shards(
    url: str, shards: list[dict[str, str]], cache: FileCache, verify: bool
) -> Iterable[dict[str, StoredTokens]]:
    files = [RemoteFile(_inside(url, f"{SHARDS}/{shard['file']}"), shard["sha256"], cache) for shard in shards]
    if verify:
        for file in files:
            cache.forget(file)
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(stored_tensors, files))


def _inside(folder: str | PathLike[str], name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if isinstance(folder, str) and is_url(folder) else str(Path(folder) / name)


def _read_json(folder: str | PathLike[str], name: str) -> dict[str, Any]:
    path = _inside(folder, name)
    expected = "expected a folder that `amuse data prepare` has completed"
    if is_url(folder):
        try:
            content = parse_json(read_url(path), path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; {expected}") from None
    elif Path(path).is_file():
        content = read_json(Path(path))
    else:
        raise FileNotFoundError(f"{path}: no such file; {expected}")
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
