"""Prepared data as a data set of Parquet files, for the Hugging Face hub and the tools that read it, and back.

A row is an utterance, in the order of the dialogues; the columns declare their features as the library `datasets` does.
"""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from amuse.data.conversation import Conversations
from amuse.data.hub_files import dataset_folder, import_arrow, import_hub
from amuse.data.prepared import FORMAT, INDEX_FILE, MANIFEST_FILE, REPORT_FILE, SHARDS, read_manifest, read_prepared
from amuse.files import read_json, save_tensors, sha256, write_text

HUB = "hf:"
"""Prefix of the name of a data set on the hub."""
FILES = "data"  # folder of the Parquet files
ROWS_IN_MEMORY, ROWS_IN_FILE = 64, 8192
STRINGS, TIMES = ("dialogue", "id", "speaker", "text"), ("start", "end")
COLUMNS = (*STRINGS, *TIMES, "label")
FEATURES = "_features"  # behind the name of a modality that is in `COLUMNS`
SPLIT_ON_HUB = {"train": "train", "valid": "validation", "test": "test"}


def push(prepared: Path, target: str) -> None:
    """Publishes a prepared folder as a private data set, or writes it to a folder.

    Args:
        prepared: The folder.
        target: `hf:OWNER/NAME`, or a new folder.

    Raises:
        FileExistsError: The folder exists.
        FileNotFoundError, ValueError: Not a complete prepared folder.
        ImportError: pyarrow or huggingface_hub is not installed.
    """
    if not target.startswith(HUB):
        write_parquet(prepared, Path(target))
        return
    name, staging = target.removeprefix(HUB), prepared / "parquet"
    api = import_hub().HfApi()
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was interrupted
    write_parquet(prepared, staging)
    try:
        api.create_repo(name, repo_type="dataset", private=True, exist_ok=True)
        api.upload_folder(repo_id=name, repo_type="dataset", folder_path=str(staging))
    finally:
        shutil.rmtree(staging)


def pull(source: str, out: Path) -> None:
    """Makes a prepared folder of what `push` wrote.

    Args:
        source: `hf:OWNER/NAME`, or a folder.
        out: A new folder.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError, ValueError: Not a data set that `push` wrote.
        ImportError: pyarrow or huggingface_hub is not installed.
    """
    read_parquet(dataset_folder(source.removeprefix(HUB)), out)


def write_parquet(prepared: Path, out: Path) -> None:
    """Writes `data/SPLIT-00000-of-00001.parquet`, manifest, report, and a card that says which file is whose split."""
    pa, parquet = import_arrow()
    if out.exists():
        raise FileExistsError(f"{out}: expected a new folder")
    manifest, index = read_manifest(prepared), read_json(prepared / INDEX_FILE)
    schema = _schema(pa, index["modalities"], index["label_names"])
    (out / FILES).mkdir(parents=True)
    for split in index["splits"]:
        conversations = read_prepared(prepared, split)
        count = -(-conversations.num_utterances // ROWS_IN_FILE)
        rows = _rows(conversations)
        for number in range(count):
            path = out / FILES / f"{SPLIT_ON_HUB[split]}-{number:05d}-of-{count:05d}.parquet"
            with parquet.ParquetWriter(path, schema) as writer:
                for _ in range(ROWS_IN_FILE // ROWS_IN_MEMORY):
                    if group := list(itertools.islice(rows, ROWS_IN_MEMORY)):
                        writer.write_table(pa.Table.from_pylist(group, schema))
    for name in (REPORT_FILE, MANIFEST_FILE):
        if (prepared / name).is_file():
            shutil.copy(prepared / name, out / name)
    write_text(_card(manifest, list(index["splits"])), out / "README.md")


def read_parquet(folder: Path, out: Path) -> None:
    """Writes a prepared folder with the conversations of the files; the manifest, which marks it complete, is last."""
    if out.exists():
        raise FileExistsError(f"{out}: expected a new folder")
    manifest = read_manifest(folder)
    found = {split: sorted((folder / FILES).glob(f"{name}-*.parquet")) for split, name in SPLIT_ON_HUB.items()}
    found = {split: files for split, files in found.items() if files}
    if not found:
        raise FileNotFoundError(f"{folder / FILES}: expected Parquet files of {', '.join(SPLIT_ON_HUB.values())}")
    names, widths = _declared(next(iter(found.values()))[0])
    (out / SHARDS).mkdir(parents=True)
    shard_size = int(manifest["shard_size"])
    splits = {split: _split(files, split, out, widths, shard_size) for split, files in found.items()}
    index = {"format": FORMAT, "label_names": names, "modalities": widths, "splits": splits}
    write_text(json.dumps(index, indent=1), out / INDEX_FILE)
    for name in (REPORT_FILE, MANIFEST_FILE):
        if (folder / name).is_file():
            shutil.copy(folder / name, out / name)


def _rows(conversations: Conversations) -> Iterator[dict[str, Any]]:
    for dialogue in conversations.dialogues:
        for u in dialogue.utterances:
            row = {"dialogue": dialogue.id, "label": u.label}
            row |= {name: getattr(u, name) for name in (*STRINGS[1:], *TIMES)}
            yield row | {
                _column(m): list(u.features[m].numpy()) if m in u.features else None for m in conversations.modalities
            }


def _schema(pa: Any, modalities: dict[str, int], label_names: list[str] | None) -> Any:
    """The columns, and what `datasets` reads of them from the file's metadata."""
    columns: dict[str, Any] = {name: (pa.string(), _value("string")) for name in STRINGS}
    columns |= {name: (pa.float64(), _value("float64")) for name in TIMES}
    columns["label"] = (pa.float64(), _value("float64"))
    if label_names is not None:
        columns["label"] = (pa.int64(), {"names": label_names, "_type": "ClassLabel"})
    for modality, width in modalities.items():
        token = {"feature": _value("float32"), "length": width, "_type": "List"}
        columns[_column(modality)] = (pa.list_(pa.list_(pa.float32(), width)), {"feature": token, "_type": "List"})
    described = {"info": {"features": {name: feature for name, (_, feature) in columns.items()}}}
    fields = [pa.field(name, kind) for name, (kind, _) in columns.items()]
    return pa.schema(fields, {"huggingface": json.dumps(described)})


def _column(modality: str) -> str:
    """Where the words are features too, the column of their name is that of the words themselves."""
    return f"{modality}{FEATURES}" if modality in COLUMNS else modality


def _value(dtype: str) -> dict[str, str]:
    return {"dtype": dtype, "_type": "Value"}


def _declared(path: Path) -> tuple[list[str] | None, dict[str, int]]:
    """Class names and the widths of the modalities of a file that `write_parquet` wrote."""
    _, parquet = import_arrow()
    metadata = parquet.read_schema(path).metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        tokens = {name: column["feature"] for name, column in features.items() if column["_type"] == "List"}
        named = {f"{name}{FEATURES}": name for name in COLUMNS}
        widths = {named.get(column, column): int(token["length"]) for column, token in tokens.items()}
        return features["label"].get("names"), widths
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected the features that `amuse data push` declares: {error!r}") from None


def _split(files: list[Path], split: str, out: Path, widths: dict[str, int], shard_size: int) -> dict[str, Any]:
    """Writes the shards of a split, and returns its part of the index."""
    _, parquet = import_arrow()
    shards: list[dict[str, str]] = []
    dialogues: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    waiting = 0  # utterances in `tensors`

    def write_shard() -> None:
        path = out / SHARDS / f"{split}-{len(shards):06d}.safetensors"
        save_tensors(tensors, path)
        shards.append({"file": path.name, "sha256": sha256(path)})
        tensors.clear()

    for path in files:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=ROWS_IN_MEMORY):
            plain = batch.select([*STRINGS, *TIMES, "label"]).to_pylist()
            for number, row in enumerate(plain):
                dialogue = row.pop("dialogue")
                if not dialogues or dialogues[-1]["id"] != dialogue:
                    dialogues.append({"id": dialogue, "utterances": []})
                dialogues[-1]["utterances"].append(row)
                for modality, width in widths.items():
                    tokens = batch.column(_column(modality))[number]
                    if tokens.is_valid:
                        flat = np.array(tokens.values.flatten(), np.float32).reshape(-1, width)
                        tensors[f"{row['id']}/{modality}"] = torch.from_numpy(flat)
                waiting += 1
                if waiting == shard_size:
                    write_shard()
                    waiting = 0
    if waiting:
        write_shard()
    return {"shards": shards, "dialogues": dialogues}


def _card(manifest: dict[str, Any], splits: list[str]) -> str:
    files = [{"split": SPLIT_ON_HUB[split], "path": f"{FILES}/{SPLIT_ON_HUB[split]}-*.parquet"} for split in splits]
    front = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": files}]}, sort_keys=False)
    encoders = "\n".join(f"- `{m}`: {e['name']}, {e['description']}" for m, e in manifest["encoders"].items())
    return (
        f"---\n{front}---\n\nFeatures of conversations, one utterance per row, made by `amuse data prepare`; "
        f"manifest.json says how.\n\n{encoders}\n\n"
        "`amuse data pull` makes the folder that `amuse train --data` reads.\n"
    )
