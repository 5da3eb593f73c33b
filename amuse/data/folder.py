"""A plain folder of conversations: recordings, each next to a transcript of the same name."""

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from amuse.data.conversation import Conversations, Dialogue, Utterance
from amuse.data.problems import Problem, ProblemHandler
from amuse.data.transcript import SUFFIXES, Line, read_transcript

SPLITS = ("train", "valid", "test")
VIDEO = (
    *(".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".m2ts", ".mts", ".vob"),
    *(".3gp", ".3g2", ".ogv", ".asf", ".divx", ".dv", ".f4v", ".gif", ".m2v", ".mjpeg", ".mxf", ".nut", ".rm", ".rmvb"),
)
AUDIO = (
    *(".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".aac", ".ac3", ".aif", ".aiff", ".amr", ".au", ".caf", ".dts"),
    *(".mka", ".mp2", ".oga", ".w64", ".weba", ".wma", ".wv"),
)
"""Suffixes of recordings; a file with any other suffix is one if there is a transcript of its name."""
DRAWS = 200
"""Random draws of the splits, of which the one with the most similar splits is used."""
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
        folder: Holds the recordings, or folders `train`, `valid` and `test` of recordings (some of them).
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
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of recordings, no such folder")
    parts = {split: _recordings(folder / split, report, recognize) for split in SPLITS if (folder / split).is_dir()}
    given = bool(parts)
    if not given:
        parts = {"": _recordings(folder, report, recognize)}
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
    name = re.compile(re.escape(_folded(media.stem)) + _LANGUAGE)
    found = [
        path
        for path in media.parent.iterdir()
        if path.suffix.lower() in SUFFIXES and name.fullmatch(_folded(path.stem)) and path.is_file()
    ]
    order = {suffix: place for place, suffix in enumerate(SUFFIXES)}
    return sorted(found, key=lambda path: (len(_folded(path.stem)), order[path.suffix.lower()], path.name))


def find_transcript(media: Path) -> Path | None:
    """The preferred transcript of a recording, if there is one."""
    return next(iter(find_transcripts(media)), None)


def _recordings(
    folder: Path, report: ProblemHandler, recognize: Callable[[Path], list[Line]] | None
) -> list[Recording]:
    found: dict[str, Recording] = {}
    taken: set[Path] = set()
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    for media in (path for path in files if path.suffix.lower() not in SUFFIXES):
        transcripts = find_transcripts(media)
        if media.suffix.lower() not in VIDEO + AUDIO and not transcripts:
            report(Problem("stray_file", str(media), "neither a recording nor a transcript by its suffix"))
            continue
        taken.update(transcripts)
        if media.stem in found:
            other = found[media.stem].media.name
            report(Problem("stray_file", str(media), f"{other} has the same name and is used instead"))
            continue
        if not transcripts:
            if recognize is not None and (lines := recognize(media)):
                found[media.stem] = Recording(media, lines)
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
            found[media.stem] = Recording(media, lines)
        else:
            report(Problem("bad_transcript", str(transcripts[0]), "no usable utterance in it"))
    for path in files:
        if path.suffix.lower() in SUFFIXES and path not in taken:
            report(Problem("stray_file", str(path), "a transcript without a recording of its name"))
    recordings = list(found.values())
    _tell_ids_apart(recordings, report)
    return recordings


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


def _merge_classes(recordings: Iterable[Recording], report: ProblemHandler) -> None:
    """Merge labels that differ only in case."""
    recordings = list(recordings)
    counts = Counter(line.label for recording in recordings for line in recording.lines if line.label is not None)
    spellings: dict[str, list[str]] = {}
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        spellings.setdefault(_folded(label), []).append(label)
    for first, *others in spellings.values():
        if others:
            report(Problem("same_class", first, f"also spelled {', '.join(others)}"))
    for recording in recordings:
        recording.lines = [
            line if line.label is None else replace(line, label=spellings[_folded(line.label)][0])
            for line in recording.lines
        ]


def _draw(recordings: list[Recording], valid: float, test: float, seed: int) -> dict[str, list[Recording]]:
    """Random splits of whole recordings; of many draws, the one whose splits have the most similar labels."""
    for name, share in (("valid_fraction", valid), ("test_fraction", test)):
        if not 0 < share < 0.5:
            raise ValueError(f"{name}: expected a number between 0 and 0.5, got {share}")
    if len(recordings) < 3:
        return {"test": recordings}
    rng = random.Random(seed)
    tests, valids = (max(round(share * len(recordings)), 1) for share in (test, valid))
    labels = {
        id(recording): Counter(line.label for line in recording.lines if line.label is not None)
        for recording in recordings
    }

    def unlikeness(order: list[Recording]) -> float:
        """Distance of the splits' class frequencies from the overall ones; more if a split lacks labels or classes."""
        parts = order[:tests], order[tests : tests + valids], order[tests + valids :]
        counts = [sum((labels[id(recording)] for recording in part), Counter()) for part in parts]
        every = sum(counts, Counter())
        total = 0.0
        for part, weight in zip(counts, (1.0, 1.0, 3.0), strict=True):
            size = part.total()
            if not size:
                total += 10 * weight
                continue
            total += sum(abs(part[label] / size - every[label] / every.total()) for label in every)
            total += weight * sum(not part[label] for label in every) / len(every)
        return total

    order = min((rng.sample(recordings, len(recordings)) for _ in range(DRAWS)), key=unlikeness)
    return {"train": order[tests + valids :], "valid": order[tests : tests + valids], "test": order[:tests]}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
