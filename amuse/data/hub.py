"""Conversations of Hugging Face data sets: a row is an utterance, with sound and video in it or beside it."""

import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amuse.data.conversation import Conversations, Dialogue, Utterance
from amuse.data.draw import draw_splits, merge_spellings
from amuse.data.fields import Fields, seconds
from amuse.data.folder import AUDIO, SPLITS
from amuse.data.hub_files import HubRow, Media, dataset_folder, read_rows, split_files
from amuse.data.problems import Problem, ProblemHandler
from amuse.data.speakers import speaker_name
from amuse.data.transcript import UNKNOWN_SPEAKER
from amuse.files import write_bytes

MEDIA = {
    **dict.fromkeys(("audio", "audiofile", "audiofilename", "audiopath", "sound", "speech", "wav"), "audio"),
    **dict.fromkeys(("video", "videofile", "videofilename", "videopath", "clip", "movie"), "video"),
    **dict.fromkeys(("file", "filename", "filepath", "path", "media", "mediapath"), "media"),
}
"""Columns of recordings, without case and punctuation; "media" is sound or video by the file's suffix."""
DIALOGUE = ("dialogue", "dialog", "conversation", "session", "recording", "scene")
"""Columns that say which utterances belong together, with or without "id" behind."""
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")


@dataclass(frozen=True)
class HubClip:
    """The recordings of one utterance: which files, and which part of them in seconds; `end` None = to the end."""

    sound: Path | None
    picture: Path | None
    begin: float = 0.0
    end: float | None = None


@dataclass
class HubDataset:
    """A data set without features, and the recordings to make them from.

    Attributes:
        splits: "train", "valid" and "test", as far as there are.
        clips: Split -> utterance id -> its recordings.
        drawn: Splits that were not given, and were drawn from "train".
    """

    splits: dict[str, Conversations]
    clips: dict[str, dict[str, HubClip]] = field(default_factory=dict)
    drawn: list[str] = field(default_factory=list)


@dataclass
class _Sample:
    """An utterance on its way: text as it stands, recordings as files."""

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
    """What the columns of a row mean.

    Attributes:
        fields: Of everything that is no recording.
        media: "audio", "video" or "media" -> column.
        dialogue: The column of conversations, if there is one.
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
            kind = MEDIA.get(plain, "media" if isinstance(value, Media) else None)
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
        media: Folder to write recordings to that are inside of Parquet; None leaves them out.
        subset: Which of several configurations.
        valid_fraction, test_fraction: Shares of the conversations of "train", for splits that are not given.
        seed: Chooses them.
        report: Takes what is wrong with rows and files.

    Raises:
        FileNotFoundError: No such data set, or no files of rows in it.
        ImportError: Packages that are needed are missing; says how to install them.
        ValueError: A file that cannot be read, labels that are numbers, or not one usable row.
    """
    folder = dataset_folder(name)
    files = split_files(folder, subset, report)
    samples = {split: _samples(split, files[split], folder, media, report) for split in SPLITS if split in files}
    samples = {split: part for split, part in samples.items() if part}
    if not samples:
        raise ValueError(f"{folder}: expected rows with recordings or words, found none that can be used")
    shared = {path for part in samples.values() for path in _shared(part)}
    samples = {split: _timed(part, shared, report) for split, part in samples.items()}
    groups = {split: _conversations(part, shared, folder) for split, part in samples.items()}
    if not shared and not any(sample.dialogue for part in samples.values() for sample in part):
        message = f"no column {', '.join(DIALOGUE[:3])}, ... says which utterances belong together"
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
    """The usable rows of a split; recordings that are inside of them are written as they pass by."""
    found: list[_Sample] = []
    known: dict[tuple[str, ...], _Columns] = {}
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
    if unused:
        report(Problem("unused", f"{folder.name}, {split}", f"columns: {', '.join(unused)[:200]}"))
    if found and not any(sample.speaker for sample in found):
        report(Problem("missing_speaker", f"{folder.name}, {split}", "no column of speakers"))
    return _told_apart(found, report)


def _sample(
    row: HubRow, columns: _Columns, free_id: str, folder: Path, media: Path | None, report: ProblemHandler
) -> _Sample:
    read = columns.fields.row(0, row.cells)
    given = {kind: row.cells.get(name) for kind, name in columns.media.items()}
    recordings: dict[str, Path] = {}
    for kind, cell in given.items():
        if isinstance(cell, str):
            cell = Media(cell.strip(), None)
        if not isinstance(cell, Media) or not (cell.name or cell.content):
            continue
        suffix = Path(cell.name).suffix
        seen = ("audio" if suffix.lower() in AUDIO else "video") if kind == "media" else kind
        if cell.content is None:
            path = next((p for p in (row.file.parent / cell.name, folder / cell.name) if p.is_file()), None)
            if path is None:
                report(Problem("missing_file", row.place, f"{columns.media[kind]}: no file {cell.name[:100]!r}"))
                continue
        else:
            path = _stored(cell.content, suffix if _SUFFIX.fullmatch(suffix) else "", media)
        recordings.setdefault(seen, path)
    if not recordings and not read.text:
        raise ValueError("neither words nor a recording that is there")
    start = None if read.start in ("", None) else seconds(read.start, "start")
    end = None if read.end in ("", None) else seconds(read.end, "end")
    if start is not None and end is not None and end <= start:
        raise ValueError(f"end: expected a time after the start {start:g}, got {end:g}")
    dialogue = row.cells.get(columns.dialogue) if columns.dialogue is not None else None
    return _Sample(
        row.place,
        read.id or free_id,
        "" if dialogue is None else str(dialogue).strip(),
        speaker_name(read.speaker),
        read.text,
        " ".join(read.label.split()),
        start,
        end,
        recordings,
    )


def _told_apart(samples: list[_Sample], report: ProblemHandler) -> list[_Sample]:
    """Ids that start again in each conversation get its name in front; what still stands twice is reported."""
    if len({sample.id for sample in samples}) < len(samples):
        for sample in samples:
            sample.id = f"{sample.dialogue}_{sample.id}" if sample.dialogue else sample.id
    kept: dict[str, _Sample] = {}
    for sample in samples:
        if sample.id in kept:
            report(Problem("duplicate_id", sample.place, f"id {sample.id!r} stood in {kept[sample.id].place}"))
        else:
            kept[sample.id] = sample
    return list(kept.values())


def _stored(content: bytes, suffix: str, media: Path | None) -> Path:
    """A file of these bytes, named after them, so that the same recording in several rows is one file."""
    path = (media or Path()) / f"{hashlib.sha256(content).hexdigest()[:24]}{suffix}"
    if media is not None and not (path.is_file() and path.stat().st_size == len(content)):
        media.mkdir(parents=True, exist_ok=True)
        write_bytes(content, path)
        os.utime(path, (0, 0))  # the same for every rank of torchrun, since a file of another time is encoded again
    return path


def _shared(samples: list[_Sample]) -> set[Path]:
    """Recordings that several utterances are parts of, by their times."""
    users: dict[Path, list[_Sample]] = {}
    for sample in samples:
        for path in sample.media.values():
            users.setdefault(path, []).append(sample)
    return {path for path, using in users.items() if len(using) > 1 and any(map(_has_times, using))}


def _has_times(sample: _Sample) -> bool:
    return sample.start is not None and sample.end is not None


def _timed(samples: list[_Sample], shared: set[Path], report: ProblemHandler) -> list[_Sample]:
    """Without utterances of a shared recording of which nothing says which part is theirs."""
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
    """Conversation -> its utterances in order: by their start where all have one, or else as they stand."""
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
    """All splits; those that are not given are drawn from "train"."""
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
