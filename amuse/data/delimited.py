"""CSV tables: rows of cells with their line numbers; every line is part of a row or reported."""

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from amuse.data.problems import Problem, ProblemHandler

DELIMITERS = ",;\t|"
LONGEST_CELL = 100
"""The most lines of a quoted cell; in a longer one, the quotation mark is taken for one that was never closed."""
WHISPER = ["start", "end", "text"]
"""The header of Whisper's TSV, in which quotation marks belong to the words."""
_SEPARATOR = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)


@dataclass
class Table:
    """A header and its rows.

    Attributes:
        header: Names of the columns, as written.
        rows: The number of the line on which a row begins, and its cells in the order of the header, at most as many.
    """

    header: list[str]
    rows: list[tuple[int, list[str]]] = field(default_factory=list)


def read_table(path: Path, report: ProblemHandler, delimiter: str | None = None) -> Table:
    """The rows of a CSV file; the delimiter is given by a line such as `sep=;`, else the most frequent in the header.

    Args:
        path: UTF-8, or UTF-16 with a byte order mark.
        report: Takes a `bad_row` for each line with more cells than the header and for quotation marks that are never
            closed or are inside a cell, and `unused` for a column with cells and no name.
        delimiter: The delimiter; None detects it.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Neither UTF-8 nor UTF-16.
    """
    lines = list(io.StringIO(read_text(path), newline=None))
    first = 0
    if lines and (match := _SEPARATOR.fullmatch(lines[0])):
        delimiter, first = match[1], 1
    while first < len(lines) and not lines[first].strip():
        first += 1
    if first == len(lines):
        return Table([])
    if delimiter is None:
        delimiter = max(DELIMITERS, key=lines[first].count)
    header = [name.strip() for name in _cells(lines[first : first + 1], delimiter) or lines[first].split(delimiter)]
    table = Table(header)
    place = first + 1
    while place < len(lines):
        if not lines[place].strip():
            place += 1
            continue
        cells, taken = _record(lines, place, delimiter, len(header))
        if cells is None and delimiter == "\t" and header == WHISPER and lines[place].count("\t") + 1 == len(header):
            cells = lines[place].rstrip("\n").split("\t")
        if cells is None:
            message = f"a quotation mark that is not closed or is inside a cell: {lines[place].strip()[:60]!r}"
            report(Problem("bad_row", f"{path.name}, line {place + 1}", message))
        elif any(cell.strip() for cell in cells[len(header) :]):
            message = f"expected {len(header)} cells as in the header, got {len(cells)}; is one not quoted?"
            report(Problem("bad_row", f"{path.name}, line {place + 1}", message))
        else:
            table.rows.append((place + 1, [cell.strip() for cell in cells[: len(header)]]))
        place += taken
    for column, name in enumerate(header):
        if not name and any(cells[column] for _, cells in table.rows if column < len(cells)):
            report(Problem("unused", path.name, f"column {column + 1}, which has no name"))
    return table


def _record(lines: list[str], place: int, delimiter: str, width: int) -> tuple[list[str] | None, int]:
    """The cells of the row that begins in a line, and how many lines it takes; None = its quotation marks are wrong."""
    for taken in range(1, min(LONGEST_CELL, len(lines) - place) + 1):
        cells = _cells(lines[place : place + taken], delimiter)
        if cells is not None:
            return cells, taken
        behind = lines[place + taken : place + taken + 1]
        # the next line is a complete row, so it is not inside a quoted cell
        if behind and len(_cells(behind, delimiter) or ()) == width > 1:
            break
    return None, 1


def _cells(lines: list[str], delimiter: str) -> list[str] | None:
    """The cells of the row that these lines form; None if they are not exactly one row."""
    try:
        rows = list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def read_text(path: Path) -> str:
    """The text of a file, UTF-8 or UTF-16 with a byte order mark.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Neither of them; names the line.
    """
    data = path.read_bytes()
    if data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        return read_utf8(path)
    try:
        return data.decode("utf-16")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected UTF-16, as its byte order mark says, got {error.reason} at byte {error.start}"
        ) from None


def read_utf8(path: Path) -> str:
    """The text of a file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not UTF-8; names the line.
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
    """Turn errors of the csv module into a ValueError that names the file."""
    try:
        yield
    except csv.Error as error:
        raise ValueError(f"{path}: not a CSV file: {error}") from None
