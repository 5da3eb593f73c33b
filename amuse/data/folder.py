"""A plain folder of conversations: recordings, each next to a transcript of the same name."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from amuse.config import SPLITS
from amuse.data.conversation import Conversations, Dialogue, Utterance
from amuse.data.draw import draw_splits, merge_spellings
from amuse.data.problems import Problem, ProblemHandler
from amuse.data.speakers import folded
from amuse.data.transcript import SUFFIXES, Line, read_transcript

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "development"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Names that a split has in folders and files -> its name here."""
VIDEO = (
    *(".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".m2ts", ".mts", ".vob"),
    *(".3gp", ".3g2", ".ogv", ".asf", ".divx", ".dv", ".f4v", ".gif", ".m2v", ".mjpeg", ".mxf", ".nut", ".rm", ".rmvb"),
)
AUDIO = (
    *(".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".aac", ".ac3", ".aif", ".aiff", ".amr", ".au", ".caf", ".dts"),
    *(".mka", ".mp2", ".oga", ".w64", ".weba", ".wma", ".wv"),
)
"""Suffixes of recordings; a file with any other suffix is one if there is a transcript of its name."""
_LANGUAGE = r"(?:\.[a-z]{2,3}(?:[-_][a-z0-9]{2,8})?)?"


@dataclass
class Recording:
    """A media file and its utterances."""

    media: Path
    lines: list[Line]


def read_folder(
    folder: str | PathLike[str],
    *,
    valid_fraction: float = 0.15,
    test_fraction: float = 0.15,
    seed: int = 0,
    report: ProblemHandler,
    recognize: Callable[[Path], list[Line]] | None = None,
) -> tuple[dict[str, Conversations], dict[str, dict[str, Path]]]:
    """Reads `NAME.mp4` (or another recording) with `NAME.csv` (or another transcript); every recording is a dialogue.

    Names are compared without regard to case and to how accents are composed; `NAME.en.srt` is a transcript too.

    Args:
        folder: Holds the recordings, or folders `train`, `valid` and `test` of recordings (some of them, by any name
            in `SPLIT_NAMES`). Recordings elsewhere in it are reported.
        valid_fraction, test_fraction: Shares of the dialogues if there are no such folders, at least one dialogue each,
            drawn so that the splits have similar distributions of labels; fewer than three dialogues are all `"test"`.
        seed: Seed of the draw.
        report: Takes everything that is wrong with a recording or its transcript.
        recognize: Makes the utterances of a recording without a transcript, or none; None leaves such recordings out.

    Returns:
        Split -> conversations, for the splits that have a dialogue. Classes are the labels that occur, sorted; labels
        that differ only in case are one class, in their most frequent spelling. Without any label there is one class,
        `"unlabelled"`, that no utterance has. And split -> dialogue id -> media file.

    Raises:
        FileNotFoundError: No folder, or no usable recording in it.
        ValueError: A file, or two folders for one split.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder}: expected a folder of recordings, got a file")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of recordings, no such folder")
    given = split_folders(folder)
    parts = {split: _recordings(place, report, recognize) for split, place in (given or {"": folder}).items()}
    _report_misplaced(folder, given, report)
    _merge_classes([recording for recordings in parts.values() for recording in recordings], report)
    if not given:
        parts = _draw(parts[""], valid_fraction, test_fraction, seed)
    parts = {split: recordings for split, recordings in parts.items() if recordings}
    if not parts:
        raise FileNotFoundError(
            f"{folder}: expected recordings ({', '.join(VIDEO[:3])}, {AUDIO[0]}, ...), each with a transcript of the "
            f"same name ending in {', '.join(SUFFIXES[:3])}, ..., found none that can be used"
        )
    every = [recording for recordings in parts.values() for recording in recordings]
    names = sorted({line.label for recording in every for line in recording.lines if line.label is not None})
    splits = {split: conversations(recordings, names or ["unlabelled"]) for split, recordings in parts.items()}
    media = {split: {each.media.stem: each.media for each in recordings} for split, recordings in parts.items()}
    return splits, media


def has_recordings(folder: Path) -> bool:
    """Whether recordings are in a folder, or in one of the folders in it."""
    return any(path.suffix.lower() in VIDEO + AUDIO for pattern in ("*", "*/*") for path in folder.glob(pattern))


def split_folders(folder: Path) -> dict[str, Path]:
    """Split -> the folder in `folder` that is named for it, where there is one.

    Raises:
        ValueError: Two folders for one split.
    """
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        split = SPLIT_NAMES.get(path.name.lower())
        if split in found:
            raise ValueError(
                f"{folder}: expected one folder of the split {split}, got {found[split].name}, {path.name}"
            )
        if split is not None:
            found[split] = path
    return {split: found[split] for split in SPLITS if split in found}


def conversations(recordings: Sequence[Recording], label_names: Sequence[str] | None) -> Conversations:
    """Recordings as dialogues without features; labels that are not in `label_names` count as unlabelled."""
    known = list(label_names or ())
    dialogues = []
    for recording in recordings:
        utterances = [
            Utterance(
                id=line.id,
                speaker=line.speaker,
                features={},
                label=known.index(line.label) if line.label in known else None,
                text=line.text,
                start=line.start,
                end=line.end,
            )
            for line in recording.lines
        ]
        dialogues.append(Dialogue(recording.media.stem, utterances))
    return Conversations(dialogues, label_names, {})


def find_transcripts(media: Path) -> list[Path]:
    """Transcripts of a recording, in order of preference: CSV before SRT, names without a language code first."""
    name = re.compile(re.escape(folded(media.stem)) + _LANGUAGE)
    found = [
        path
        for path in media.parent.iterdir()
        if path.suffix.lower() in SUFFIXES and name.fullmatch(folded(path.stem)) and path.is_file()
    ]
    order = {suffix: place for place, suffix in enumerate(SUFFIXES)}
    return sorted(found, key=lambda path: (len(folded(path.stem)), order[path.suffix.lower()], path.name))


def find_transcript(media: Path) -> Path | None:
    """The preferred transcript of a recording, if there is one."""
    return next(iter(find_transcripts(media)), None)


def _recordings(
    folder: Path, report: ProblemHandler, recognize: Callable[[Path], list[Line]] | None
) -> list[Recording]:
    found: dict[str, Recording] = {}
    taken: set[Path] = set()
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    # among files with the same name, a video comes before a sound, and both before an unknown kind
    candidates = sorted((path for path in files if path.suffix.lower() not in SUFFIXES), key=_unlikely)
    for media in candidates:
        transcripts = find_transcripts(media)
        if media.suffix.lower() not in VIDEO + AUDIO and not transcripts:
            report(Problem("stray_file", str(media), "neither a recording nor a transcript by its suffix"))
            continue
        taken.update(transcripts)
        name = folded(media.stem)
        if name in found:
            other = found[name].media.name
            report(Problem("stray_file", str(media), f"{other} has the same name and is used instead"))
            continue
        if not transcripts:
            if recognize is not None and (lines := recognize(media)):
                found[name] = Recording(media, lines)
                continue
            expected = f"expected {media.stem}.csv, {media.stem}.srt or another transcript next to it"
            report(Problem("missing_transcript", str(media), f"{expected}; amuse transcribe makes one of its speech"))
            continue
        for spare in transcripts[1:]:
            report(Problem("stray_file", str(spare), f"{transcripts[0].name} is used instead"))
        try:
            lines = read_transcript(transcripts[0], report)
        except ValueError as error:
            report(Problem("bad_transcript", str(transcripts[0]), str(error)))
            continue
        if lines:
            found[name] = Recording(media, lines)
        else:
            report(Problem("bad_transcript", str(transcripts[0]), "no usable utterance in it"))
    for path in files:
        if path.suffix.lower() in SUFFIXES and path not in taken:
            report(Problem("stray_file", str(path), "a transcript without a recording of its name"))
    recordings = sorted(found.values(), key=lambda recording: recording.media)
    _tell_ids_apart(recordings, report)
    return recordings


def _report_misplaced(folder: Path, given: Mapping[str, Path], report: ProblemHandler) -> None:
    """Report recordings that are in none of the folders that are read."""
    read = set(given.values()) or {folder}
    lost = Counter(
        path.parent
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEO + AUDIO
        and path.parent not in read
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    names = ", ".join(path.name for path in given.values())
    expected = f"in {names}" if given else f"in {folder.name} itself, or in folders named train, valid and test"
    for place, count in sorted(lost.items()):
        report(Problem("misplaced", str(place), f"recordings: {count}, expected {expected}"))


def _unlikely(path: Path) -> int:
    suffix = path.suffix.lower()
    return 0 if suffix in VIDEO else 1 if suffix in AUDIO else 2


def _tell_ids_apart(recordings: list[Recording], report: ProblemHandler) -> None:
    """Prefix ids with the recording's name if any id occurs in several transcripts."""
    counts = Counter(line.id for recording in recordings for line in recording.lines)
    if any(count > 1 for count in counts.values()):
        for recording in recordings:
            recording.lines = [replace(line, id=f"{recording.media.stem}_{line.id}") for line in recording.lines]
    seen: set[str] = set()
    for recording in recordings:
        fresh = [line for line in recording.lines if line.id not in seen]
        for line in recording.lines:
            if line.id in seen:
                message = f"id {line.id!r} occurs in another transcript too"
                report(Problem("duplicate_id", str(recording.media), message))
        seen.update(line.id for line in fresh)
        recording.lines = fresh
    recordings[:] = [recording for recording in recordings if recording.lines]


def _merge_classes(recordings: Sequence[Recording], report: ProblemHandler) -> None:
    """Merge labels that differ only in case."""
    classes = merge_spellings(sum((_labels(recording) for recording in recordings), Counter()), report)
    for recording in recordings:
        recording.lines = [
            line if line.label is None else replace(line, label=classes[line.label]) for line in recording.lines
        ]


def _draw(recordings: list[Recording], valid: float, test: float, seed: int) -> dict[str, list[Recording]]:
    """Random splits of whole recordings, with similar labels."""
    if len(recordings) < 3:
        return {"test": recordings}
    drawn = draw_splits([_labels(recording) for recording in recordings], {"test": test, "valid": valid}, seed)
    return {split: [recordings[i] for i in drawn[split]] for split in SPLITS}


def _labels(recording: Recording) -> Counter[str]:
    return Counter(line.label for line in recording.lines if line.label is not None)
