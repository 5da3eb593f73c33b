"""IEMOCAP: conversations of two actors (Busso et al. 2008), from the layout of its full release.

The usual protocols: 6 classes (DialogueRNN and most later papers) or 4 classes with excited counted as happy;
utterances of other labels are left out; session 5 is the test split. The release has no validation split: a seeded
share of the dialogues of sessions 1 to 4 serves as one.
"""

import random
import re
from os import PathLike
from pathlib import Path

from amuse.data.conversation import Conversations, Dialogue, Utterance
from amuse.data.delimited import read_utf8
from amuse.data.problems import Problem, ProblemHandler

PROTOCOLS = {
    6: {"hap": "happy", "sad": "sad", "neu": "neutral", "ang": "angry", "exc": "excited", "fru": "frustrated"},
    4: {"hap": "happy", "exc": "happy", "sad": "sad", "neu": "neutral", "ang": "angry"},
}
TEST_SESSION = 5
_EVALUATION = re.compile(r"\[(\d+\.\d+) - (\d+\.\d+)\]\t(Ses0\d[FM]_\w+_([FM])\w+)\t(\w+)\t")
_TRANSCRIPT = re.compile(r"(Ses0\d[FM]_\w+) \[[^\]]*\]: ?(.*)")


def read_iemocap(
    folder: str | PathLike[str],
    *,
    classes: int = 6,
    valid_fraction: float = 0.1,
    seed: int = 0,
    report: ProblemHandler | None = None,
) -> dict[str, Conversations]:
    """Reads all splits; dialogues such as `"Ses01F_impro01"`, utterances such as `"Ses01F_impro01_F000"`, by start.

    Args:
        folder: Holds `Session1` to `Session5`, each with `dialog/EmoEvaluation` and `dialog/transcriptions`.
        classes: 6 or 4.
        valid_fraction: Share of the training dialogues for validation, at least one.
        seed: Seed of that choice.
        report: Takes `bad_row` and `missing_text`; None raises at the first bad line instead.

    Returns:
        `"train"`, `"valid"` and `"test"`; speakers are `"Ses01_F"` and so on, times seconds of the recording.

    Raises:
        FileNotFoundError: Session 5, or every other session, is missing.
        ValueError: An unknown protocol, fewer than two training dialogues, or a table that is not UTF-8.
    """
    if classes not in PROTOCOLS:
        raise ValueError(f"classes: expected one of {', '.join(map(str, sorted(PROTOCOLS)))}, got {classes}")
    if not 0 < valid_fraction < 1:
        raise ValueError(f"valid_fraction: expected a number between 0 and 1, got {valid_fraction}")
    folder = Path(folder)
    dialogues: dict[bool, list[Dialogue]] = {True: [], False: []}
    for session in range(1, 6):
        # the release holds shadow files of macOS, named ._Ses...
        tables = sorted((folder / f"Session{session}" / "dialog" / "EmoEvaluation").glob("Ses*.txt"))
        read = [_dialogue(table, PROTOCOLS[classes], report) for table in tables]
        dialogues[session == TEST_SESSION] += [dialogue for dialogue in read if dialogue.utterances]
    for is_test, name in ((True, "Session5"), (False, "Session1 to Session4")):
        if not dialogues[is_test]:
            raise FileNotFoundError(f"{folder}: expected {name} with dialog/EmoEvaluation/Ses*.txt, found none")
    training = dialogues[False]
    if len(training) < 2:
        raise ValueError(f"{folder}: expected at least two dialogues in sessions 1 to 4, got {len(training)}")
    count = min(max(round(valid_fraction * len(training)), 1), len(training) - 1)
    held_out = set(random.Random(seed).sample(range(len(training)), count))
    parts = {
        "train": [dialogue for i, dialogue in enumerate(training) if i not in held_out],
        "valid": [dialogue for i, dialogue in enumerate(training) if i in held_out],
        "test": dialogues[True],
    }
    names = list(dict.fromkeys(PROTOCOLS[classes].values()))
    try:
        return {split: Conversations(part, names, {}) for split, part in parts.items()}
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _dialogue(table: Path, label_names: dict[str, str], report: ProblemHandler | None) -> Dialogue:
    texts = _texts(table.parents[1] / "transcriptions" / table.name, report)
    names = list(dict.fromkeys(label_names.values()))
    utterances: list[Utterance] = []
    seen: set[str] = set()
    for number, line in enumerate(read_utf8(table).splitlines(), start=1):
        if not line.startswith("["):
            continue
        match = _EVALUATION.match(line)
        if match is None:
            _bad_row(f"{table}, line {number}", f"expected '[start - end] id label', got {line[:60]!r}", report)
            continue
        start, end, name, letter, label = match.groups()
        if label not in label_names:
            continue
        if name in seen:
            place, message = f"{table}, line {number}", f"id {name!r} occurs in an earlier line"
            if report is None:
                raise ValueError(f"{place}: {message}")
            report(Problem("duplicate_id", place, message))
            continue
        seen.add(name)
        if name not in texts and report is not None:
            report(
                Problem("missing_text", name, f"{table.name} has this utterance, transcriptions/{table.name} lacks it")
            )
        utterances.append(
            Utterance(
                id=name,
                speaker=f"{name[:5]}_{letter}",
                features={},
                label=names.index(label_names[label]),
                text=texts.get(name),
                start=float(start),
                end=float(end),
            )
        )
    return Dialogue(table.stem, sorted(utterances, key=lambda utterance: utterance.start or 0.0))


def _texts(path: Path, report: ProblemHandler | None) -> dict[str, str]:
    if not path.is_file():
        _bad_row(str(path), "no such file; the dialogue has no text", report)
        return {}
    # lines without an utterance's id are stage directions and remarks between the actors
    matches = (_TRANSCRIPT.match(line) for line in read_utf8(path).splitlines())
    return {match[1]: match[2].strip() for match in matches if match}


def _bad_row(place: str, message: str, report: ProblemHandler | None) -> None:
    if report is None:
        raise ValueError(f"{place}: {message}")
    report(Problem("bad_row", place, message))
