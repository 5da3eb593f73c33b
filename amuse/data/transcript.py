"""Transcripts of conversations: who said what when, from CSV or SRT files."""

import csv
import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from amuse.data.problems import Problem, ProblemHandler

SUFFIXES = (".csv", ".srt")
COLUMNS = ("start", "end", "speaker", "text", "label", "id")
UNKNOWN_SPEAKER = "unknown"
_CLOCK = re.compile(r"(?:(?:(\d+):)?([0-5]?\d):)?(\d+(?:[.,]\d+)?)")
_ARROW = re.compile(r"\s*(\S+)\s+-->\s+(\S+)")
_SPEAKER = re.compile(r"\[?([^\W\d_][\w .'-]{0,30}?)\]?:\s+(.*)", re.DOTALL)
_MARKUP = re.compile(r"</?[a-zA-Z][^>]*>|\{\\[^}]*\}")


@dataclass(frozen=True)
class Line:
    """One utterance: times in seconds from the beginning of the recording, empty text and label = None."""

    id: str
    start: float
    end: float
    speaker: str
    text: str | None
    label: str | None


def read_transcript(path: Path, report: ProblemHandler) -> list[Line]:
    """The utterances of one recording, by their start; lines that cannot be used are reported and left out.

    CSV: columns `start` and `end` (seconds, or [hours:]minutes:seconds), and, where known, `speaker`, `text`, `label`
    and `id`. SRT: a speaker stands as `Name: ` before the words.

    Args:
        path: `.csv` or `.srt`, UTF-8.
        report: Takes `bad_row`, `duplicate_id`, `missing_speaker` and `overlap`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, a missing column or another kind of file, named with file and line.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: expected a transcript ending in {' or '.join(SUFFIXES)}")
    rows = (_csv_rows if path.suffix.lower() == ".csv" else _srt_rows)(path)
    lines: list[Line] = []
    seen: set[str] = set()
    for number, row in rows:
        place = f"{path.name}, line {number}"
        try:
            start, end = _seconds(row["start"], "start"), _seconds(row["end"], "end")
            if end <= start:
                raise ValueError(f"end: expected a time after the start {start:g}, got {end:g}")
        except ValueError as error:
            report(Problem("bad_row", place, str(error)))
            continue
        line_id = row["id"] or f"{path.stem}_{len(seen)}"
        if line_id in seen:
            report(Problem("duplicate_id", place, f"id {line_id!r} stood in an earlier line"))
            continue
        seen.add(line_id)
        if not row["speaker"]:
            report(Problem("missing_speaker", place, f"nobody is named for {row['text'][:40]!r}"))
        speaker = row["speaker"] or UNKNOWN_SPEAKER
        lines.append(Line(line_id, start, end, speaker, row["text"] or None, row["label"] or None))
    lines.sort(key=lambda line: line.start)
    for before, after in pairwise(lines):
        if after.start < before.end - 0.05:
            report(
                Problem(
                    "overlap", path.name, f"{after.id} begins {before.end - after.start:.2f} s before {before.id} ends"
                )
            )
    return lines


def read_utf8(path: Path) -> str:
    """The text of a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8; names the line.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: expected UTF-8, got byte 0x{data[error.start]:02x}; "
            "save the file as UTF-8 (spreadsheet programs often write Windows-1252)"
        ) from None


@contextmanager
def csv_of(path: Path) -> Iterator[None]:
    """What the csv module cannot read becomes a ValueError that names the file."""
    try:
        yield
    except csv.Error as error:
        raise ValueError(f"{path}: not a CSV file: {error}") from None


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(read_utf8(path), newline=""))
    with csv_of(path):
        names = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
        missing = [name for name in ("start", "end") if name not in names]
        if missing:
            raise ValueError(f"{path}, line 1: expected the columns start and end, got no {' and no '.join(missing)}")
        for row in reader:
            # cells beyond the header stand under None, which no column is named
            cells = {column: row.get(names[column]) if column in names else None for column in COLUMNS}
            yield reader.line_num, {column: (cell or "").strip() for column, cell in cells.items()}


def _srt_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    lines = read_utf8(path).splitlines()
    starts = [number for number, line in enumerate(lines) if _ARROW.match(line)]
    if not starts:
        raise ValueError(f"{path}: expected subtitles with times such as 00:00:01,000 --> 00:00:02,500, got none")
    for position, number in enumerate(starts):
        arrow = _ARROW.match(lines[number])
        assert arrow is not None
        # a number stands in the line above the next subtitle's times
        stop = starts[position + 1] - 1 if position + 1 < len(starts) else len(lines)
        words = _MARKUP.sub("", " ".join(line.strip() for line in lines[number + 1 : stop] if line.strip()))
        named = _SPEAKER.fullmatch(words)
        speaker, text = named.groups() if named else ("", words)
        row = {"start": arrow[1], "end": arrow[2], "speaker": speaker, "text": text.strip(), "label": "", "id": ""}
        yield number + 1, row


def _seconds(cell: str, column: str) -> float:
    match = _CLOCK.fullmatch(cell)
    if match is None:
        raise ValueError(f"{column}: expected seconds or hours:minutes:seconds, got {cell!r}")
    hours, minutes, seconds = match.groups()
    total = 3600 * float(hours or 0) + 60 * float(minutes or 0) + float(seconds.replace(",", "."))
    if not math.isfinite(total):
        raise ValueError(f"{column}: expected seconds or hours:minutes:seconds, got a number of {len(cell)} digits")
    return total
