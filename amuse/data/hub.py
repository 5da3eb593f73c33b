"""Conversations of Hugging Face data sets: each row is an utterance, with its recordings inside or as paths."""

import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amuse.config import SPLITS
from amuse.data.conversation import Conversations, Dialogue, Utterance
from amuse.data.draw import draw_splits, merge_spellings
from amuse.data.fields import Fields, convert_milliseconds, seconds
from amuse.data.folder import AUDIO, VIDEO
from amuse.data.hub_files import HubRow, MediaCell, dataset_folder, read_rows, split_files
from amuse.data.problems import Problem, ProblemHandler
from amuse.data.speakers import speaker_name
from amuse.data.transcript import UNKNOWN_SPEAKER
from amuse.files import write_bytes

MEDIA = {
    **dict.fromkeys(("audio", "audiofile", "audiofilename", "audiopath", "sound", "speech", "wav"), "audio"),
    **dict.fromkeys(("video", "videofile", "videofilename", "videopath", "clip", "movie"), "video"),
    **dict.fromkeys(("file", "filename", "filepath", "path", "media", "mediapath"), "media"),
}
"""Columns of recordings, compared without case and punctuation; "media" is sound or video by the file's suffix."""
DIALOGUE = ("dialogue", "dialog", "conversation", "session", "recording", "scene")
"""Columns that group utterances, also with "id" appended."""
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")


@dataclass(frozen=True)
class HubClip:
    """The recordings of one utterance and its part of them, in seconds; `end` None = to the end."""

    sound: Path | None
    picture: Path | None
    begin: float = 0.0
    end: float | None = None


@dataclass
class HubDataset:
    """A data set without features, and the recordings to make them from.

    Attributes:
        splits: "train", "valid" and "test", where available.
        clips: Split -> utterance id -> its recordings.
        drawn: Splits that were missing, and were drawn from "train".
    """

    splits: dict[str, Conversations]
    clips: dict[str, dict[str, HubClip]] = field(default_factory=dict)
    drawn: list[str] = field(default_factory=list)


@dataclass
class _Sample:
    """An utterance before classes and conversations are known."""

    place: str
    id: str
    dialogue: str
    speaker: str
    text: str
    label: str
    start: float | None
    end: float | None
    media: dict[str, Path]


@dataclass
class _Columns:
    """The meaning of a row's columns.

    Attributes:
        fields: All columns but those of recordings and the conversation.
        media: "audio", "video" or "media" -> column.
        dialogue: The column of the conversation, if there is one.
    """

    fields: Fields
    media: dict[str, str]
    dialogue: str | None

    @classmethod
    def find(cls, cells: dict[str, Any]) -> "_Columns":
        media: dict[str, str] = {}
        dialogue, rest = None, []
        for name, value in cells.items():
            plain = re.sub(r"[\W_]+", "", name.lower())
            kind = MEDIA.get(plain, "media" if isinstance(value, MediaCell) else None)
            if kind is not None and kind not in media:
                media[kind] = name
            elif plain.removesuffix("id") in DIALOGUE and dialogue is None:
                dialogue = name
            else:
                rest.append(name)
        return cls(Fields.find(rest), media, dialogue)


def read_hub_dataset(
    name: str | Path,
    *,
    media: Path | None,
    subset: str | None = None,
    valid_fraction: float = 0.15,
    test_fraction: float = 0.15,
    seed: int = 0,
    report: ProblemHandler,
) -> HubDataset:
    """Reads Parquet, CSV or JSON lines; see docs/data.md for the columns.

    Args:
        name: A folder, or OWNER/NAME on the hub.
        media: Folder for recordings that are stored in Parquet; None does not write them.
        subset: Name of a configuration, if there are several.
        valid_fraction, test_fraction: Shares of the conversations of "train", for missing splits.
        seed: Seed of the draw.
        report: Takes problems of rows and files.

    Raises:
        FileNotFoundError: No such data set, or no files of rows in it.
        ImportError: A package is missing; says how to install it.
        ValueError: A file that cannot be read, labels that are fractions, or no usable row.
    """
    folder = dataset_folder(name)
    files = split_files(folder, subset, report)
    samples = {split: _samples(split, files[split], folder, media, report) for split in SPLITS if split in files}
    samples = {split: part for split, part in samples.items() if part}
    if not samples:
        raise ValueError(f"{folder}: expected rows with recordings or words, found none that can be used")
    named = {path for part in samples.values() for sample in part for path in sample.media.values()}
    _report_unnamed(folder, named, report)
    shared = {path for part in samples.values() for path in _shared(part)}
    samples = {split: _timed(part, shared, report) for split, part in samples.items()}
    groups = {split: _conversations(part, shared, folder) for split, part in samples.items()}
    if not shared and not any(sample.dialogue for part in samples.values() for sample in part):
        message = f"no column such as {', '.join(DIALOGUE[:3])} groups the utterances"
        report(Problem("no_conversations", str(folder), message))
    labels = Counter(sample.label for part in samples.values() for sample in part if sample.label)
    _refuse_numbers(folder, labels)
    classes = merge_spellings(labels, report)
    names = sorted(set(classes.values()))
    found = HubDataset({})
    for split, dialogues in _with_drawn(groups, valid_fraction, test_fraction, seed).items():
        if split not in groups:
            found.drawn.append(split)
        utterances = {
            dialogue: [_utterance(sample, names, classes) for sample in members]
            for dialogue, members in dialogues.items()
        }
        found.splits[split] = Conversations(
            [Dialogue(dialogue, members) for dialogue, members in utterances.items()], names or ["unlabelled"], {}
        )
        found.clips[split] = {
            sample.id: _clip(sample, bool(shared)) for members in dialogues.values() for sample in members
        }
    return found


def _samples(split: str, files: list[Path], folder: Path, media: Path | None, report: ProblemHandler) -> list[_Sample]:
    """The usable rows of a split; embedded recordings are written at once, so that they are not kept in memory."""
    found: list[_Sample] = []
    known: dict[tuple[str, ...], _Columns] = {}
    alike: dict[tuple[str | None, ...], tuple[Fields, list[_Sample]]] = {}  # by the columns of their times
    unused: dict[str, None] = {}
    for path in files:
        for row in read_rows(path, report):
            columns = known.get(tuple(row.cells))
            if columns is None:
                columns = known[tuple(row.cells)] = _Columns.find(row.cells)
                unused |= dict.fromkeys(columns.fields.unused)
            try:
                sample = _sample(row, columns, f"{split}_{len(found)}", folder, media, report)
            except ValueError as error:
                report(Problem("bad_row", row.place, str(error)))
                continue
            found.append(sample)
            times = tuple(columns.fields.columns.get(name) for name in ("start", "end", "duration"))
            alike.setdefault(times, (columns.fields, []))[1].append(sample)
    for fields, rows in alike.values():
        convert_milliseconds(rows, fields, folder, report)
    if unused:
        report(Problem("unused", f"{folder.name}, {split}", f"columns: {', '.join(unused)[:200]}"))
    if found and not any(sample.speaker for sample in found):
        report(Problem("missing_speaker", f"{folder.name}, {split}", "no column of speakers"))
    return _told_apart(found, report)


def _sample(
    row: HubRow, columns: _Columns, free_id: str, folder: Path, media: Path | None, report: ProblemHandler
) -> _Sample:
    nested = [name for name in columns.fields.columns.values() if isinstance(row.cells.get(name), dict | list)]
    if nested:
        raise ValueError(f"{nested[0]}: expected text or a number, got {str(row.cells[nested[0]])[:60]}")
    read = columns.fields.row(0, row.cells)
    given = {kind: row.cells.get(name) for kind, name in columns.media.items()}
    recordings: dict[str, Path] = {}
    for kind, cell in given.items():
        if isinstance(cell, dict):
            cell = cell.get("path") or cell
        if isinstance(cell, str):
            cell = MediaCell(cell.strip(), None)
        if cell is None or cell != cell or cell == MediaCell("", None):  # NaN: an empty cell of pandas
            continue
        if not isinstance(cell, MediaCell):
            raise ValueError(f"{columns.media[kind]}: expected a recording or its path, got {str(cell)[:60]}")
        suffix = Path(cell.name).suffix
        seen = ("audio" if suffix.lower() in AUDIO else "video") if kind == "media" else kind
        if cell.content is None:
            path = next((p for p in (row.file.parent / cell.name, folder / cell.name) if _is_file(p)), None)
            if path is None:
                report(Problem("missing_file", row.place, f"{columns.media[kind]}: no file {cell.name[:100]!r}"))
                continue
        else:
            path = _stored(cell.content, suffix if _SUFFIX.fullmatch(suffix) else "", media)
        recordings.setdefault(seen, path)
    if not recordings and not read.text:
        raise ValueError("expected words or a recording, got neither")
    start = None if read.start in ("", None) else seconds(read.start, "start")
    end = None if read.end in ("", None) else seconds(read.end, "end")
    if start is not None and end is not None and end <= start:
        raise ValueError(f"end: expected a time after the start {start:g}, got {end:g}")
    dialogue = row.cells.get(columns.dialogue) if columns.dialogue is not None else None
    return _Sample(
        row.place,
        read.id or free_id,
        "" if dialogue is None or dialogue != dialogue else str(dialogue).strip(),
        speaker_name(read.speaker),
        read.text,
        " ".join(read.label.split()),
        start,
        end,
        recordings,
    )


def _told_apart(samples: list[_Sample], report: ProblemHandler) -> list[_Sample]:
    """Prefix ids that are not unique with the conversation; report those that are still not."""
    if len({sample.id for sample in samples}) < len(samples):
        for sample in samples:
            sample.id = f"{sample.dialogue}_{sample.id}" if sample.dialogue else sample.id
    kept: dict[str, _Sample] = {}
    for sample in samples:
        if sample.id in kept:
            report(Problem("duplicate_id", sample.place, f"id {sample.id!r} occurs in {kept[sample.id].place} too"))
        else:
            kept[sample.id] = sample
    return list(kept.values())


def _report_unnamed(folder: Path, named: set[Path], report: ProblemHandler) -> None:
    """Report recordings in the folder that no usable row names."""
    known = {path.resolve() for path in named}
    rest = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO + AUDIO)
    rest = [path for path in rest if path.is_file() and path.resolve() not in known]
    if rest:
        report(Problem("stray_file", str(rest[0]), f"recordings that no usable row names: {len(rest)}"))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no name that a file could have
        return False


def _stored(content: bytes, suffix: str, media: Path | None) -> Path:
    """The file for these bytes, named by their hash, so that a recording that is in several rows is one file."""
    path = (media or Path()) / f"{hashlib.sha256(content).hexdigest()[:24]}{suffix}"
    if media is not None and not (path.is_file() and path.stat().st_size == len(content)):
        media.mkdir(parents=True, exist_ok=True)
        write_bytes(content, path)
        os.utime(path, (0, 0))  # a file of another time would be encoded again
    return path


def _shared(samples: list[_Sample]) -> set[Path]:
    """Recordings of which several utterances are parts, by their times."""
    users: dict[Path, list[_Sample]] = {}
    for sample in samples:
        for path in sample.media.values():
            users.setdefault(path, []).append(sample)
    return {path for path, using in users.items() if len(using) > 1 and any(map(_has_times, using))}


def _has_times(sample: _Sample) -> bool:
    return sample.start is not None and sample.end is not None


def _timed(samples: list[_Sample], shared: set[Path], report: ProblemHandler) -> list[_Sample]:
    """Leave out utterances without times whose recording is shared."""
    kept = []
    for sample in samples:
        used = shared.intersection(sample.media.values())
        if used and not _has_times(sample):
            message = f"expected start and end as in other rows with the recording {next(iter(used)).name}"
            report(Problem("bad_row", sample.place, message))
        else:
            kept.append(sample)
    return kept


def _conversations(samples: list[_Sample], shared: set[Path], folder: Path) -> dict[str, list[_Sample]]:
    """Conversation -> its utterances by start, or in the order of the rows if some have none."""
    groups: dict[str, list[_Sample]] = {}
    for sample in samples:
        own = sample.id
        if path := next((path for path in sample.media.values() if path in shared), None):
            own = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
        groups.setdefault(sample.dialogue or own, []).append(sample)
    for members in groups.values():
        if all(sample.start is not None for sample in members):
            members.sort(key=lambda sample: sample.start or 0.0)
    return groups


def _with_drawn(
    groups: dict[str, dict[str, list[_Sample]]], valid: float, test: float, seed: int
) -> dict[str, dict[str, list[_Sample]]]:
    """All splits; missing ones are drawn from "train"."""
    shares = {split: share for split, share in (("test", test), ("valid", valid)) if split not in groups}
    train = groups.get("train", {})
    if not shares or len(train) <= len(shares):
        return groups
    ids = list(train)
    drawn = draw_splits([Counter(s.label for s in train[i] if s.label) for i in ids], shares, seed)
    parts = {split: {ids[i]: train[ids[i]] for i in members} for split, members in drawn.items()}
    return {split: parts.get(split) or groups[split] for split in SPLITS}


def _refuse_numbers(folder: Path, labels: Counter[str]) -> None:
    try:
        fractions = [label for label in labels if not float(label).is_integer()]
    except (ValueError, OverflowError):
        return
    if fractions:
        raise ValueError(
            f"{folder}: label: expected classes, got numbers such as {fractions[0]}; for regression see tables in "
            "docs/data.md"
        )


def _utterance(sample: _Sample, names: list[str], classes: dict[str, str]) -> Utterance:
    label = names.index(classes[sample.label]) if sample.label else None
    speaker = sample.speaker or UNKNOWN_SPEAKER
    return Utterance(sample.id, speaker, {}, label, sample.text or None, sample.start, sample.end)


def _clip(sample: _Sample, cut: bool) -> HubClip:
    picture = sample.media.get("video")
    sound = sample.media.get("audio", picture)
    if cut and _has_times(sample):
        return HubClip(sound, picture, sample.start or 0.0, sample.end)
    return HubClip(sound, picture)
