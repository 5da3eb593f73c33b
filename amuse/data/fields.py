"""Maps columns of tables and keys of JSON objects, by their common names, to the fields of an utterance."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from amuse.data.problems import Problem, ProblemHandler

ALIASES = {
    "start": ("start", "begin", "onset", "starttime", "begintime", "timestart", "tmin", "xmin", "from"),
    "end": ("end", "stop", "offset", "endtime", "stoptime", "timeend", "tmax", "xmax", "to"),
    "duration": ("duration", "dur", "length"),
    "speaker": ("speaker", "speakername", "speakerid", "participant", "who", "name", "actor"),
    "text": ("text", "utterance", "transcript", "transcription", "sentence", "words", "content"),
    "label": ("label", "emotion", "emotionlabel", "class", "category", "affect", "sentiment"),
    "id": ("id", "utteranceid", "uttid", "segmentid"),
}
"""Field of an utterance -> its aliases, the preferred one first; case, spaces and punctuation do not matter."""
UNITS = {"milliseconds": 1e-3, "msec": 1e-3, "ms": 1e-3, "seconds": 1.0, "sec": 1.0, "s": 1.0}
"""Suffix of a time column's name -> its unit in seconds."""

MILLISECONDS = 100
"""Whole numbers without a unit are milliseconds if most utterances would otherwise last longer than this, in s."""


@dataclass
class TranscriptRow:
    """An utterance as in the transcript, before any check.

    Attributes:
        number: Its line, or its position among the entries.
        start, end: Seconds, or text such as 00:01:02,5.
        speaker, text, label, id: Empty where unknown.
    """

    number: int
    start: str | float | None
    end: str | float | None
    speaker: str = ""
    text: str = ""
    label: str = ""
    id: str = ""


@dataclass
class Fields:
    """Which column holds which field.

    Attributes:
        columns: Field -> its column.
        unused: Columns that match no field.
        units: Time field -> its unit in seconds, where the column's name has one.
    """

    columns: dict[str, str]
    unused: list[str]
    units: dict[str, float]

    @classmethod
    def find(cls, names: Iterable[str]) -> "Fields":
        named: dict[str, tuple[int, str]] = {}
        unused: list[str] = []
        units: dict[str, float] = {}
        for name in names:
            field, rank, unit = _meaning(name)
            if field is None or (field in named and named[field][0] <= rank):
                unused.append(name)
                continue
            if field in named:
                unused.append(named[field][1])
            named[field], units[field] = (rank, name), unit
        if "duration" in named and "end" in named:
            unused.append(named.pop("duration")[1])
        return cls({field: name for field, (_, name) in named.items()}, [name for name in unused if name], units)

    @property
    def timed(self) -> bool:
        return "start" in self.columns and ("end" in self.columns or "duration" in self.columns)

    def row(self, number: int, cells: Mapping[str, Any]) -> TranscriptRow:
        """The utterance in these cells; a time that cannot be parsed is kept as text."""

        def text(field: str) -> str:
            value = cells.get(self.columns[field]) if field in self.columns else None
            return "" if value is None or value != value else str(value).strip()  # NaN: an empty cell of pandas

        def time(field: str) -> float | str:
            try:
                return seconds(text(field), field) * self.units[field]
            except ValueError:
                return text(field)

        start = time("start")
        end = time("duration" if "duration" in self.columns else "end")
        if "duration" in self.columns and isinstance(start, float) and isinstance(end, float):
            end += start
        return TranscriptRow(number, start, end, text("speaker"), text("text"), text("label"), text("id"))


class Timed(Protocol):
    """Something with times in seconds; a time that is no number yet is left alone."""

    start: Any
    end: Any


def convert_milliseconds(rows: Sequence[Timed], fields: Fields, path: Path, report: ProblemHandler) -> None:
    """Convert times in milliseconds without a unit, as in Whisper's TSV; reports `milliseconds`."""
    times = [(row, row.start, row.end) for row in rows if isinstance(row.start, float) and isinstance(row.end, float)]
    long = sum(end - start > MILLISECONDS for _, start, end in times)
    told = any(fields.units.get(name, 1.0) != 1.0 for name in ("start", "end", "duration"))
    if told or long * 2 <= len(times) or not all(start.is_integer() and end.is_integer() for _, start, end in times):
        return
    for row, start, end in times:
        row.start, row.end = start / 1000, end / 1000
    report(Problem("milliseconds", path.name, f"the first utterance lasts from {times[0][1]:g} to {times[0][2]:g}"))


_CLOCK = re.compile(r"(?:(?:(\d+):)?([0-5]?\d):)?(\d+(?:[.,]\d*)?(?:[eE][+-]?\d{1,3})?)")


def seconds(cell: str | float | None, field: str) -> float:
    """Seconds from a number of seconds or [hours:]minutes:seconds.

    Raises:
        ValueError: Neither of them, or not finite.
    """
    text = cell.strip() if isinstance(cell, str) else "" if cell is None else repr(float(cell))
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise ValueError(f"{field}: expected seconds or hours:minutes:seconds, got {cell!r}")
    hours, minutes, rest = match.groups()
    total = 3600 * float(hours or 0) + 60 * float(minutes or 0) + float(rest.replace(",", "."))
    if not total < 1e9:
        raise ValueError(f"{field}: expected seconds or hours:minutes:seconds, got {text[:20]!r}")
    return total


def is_label(name: str) -> bool:
    """Whether a tier of this name holds labels: "emotion", "Ann_emotion", "label@Ann"."""
    return any(part in ALIASES["label"] for part in re.split(r"[\W_]+", name.lower()))


def _meaning(name: str) -> tuple[str | None, int, float]:
    """A column's field, the rank of its name among the aliases, and its unit in seconds."""
    plain = re.sub(r"[\W_]+", "", name.lower())
    for field, names in ALIASES.items():
        if plain in names:
            return field, names.index(plain), 1.0
    for unit, value in UNITS.items():
        bare = plain.removesuffix(unit)
        for field in ("start", "end", "duration"):
            if bare != plain and bare in ALIASES[field]:
                return field, ALIASES[field].index(bare), value
    return None, 0, 1.0
