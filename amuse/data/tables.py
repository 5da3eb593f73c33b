"""Precomputed features as plain tables: one CSV that lists the utterances, and one CSV of numbers per modality.

utterances.csv   `dialogue`, `id`, and `label` (a class) or `target` (a number); where known also `speaker`, `split`
                 (train, valid, test), `text`, `start`, `end`; any other column is a group, see `amuse.data.folds`.
                 Utterances of a dialogue are in the order in which they were said.
NAME.csv         features of modality NAME: `id` and any number of columns of numbers. A row is a token; rows of one id
                 are an utterance's tokens in their order. An utterance without a row lacks the modality.

An empty cell is a value that was not measured: it becomes the mean of its column over the training part.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from amuse.data.conversation import Conversations, Dialogue, Utterance
from amuse.data.delimited import csv_of, read_utf8
from amuse.data.speakers import folded

UTTERANCES_FILE = "utterances.csv"
_OWN_COLUMNS = {"id", "speaker", "label", "target", "split", "text", "start", "end"}


@dataclass
class Tables:
    """The content of a folder of tables.

    Attributes:
        dialogues: In the order of their first rows, without features.
        label_names: Classes, sorted; None for regression.
        features: Modality -> utterance id -> float32 `(L, width)`, NaN where a cell was empty.
        widths: Modality -> number of columns.
        columns: Column that groups dialogues -> dialogue id -> its values there.
        splits: Dialogue id -> "train", "valid", "test", or "" without such a column.
    """

    dialogues: list[Dialogue]
    label_names: list[str] | None
    features: dict[str, dict[str, Tensor]]
    widths: dict[str, int]
    columns: dict[str, dict[str, set[str]]]
    splits: dict[str, str]

    def conversations(self, dialogues: Sequence[str], training: Sequence[str]) -> Conversations:
        """These dialogues with their features; empty cells are filled with means over the `training` dialogues.

        Raises:
            ValueError: No such dialogues, or a column without a number in the training part.
        """
        chosen, learned = set(dialogues), set(training)
        ids = {u.id for dialogue in self.dialogues if dialogue.id in learned for u in dialogue.utterances}
        conversations = Conversations(
            [dialogue for dialogue in self.dialogues if dialogue.id in chosen], self.label_names, {}
        )
        wanted = {u.id for u in conversations.utterances()}
        filled = {}
        for modality, tokens in self.features.items():
            means = self._means(modality, ids)
            own = {name: rows for name, rows in tokens.items() if name in wanted}
            filled[modality] = {name: torch.where(rows.isnan(), means, rows) for name, rows in own.items()}
        return conversations.with_modalities({modality: self.widths[modality] for modality in filled}, filled)

    def split(self, name: str) -> Conversations:
        """The dialogues of one split, as the column `split` says.

        Raises:
            ValueError: The split has no dialogue.
        """
        parts = {
            part: [dialogue for dialogue, split in self.splits.items() if split == part] for part in (name, "train")
        }
        if not all(parts.values()):
            empty = next(part for part, dialogues in parts.items() if not dialogues)
            raise ValueError(
                f"{UTTERANCES_FILE}: expected dialogues whose column split says {empty!r}, found none; "
                "without splits use cross-validation, data.folds"
            )
        return self.conversations(parts[name], parts["train"])

    def _means(self, modality: str, ids: set[str]) -> Tensor:
        """Means over the training tokens, float32 `(width,)`; 0 where there is no number and no gap to fill."""
        tokens = self.features[modality]
        rows = [tokens[name] for name in tokens if name in ids]
        means = torch.cat(rows).double().nanmean(0) if rows else torch.full((self.widths[modality],), math.nan)
        gaps = torch.stack([rows.isnan().any(0) for rows in tokens.values()]).any(0)
        if (means.isnan() & gaps).any():
            column = int((means.isnan() & gaps).nonzero()[0])
            raise ValueError(f"{modality}.csv, column {column + 2}: expected a number in the training part, found none")
        return means.nan_to_num().float()


def read_tables(folder: str | PathLike[str], modalities: Sequence[str] | None = None) -> Tables:
    """Reads a folder of tables.

    Args:
        folder: The folder.
        modalities: Whose features to read; None = all.

    Raises:
        FileNotFoundError: No `utterances.csv`, or no table of features.
        ValueError: A modality without a table, a missing column, a repeated id, both labels and targets, labels that
            differ only in case, a cell that is not a number, a row of an unknown utterance, or a dialogue in two
            splits; names file, line, column.
    """
    folder = Path(folder)
    path = folder / UTTERANCES_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the table that lists the utterances")
    files = sorted(file for file in folder.glob("*.csv") if file.name != UTTERANCES_FILE)
    if not files:
        raise FileNotFoundError(f"{folder}: expected a table of features, such as audio.csv, found none")
    if modalities is not None:
        names = [file.stem for file in files]
        if unknown := set(modalities) - set(names):
            raise ValueError(f"modalities: expected names out of {', '.join(names)}, got {sorted(unknown)[0]!r}")
        files = [file for file in files if file.stem in modalities]
    tables = _read_utterances(path)
    known = {u.id for dialogue in tables.dialogues for u in dialogue.utterances}
    for file in files:
        tables.features[file.stem], tables.widths[file.stem] = read_features(file, known)
    return tables


def read_features(path: Path, known: set[str]) -> tuple[dict[str, Tensor], int]:
    """One table of numbers: utterance id -> float32 `(L, width)` with NaN in empty cells, and the width.

    Args:
        path: CSV with a column `id`; all others are numbers.
        known: The ids that may occur.

    Raises:
        ValueError: Names file, line and column.
    """
    names, rows = _rows(path, {"id"})
    names = [name for name in names if name != "id"]
    if not names:
        raise ValueError(f"{path}, line 1: expected columns of numbers besides id, got none")
    tokens: dict[str, list[list[float]]] = {}
    for line, row in rows:
        if row["id"] not in known:
            raise ValueError(f"{path}, line {line}: expected an id of {UTTERANCES_FILE}, got {row['id']!r}")
        tokens.setdefault(row["id"], []).append([_number(row[name], path, line, name, math.nan) for name in names])
    return {name: torch.tensor(values, dtype=torch.float32) for name, values in tokens.items()}, len(names)


def _read_utterances(path: Path) -> Tables:
    names, lines = _rows(path, {"dialogue", "id"})
    rows = list(lines)
    if "label" in names and "target" in names:
        raise ValueError(f"{path}, line 1: expected a column label (classes) or target (numbers), got both")
    if not {"label", "target"} & set(names):
        raise ValueError(
            f"{path}, line 1: expected a column label (classes) or target (numbers), got {', '.join(names)}"
        )
    regression = "target" in names
    classes = None if regression else sorted({row["label"] for _, row in rows if row["label"]})
    same = Counter(map(folded, classes or ()))
    if spellings := [label for label in classes or () if same[folded(label)] > 1]:
        raise ValueError(f"{path}, label: expected one spelling of each class, got {', '.join(map(repr, spellings))}")
    dialogues: dict[str, Dialogue] = {}
    groups = {name: dict[str, set[str]]() for name in names if name not in _OWN_COLUMNS - {"speaker"}}
    splits: dict[str, str] = {}
    for line, row in rows:
        label: float | int | None = None
        if regression and row["target"]:
            label = _number(row["target"], path, line, "target")
        elif classes is not None and row["label"]:
            label = classes.index(row["label"])
        times = {name: _number(row[name], path, line, name) if row.get(name) else None for name in ("start", "end")}
        utterance = Utterance(
            row["id"], row.get("speaker") or "unknown", {}, label, row.get("text") or None, times["start"], times["end"]
        )
        name, split = row["dialogue"], row.get("split", "")
        if split not in ("", "train", "valid", "test"):
            raise ValueError(f"{path}, line {line}, split: expected train, valid or test, got {split!r}")
        if splits.setdefault(name, split) != split:
            raise ValueError(
                f"{path}, line {line}, split: dialogue {name!r} has rows in {splits[name]!r} and in {split!r}"
            )
        dialogues.setdefault(name, Dialogue(name, [])).utterances.append(utterance)
        for column, values in groups.items():
            values.setdefault(name, set()).add(row[column])
    return Tables(list(dialogues.values()), classes, {}, {}, groups, splits)


def _rows(path: Path, needed: set[str]) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """Column names, and per row its line and stripped cells."""
    with csv_of(path):
        reader = csv.DictReader(io.StringIO(read_utf8(path), newline=""), strict=True)
        names = [name.strip() for name in reader.fieldnames or []]
    missing = sorted(needed - set(names))
    if missing or len(set(names)) < len(names):
        expected = f"distinct columns, {' and '.join(sorted(needed))} among them"
        raise ValueError(f"{path}, line 1: expected {expected}, got {', '.join(names) or 'none'}")
    reader.fieldnames = names
    return names, _cells(path, reader)


def _cells(path: Path, reader: "csv.DictReader[str]") -> Iterator[tuple[int, dict[str, str]]]:
    with csv_of(path):
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{path}, line {reader.line_num}: expected {len(reader.fieldnames or [])} cells")
            yield reader.line_num, {name: cell.strip() for name, cell in row.items()}


def _number(cell: str, path: Path, line: int, column: str, empty: float | None = None) -> float:
    """A finite number; `empty` where the cell is empty and that is allowed."""
    if not cell and empty is not None:
        return empty
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path}, line {line}, {column}: expected a number, got {cell!r}")
    return value
