"""Transcripts of conversations: who said what when, in the formats that people have."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from amuse.data.annotations import read_elan, read_rttm, read_textgrid
from amuse.data.delimited import read_table
from amuse.data.fields import Fields, TranscriptRow, convert_milliseconds, seconds
from amuse.data.problems import Problem, ProblemHandler
from amuse.data.recognized import read_json_lines, read_json_transcript
from amuse.data.speakers import speaker_name
from amuse.data.subtitles import OTHERS, read_subtitles

UNKNOWN_SPEAKER = "unknown"


OUR_OWN = ("confidence", "predicted", "probability")
"""Columns of `amuse transcribe` and `amuse live` that say nothing of what is true."""


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
    """The utterances of one recording, sorted by start; what cannot be used is reported and left out.

    The suffix decides the format: tables (.csv, .tsv; columns `start`, `end` or `duration`, and, where known,
    `speaker`, `text`, `label` and `id`, or their aliases in `amuse.data.fields`), subtitles (.srt, .vtt, .ass, ...;
    with speakers and labels as `Name: words` or `Name (label): words`), speech recognisers' .json and .jsonl, ELAN's
    .eaf, Praat's .TextGrid, and .rttm. docs/data.md has an example of each.

    Args:
        path: UTF-8, or UTF-16 with a byte order mark.
        report: Takes `bad_row`, `duplicate_id`, `missing_speaker`, `milliseconds`, `overlap` and `unused`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Another kind of file, or one that cannot be read at all, named with file and line.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: expected a transcript ending in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a transcript")
    lines: list[Line] = []
    seen: set[str] = set()
    unit = COUNTED.get(path.suffix.lower(), "line")
    for row in reader(path, report):
        place = f"{path.name}, {unit} {row.number}"
        try:
            start, end = seconds(row.start, "start"), seconds(row.end, "end")
            if end <= start:
                raise ValueError(f"end: expected a time after the start {start:g}, got {end:g}")
        except ValueError as error:
            words = f"; its words: {row.text[:60]!r}" if row.text else ""
            report(Problem("bad_row", place, f"{error}{words}"))
            continue
        line_id = row.id or _free_id(path.stem, len(lines), seen)
        if line_id in seen:
            report(Problem("duplicate_id", place, f"id {line_id!r} occurs in an earlier line"))
            continue
        seen.add(line_id)
        speaker = speaker_name(row.speaker)
        if not speaker:
            report(Problem("missing_speaker", place, f"no speaker is named for {row.text[:40]!r}"))
        text, label = row.text.strip(), " ".join(row.label.split())
        lines.append(Line(line_id, start, end, speaker or UNKNOWN_SPEAKER, text or None, label or None))
    lines.sort(key=lambda line: line.start)
    for before, after in pairwise(lines):
        if after.start < before.end - 0.05:
            report(
                Problem(
                    "overlap", path.name, f"{after.id} begins {before.end - after.start:.2f} s before {before.id} ends"
                )
            )
    return lines


def _table_rows(path: Path, report: ProblemHandler) -> Iterable[TranscriptRow]:
    table = read_table(path, report, "\t" if path.suffix.lower() == ".tsv" else None)
    fields = Fields.find(name for name in table.header if name.lower() not in OUR_OWN)
    missing = [name for name in ("start", "end") if name not in fields.columns]
    if not fields.timed:
        raise ValueError(f"{path}, line 1: expected the columns start and end, got no {' and no '.join(missing)}")
    repeated = {name for name in table.header if name and table.header.count(name) > 1}
    if fields.unused or repeated:
        names = ", ".join(dict.fromkeys([*fields.unused, *sorted(repeated)]))
        report(Problem("unused", path.name, f"columns: {names[:200]}"))
    rows: list[TranscriptRow] = []
    for number, cells in table.rows:
        # the first of several columns with the same name counts
        named = dict(reversed(list(zip(table.header, cells, strict=False))))
        rows.append(fields.row(number, named))
    convert_milliseconds(rows, fields, path, report)
    return rows


def _free_id(stem: str, number: int, seen: set[str]) -> str:
    while f"{stem}_{number}" in seen:
        number += 1
    return f"{stem}_{number}"


READERS: dict[str, Callable[[Path, ProblemHandler], Iterable[TranscriptRow]]] = {
    ".csv": _table_rows,
    ".tsv": _table_rows,
    ".srt": read_subtitles,
    ".vtt": read_subtitles,
    **dict.fromkeys(OTHERS, read_subtitles),
    ".json": read_json_transcript,
    ".jsonl": read_json_lines,
    ".eaf": read_elan,
    ".textgrid": read_textgrid,
    ".rttm": read_rttm,
}
"""Suffix -> its reader; of several transcripts of a recording, the first in this order is used."""
COUNTED = {
    **{".json": "entry", ".eaf": "annotation", ".textgrid": "annotation"},
    **dict.fromkeys(OTHERS, "subtitle"),
}
"""Suffix -> what is counted where a place in the file is named, if not lines."""
SUFFIXES = tuple(READERS)
