"""Files of Hugging Face data sets, local or on the hub: which belong to a split, and their rows.

The library `datasets` is not used: it passes a CSV and the recordings next to it to its CSV reader together, needs
torchcodec for anything with sound, and copies all data into its own cache.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from amuse.data.delimited import read_table, read_text
from amuse.data.folder import SPLIT_NAMES
from amuse.data.problems import Problem, ProblemHandler
from amuse.errors import in_words

KINDS = (".parquet", ".csv", ".tsv", ".jsonl")
"""Suffixes of files of rows; if a data set has several kinds, the first is used."""
ROWS = 16
"""Rows of Parquet in memory at a time, with their recordings."""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FRONT_MATTER = re.compile(r"---\s*\n(.*?)\n---\s*(?:\n|$)", re.DOTALL)
_NEEDS_EXTRA = "Hugging Face data sets need pyarrow and huggingface_hub: pip install amuse-kernels[datasets]"


class MediaCell(NamedTuple):
    """A cell that holds a recording: its path, and its bytes if they are in the file itself."""

    name: str
    content: bytes | None


class HubRow(NamedTuple):
    """A row: its place, for reports, its file, and its cells."""

    place: str
    file: Path
    cells: dict[str, Any]


def import_arrow() -> tuple[Any, Any]:
    """The packages pyarrow and pyarrow.parquet.

    Raises:
        ImportError: They are missing; says how to install them.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ImportError(_NEEDS_EXTRA) from None
    return pyarrow, parquet


def import_hub() -> Any:
    """The package huggingface_hub.

    Raises:
        ImportError: It is missing; says how to install it.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError(_NEEDS_EXTRA) from None
    return huggingface_hub


def dataset_folder(name: str | Path) -> Path:
    """A local folder, or the folder of a data set in the hub's cache, downloaded if necessary.

    Raises:
        FileNotFoundError: No such folder, and the hub does not provide it.
        ImportError: A name of the hub without `huggingface_hub`.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if not _HUB_NAME.fullmatch(str(name)):
        raise FileNotFoundError(f"{name}: expected a folder, or a data set of the Hugging Face hub as OWNER/NAME")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ImportError(_NEEDS_EXTRA) from None
    try:
        return Path(snapshot_download(str(name), repo_type="dataset"))
    except Exception as error:  # the hub's client raises errors of several libraries
        raise FileNotFoundError(f"{name}: no such folder, and the hub does not provide it: {error}") from None


def split_files(folder: Path, subset: str | None, report: ProblemHandler) -> dict[str, list[Path]]:
    """Split -> its files of rows, by the data set's card (README.md) or else by the names of files and folders.

    Args:
        folder: See `dataset_folder`.
        subset: Name of a configuration; None = the only or the default one.
        report: Takes a `stray_file` for each file or split that is not used.

    Raises:
        FileNotFoundError: No files of rows.
        ValueError: A card that cannot be read, or no configuration of that name.
    """
    configurations = _configurations(folder)
    if subset is None and len(configurations) < 2:
        chosen = next(iter(configurations.values()), {})
    else:
        defaults = [name for name, each in configurations.items() if each.get("default") or name == "default"]
        wanted = defaults[0] if subset is None and len(defaults) == 1 else subset
        if wanted not in configurations:
            expected = (
                f"one of {', '.join(configurations)}"
                if configurations
                else "none, since the data set has no configurations"
            )
            raise ValueError(f"--subset: expected {expected}, got {wanted or 'none'}")
        chosen = configurations[wanted]
    named = _named_files(folder, chosen, report) if "data_files" in chosen else {}
    if not named:
        for path in _files(folder / str(chosen.get("data_dir") or "."), "**/*"):
            named.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    if not named:
        raise FileNotFoundError(f"{folder}: expected {', '.join(KINDS[:-1])} or {KINDS[-1]} files of rows, found none")
    kind = min(KINDS.index(path.suffix.lower()) for paths in named.values() for path in paths)
    used: dict[str, list[Path]] = {}
    for split, paths in named.items():
        for path in paths:
            if path.suffix.lower() == KINDS[kind]:
                used.setdefault(split, []).append(path)
            else:
                report(Problem("stray_file", str(path), f"files ending in {KINDS[kind]} are used instead"))
    return used


def read_rows(path: Path, report: ProblemHandler) -> Iterator[HubRow]:
    """The rows of a file; classes by their names, recordings as `MediaCell`.

    Args:
        path: Parquet, CSV or JSON lines.
        report: Takes a `bad_row` for each row that cannot be read.

    Raises:
        ImportError: Parquet without pyarrow.
        ValueError: A file that cannot be read.
    """
    if path.suffix.lower() == ".parquet":
        yield from _parquet(path, report)
    elif path.suffix.lower() == ".jsonl":
        for number, line in enumerate(read_text(path).split("\n"), 1):
            place = f"{path.name}, line {number}"
            if not line.strip():
                continue
            try:
                cells = json.loads(line)
            except (ValueError, RecursionError):
                cells = None
            if isinstance(cells, dict):
                yield HubRow(place, path, cells)
            else:
                report(Problem("bad_row", place, f"expected a JSON object, got {line[:60]!r}"))
    else:
        table = read_table(path, report, "\t" if path.suffix.lower() == ".tsv" else None)
        for number, row in table.rows:
            yield HubRow(f"{path.name}, line {number}", path, dict(zip(table.header, row, strict=False)))


def _parquet(path: Path, report: ProblemHandler) -> Iterator[HubRow]:
    pyarrow, parquet = import_arrow()
    try:
        file = parquet.ParquetFile(path)
        features = _features(file.schema_arrow.metadata)
        number = 0
        for batch in file.iter_batches(batch_size=ROWS):
            for cells in batch.to_pylist():
                number += 1
                place = f"{path.name}, row {number}"
                try:
                    yield HubRow(place, path, {name: _cell(value, features.get(name)) for name, value in cells.items()})
                except ValueError as error:
                    report(Problem("bad_row", place, str(error)))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file, or a broken one: {in_words(error)}") from None


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """Column -> its description as the library `datasets` stores it."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _cell(value: Any, feature: Any) -> Any:
    kind = feature.get("_type") if isinstance(feature, dict) else None
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
        content = value.get("bytes")
        return MediaCell(str(value.get("path") or ""), content if isinstance(content, bytes) else None)
    if kind == "ClassLabel" and isinstance(value, int):
        names = feature.get("names") or []
        if value < -1 or value >= len(names):
            raise ValueError(f"expected a class from 0 to {len(names) - 1}, or -1 for none, got {value}")
        return None if value == -1 else names[value]
    return value


def _configurations(folder: Path) -> dict[str, dict[str, Any]]:
    """Configuration -> its entry in the card."""
    card = folder / "README.md"
    match = _FRONT_MATTER.match(read_text(card)) if card.is_file() else None
    if match is None:
        return {}
    try:
        content = yaml.safe_load(match[1])
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{card}: expected valid YAML between the lines ---: {error}") from None
    entries = content.get("configs") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        return {}
    return {str(each.get("config_name", "default")): each for each in entries if isinstance(each, dict)}


def _named_files(folder: Path, configuration: dict[str, Any], report: ProblemHandler) -> dict[str, list[Path]]:
    """Split -> files, from a card's pattern, list of patterns, or patterns by split."""
    entries = configuration["data_files"]
    found: dict[str, list[Path]] = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        given = entry if isinstance(entry, dict) else {"split": "train", "path": entry}
        patterns, name = given.get("path"), str(given.get("split", "train"))
        split = SPLIT_NAMES.get(name.lower())
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            paths = _files(folder, str(pattern))
            if not paths:
                raise ValueError(
                    f"{folder / 'README.md'}: names {pattern!r} for the split {name}, no such file of rows"
                )
            if split is None:
                report(Problem("stray_file", str(pattern), f"the split {name!r} is not train, validation or test"))
            else:
                found.setdefault(split, []).extend(paths)
    return found


def _files(folder: Path, pattern: str) -> list[Path]:
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise ValueError(f"{folder}: expected patterns of files inside it, got {pattern!r}")
    try:
        found = sorted(folder.glob(pattern))
    except (OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{folder}: expected a pattern of files, got {pattern[:80]!r}: {error}") from None
    return [
        path
        for path in found
        if path.suffix.lower() in KINDS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]


def _split_of(path: Path) -> str:
    """The split named by the file or else by the innermost folder that names one; "train" by default, as on the hub."""
    for part in (path.stem, *reversed(path.parts[:-1])):
        for word in re.split(r"[\W_]+", part.lower()):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return "train"
