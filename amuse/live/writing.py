"""A live conversation as lines on the terminal, and as a transcript that is written while it grows."""

import csv
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from amuse.data.clock import clock
from amuse.files import check_folder_of
from amuse.live.listener import Lost, Spoken

COLUMNS = ("start", "end", "speaker", "text", "label", "confidence", "predicted", "probability")


def line(event: Spoken | Lost) -> str:
    """An utterance with its emotion and the delay in seconds, or what was dropped."""
    if isinstance(event, Lost):
        return f"{_span(event.start, event.end)}  dropped: {event.reason}"
    row = event.understood.row
    result = f"{row.emotion:<9} {row.probability:4.2f}" if row.emotion else f"{row.value:6.2f}"
    return f"{_span(row.start, row.end)}  {row.speaker}  {result}  {row.text or '-'}  (+{event.delay:.1f} s)"


def summary(delays: Sequence[float], lost: Sequence[Lost]) -> str:
    """The number of utterances, how long they took, and everything that was dropped."""
    count = len(delays)
    told = f"{count} utterance{'s' * (count != 1)}"
    if count:
        p50, p99 = np.percentile(delays, [50, 99])
        told += f"; from the end of speech to the emotion: p50 {p50:.1f} s, p99 {p99:.1f} s"
    if not lost:
        return f"{told}; nothing was dropped"
    seconds = sum(each.seconds for each in lost)
    spans = ", ".join(_span(each.start, each.end) for each in lost)
    return f"{told}; {len(lost)} stretch{'es' * (len(lost) != 1)} of speech, {seconds:.1f} s, dropped: {spans}"


class LiveTranscript:
    """A CSV that `amuse predict` reads, and whose rows are there as soon as they are known.

    Raises:
        ValueError: Another suffix than .csv.
        FileExistsError: The file exists, and `overwrite` is not set.
        FileNotFoundError: Its folder does not exist.
    """

    def __init__(self, path: Path, overwrite: bool = False) -> None:
        if path.suffix.lower() != ".csv":
            raise ValueError(f"{path}: expected a file ending in .csv")
        check_folder_of(path)
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path}: exists, perhaps corrected by hand; to replace it: --overwrite")
        self._path = path

    def __enter__(self) -> Self:
        # with a byte order mark, without which Excel does not read UTF-8
        self._file = self._path.open("w", encoding="utf-8-sig", newline="")
        self._table = csv.writer(self._file, lineterminator="\n")
        self._table.writerow(COLUMNS)
        return self

    def add(self, spoken: Spoken) -> None:
        row, confidence = spoken.understood
        sure = "" if confidence is None else f"{confidence:.2f}"
        predicted = [row.emotion, f"{row.probability:.2f}"] if row.emotion else [f"{row.value:.2f}", ""]
        self._table.writerow([f"{row.start:.2f}", f"{row.end:.2f}", row.speaker, row.text or "", "", sure, *predicted])
        self._file.flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()


def _span(start: float, end: float) -> str:
    return f"{clock(start, decimals=2)} - {clock(end, decimals=2)}"
