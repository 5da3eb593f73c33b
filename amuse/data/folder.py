"""A plain folder of conversations: recordings, each with a transcript of the same name beside it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from amuse.data.conversation import Conversations, Dialogue, Utterance
from amuse.data.problems import Problem, ProblemHandler
from amuse.data.transcript import SUFFIXES, Line, read_transcript

SPLITS = ("train", "valid", "test")
VIDEO = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv")
AUDIO = (".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".aac")


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
) -> tuple[dict[str, Conversations], dict[str, dict[str, Path]]]:
    """Reads `NAME.mp4` (or another recording) with `NAME.csv` or `NAME.srt`; every recording is a dialogue.

    Args:
        folder: Holds the recordings, or folders `train`, `valid` and `test` of recordings (some of them).
        valid_fraction, test_fraction: Shares of the dialogues where there are no such folders, at least one dialogue
            each; with fewer than three dialogues all of them are `"test"`.
        seed: Chooses them.
        report: Takes everything that is wrong with a recording or its transcript.

    Returns:
        Split -> conversations, for the splits that have a dialogue. Classes are the labels that occur, sorted; without
        any label there is one class, `"unlabelled"`, that no utterance has. Split -> dialogue id -> media file.

    Raises:
        FileNotFoundError: No folder, or no usable recording in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of recordings, no such folder")
    parts = {split: _recordings(folder / split, report) for split in SPLITS if (folder / split).is_dir()}
    if not parts:
        parts = _draw(_recordings(folder, report), valid_fraction, test_fraction, seed)
    parts = {split: recordings for split, recordings in parts.items() if recordings}
    if not parts:
        raise FileNotFoundError(
            f"{folder}: expected recordings ({', '.join(VIDEO[:3])}, {AUDIO[0]}, ...), each with a transcript of the "
            "same name ending in .csv or .srt, found none that can be used"
        )
    every = [recording for recordings in parts.values() for recording in recordings]
    names = sorted({line.label for recording in every for line in recording.lines if line.label is not None})
    splits = {split: conversations(recordings, names or ["unlabelled"]) for split, recordings in parts.items()}
    media = {split: {each.media.stem: each.media for each in recordings} for split, recordings in parts.items()}
    return splits, media


def conversations(recordings: Sequence[Recording], label_names: Sequence[str] | None) -> Conversations:
    """Recordings as dialogues without features; labels outside of `label_names` are unlabelled."""
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


def _recordings(folder: Path, report: ProblemHandler) -> list[Recording]:
    found: dict[str, Recording] = {}
    ids: set[str] = set()
    for media in sorted(path for path in folder.iterdir() if path.suffix.lower() in VIDEO + AUDIO):
        if media.name.startswith("."):
            continue
        transcript = find_transcript(media)
        if media.stem in found:
            other = found[media.stem].media.name
            report(Problem("stray_file", str(media), f"{other} has the same name and is used instead"))
            continue
        if transcript is None:
            report(
                Problem("missing_transcript", str(media), f"expected {media.stem}.csv or {media.stem}.srt beside it")
            )
            continue
        try:
            lines = read_transcript(transcript, report)
        except ValueError as error:
            report(Problem("bad_transcript", str(transcript), str(error)))
            continue
        fresh = [line for line in lines if line.id not in ids]
        for line in lines:
            if line.id in ids:
                report(Problem("duplicate_id", str(transcript), f"id {line.id!r} stands in another transcript too"))
        ids.update(line.id for line in fresh)
        if fresh:
            found[media.stem] = Recording(media, fresh)
        else:
            report(Problem("bad_transcript", str(transcript), "not one usable utterance in it"))
    return list(found.values())


def find_transcript(media: Path) -> Path | None:
    """The CSV or SRT file of the same name beside a recording."""
    return next((path for suffix in SUFFIXES if (path := media.with_suffix(suffix)).is_file()), None)


def _draw(recordings: list[Recording], valid: float, test: float, seed: int) -> dict[str, list[Recording]]:
    for name, share in (("valid_fraction", valid), ("test_fraction", test)):
        if not 0 < share < 0.5:
            raise ValueError(f"{name}: expected a number between 0 and 0.5, got {share}")
    if len(recordings) < 3:
        return {"test": recordings}
    order = random.Random(seed).sample(recordings, len(recordings))
    tests, valids = (max(round(share * len(order)), 1) for share in (test, valid))
    return {"train": order[tests + valids :], "valid": order[tests : tests + valids], "test": order[:tests]}
