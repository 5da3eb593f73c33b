"""Output of speech recognisers: JSON as Whisper and WhisperX write it, and JSON Lines of utterances."""

import json
from pathlib import Path
from typing import Any

from amuse.data.delimited import read_text
from amuse.data.fields import Fields, TranscriptRow, convert_milliseconds
from amuse.data.problems import Problem, ProblemHandler

LISTS = ("segments", "utterances", "turns", "results", "transcript")
"""Keys under which a JSON object may hold its utterances, the first one that is a list."""
TECHNICAL = {
    *("seek", "tokens", "temperature", "avg_logprob", "compression_ratio", "no_speech_prob", "words", "chars"),
    *("confidence", "score", "channel"),
}
"""Keys of an utterance that are not used here."""


def read_json_lines(path: Path, report: ProblemHandler) -> list[TranscriptRow]:
    """JSON Lines: one object per line."""
    objects = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            objects.append((number, _parsed(line)))
    return _rows(objects, path, "line", report)


def read_json_transcript(path: Path, report: ProblemHandler) -> list[TranscriptRow]:
    """A JSON list of objects, or an object that has one under `segments` (Whisper, WhisperX) or a similar key.

    Raises:
        ValueError: Not JSON, or without such a list.
    """
    content = _parsed(read_text(path))
    if isinstance(content, dict):
        lists = [key for key in LISTS if isinstance(content.get(key), list)]
        key = next((key for key in lists if content[key]), lists[0] if lists else None)
        content = None if key is None else content[key]
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a JSON list of utterances, or an object with one under {', '.join(LISTS)}")
    return _rows(list(enumerate(content, 1)), path, "entry", report)


def _rows(objects: list[tuple[int, Any]], path: Path, what: str, report: ProblemHandler) -> list[TranscriptRow]:
    keys = dict.fromkeys(key for _, each in objects if isinstance(each, dict) for key in each if key not in TECHNICAL)
    fields = Fields.find(keys)
    if objects and not fields.timed:
        raise ValueError(f"{path}: expected objects with start and end, got the keys {', '.join(keys)[:200] or 'none'}")
    unused = [*fields.unused, *(["one without a name"] if "" in keys else [])]
    if unused:
        report(Problem("unused", path.name, f"keys: {', '.join(unused)[:200]}"))
    rows = []
    for number, each in objects:
        place = f"{path.name}, {what} {number}"
        if not isinstance(each, dict):
            report(Problem("bad_row", place, "expected a JSON object with start and end, and each key once"))
            continue
        nested = [key for key in fields.columns.values() if isinstance(each.get(key), dict | list)]
        if nested:
            report(Problem("bad_row", place, f"{nested[0]}: expected text or a number, got a list or an object"))
            continue
        rows.append(fields.row(number, each))
    convert_milliseconds(rows, fields, path, report)
    return rows


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unambiguous)
    except (ValueError, RecursionError):
        return None


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any] | None:
    """An object; None if a key occurs twice, of which json would silently drop the first."""
    content = dict(pairs)
    return content if len(content) == len(pairs) else None
