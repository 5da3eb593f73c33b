"""CMU-MOSI: opinion videos of one speaker each with binary sentiment, read from utterance-level feature files.

The folder holds, for s in train and test, `text_{s}0.csv` (100 features), `audio_{s}0.csv` (73) and `video_{s}0.csv`
(100), the label in the last column, and `index_{s}.txt`, whose line i names the row of `transcripts.csv` (from 0, no
header: segment name, words, number of the video, label) to which feature row i belongs.

The feature rows of a split are sorted by label, all positive ones first. As the order of a conversation, that would
reveal the label to any model that reads context, so the utterances of a video are sorted by their segment numbers.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from amuse.data.conversation import Conversations, Dialogue, Utterance
from amuse.data.delimited import csv_of, read_utf8

MODALITIES = {"text": 100, "audio": 73, "video": 100}
LABEL_NAMES = ("negative", "positive")
SPLITS = ("train", "valid", "test", "train+valid")


def read_mosi(folder: str | PathLike[str], split: str, *, valid_fraction: float = 0.15, seed: int = 0) -> Conversations:
    """Reads one split of the CMU-MOSI feature files; a video is a dialogue, every modality has one token.

    Args:
        folder: Holds the files named above.
        split: `"train"`, `"valid"`, `"test"`, or `"train+valid"` for all training videos.
        valid_fraction: Share of the training videos that is held out as `"valid"`, between 0 and 1; at least one
            video is on either side.
        seed: Seed of the choice of those videos.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file of the wrong width or length, a cell that is not a number, an index that is out of range or
            repeated, or labels on which the files disagree; the message names file and line.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if not 0 < valid_fraction < 1:
        raise ValueError(f"valid_fraction: expected a number between 0 and 1, got {valid_fraction}")
    folder = Path(folder)
    dialogues = _read_part(folder, "test" if split == "test" else "train")
    if split in ("train", "valid"):
        if len(dialogues) < 2:
            raise ValueError(f"{folder}: expected at least 2 training videos to hold one out, got {len(dialogues)}")
        count = min(max(1, round(valid_fraction * len(dialogues))), len(dialogues) - 1)
        held_out = set(random.Random(seed).sample(sorted(dialogue.id for dialogue in dialogues), count))
        dialogues = [dialogue for dialogue in dialogues if (dialogue.id in held_out) == (split == "valid")]
    return Conversations(dialogues, LABEL_NAMES, MODALITIES)


def _read_part(folder: Path, part: str) -> list[Dialogue]:
    transcripts = _transcripts(folder / "transcripts.csv")
    index_path = folder / f"index_{part}.txt"
    index = _index(index_path, len(transcripts))
    tables = {m: _table(folder / f"{m}_{part}0.csv", width, len(index)) for m, width in MODALITIES.items()}

    videos: dict[str, dict[int, Utterance]] = {}
    for row, line in enumerate(index):
        name, words, label = transcripts[line]
        for modality, table in tables.items():
            if table[row, -1] != label:
                raise ValueError(
                    f"{folder / f'{modality}_{part}0.csv'}, line {row + 1}: expected label {label}, which "
                    f"transcripts.csv has for {name}, got {table[row, -1]:g}; do the files belong together?"
                )
        video, _, segment = name.rpartition("_")
        videos.setdefault(video, {})[int(segment)] = Utterance(
            id=name,
            speaker=video,
            features={m: torch.from_numpy(table[row, None, :-1].astype(np.float32)) for m, table in tables.items()},
            label=label,
            text=words,
        )
    return [Dialogue(video, [segments[s] for s in sorted(segments)]) for video, segments in sorted(videos.items())]


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected one of the CMU-MOSI feature files")
    return read_utf8(path).splitlines()


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    with csv_of(path):
        yield from enumerate(csv.reader(_lines(path)), start=1)


def _transcripts(path: Path) -> list[tuple[str, str, int]]:
    transcripts = []
    for number, row in _rows(path):
        if len(row) != 4 or row[3] not in ("0", "1"):
            raise ValueError(f"{path}, line {number}: expected segment name, words, count and label 0 or 1, got {row}")
        video, _, segment = row[0].rpartition("_")
        if not video or not segment.isdecimal():
            raise ValueError(f"{path}, line {number}: expected a segment name such as 03bSnISJMiM_11, got {row[0]!r}")
        transcripts.append((row[0], row[1], int(row[3])))
    return transcripts


def _index(path: Path, num_transcripts: int) -> list[int]:
    index: list[int] = []
    seen: set[int] = set()
    for number, line in enumerate(_lines(path), start=1):
        cell = line.strip()
        if not cell.isdecimal() or int(cell) >= num_transcripts or int(cell) in seen:
            expected = f"a row of transcripts.csv from 0 to {num_transcripts - 1}, each once"
            raise ValueError(f"{path}, line {number}: expected {expected}, got {line!r}")
        index.append(int(cell))
        seen.add(int(cell))
    if not index:
        raise ValueError(f"{path}: expected at least one line, got none")
    return index


def _table(path: Path, width: int, num_rows: int) -> np.ndarray:
    """The feature file as float64 `(num_rows, width + 1)`, the label last."""
    rows = []
    for number, cells in _rows(path):
        if len(cells) != width + 1:
            raise ValueError(f"{path}, line {number}: expected {width} features and a label, got {len(cells)} cells")
        try:
            rows.append(np.array(cells, dtype=np.float64))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: expected numbers, got {error}") from None
        if not np.isfinite(rows[-1]).all():
            raise ValueError(f"{path}, line {number}: expected finite numbers, got NaN or infinity")
    if len(rows) != num_rows:
        raise ValueError(f"{path}: expected {num_rows} lines, as many as the index has, got {len(rows)}")
    return np.stack(rows)
