"""Writes transcriptions: a table to be corrected by hand, or JSON with the times of every word."""

import json
from collections.abc import Sequence
from pathlib import Path

from amuse.data.transcript import Line
from amuse.files import csv_text, write_text
from amuse.speech.transcription import Transcription

COLUMNS = ("start", "end", "speaker", "text", "label", "confidence")
SUFFIXES = (".csv", ".json")
"""Suffixes of the files that `write_transcription` writes; `amuse.data.transcript` reads both."""


def lines(transcription: Transcription, stem: str) -> list[Line]:
    """The utterances as `read_transcript` would read them from a file of that name."""
    return [
        Line(f"{stem}_{i}", *_times(u.start, u.end), u.speaker, u.text, None)
        for i, u in enumerate(transcription.utterances)
    ]


def write_transcription(transcription: Transcription, path: Path) -> None:
    """Write a `.csv` with an empty column for labels, or a `.json` such as WhisperX's.

    Raises:
        ValueError: Another suffix.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: expected a file ending in {' or '.join(SUFFIXES)}")
    write_text(to_csv(transcription) if path.suffix.lower() == ".csv" else to_json(transcription), path)


def to_csv(transcription: Transcription) -> str:
    """Rows of `COLUMNS` after a byte order mark, without which Excel does not read UTF-8."""
    rows: list[Sequence[str]] = [COLUMNS]
    for utterance in transcription.utterances:
        start, end = _times(utterance.start, utterance.end)
        sure = "" if utterance.confidence is None else f"{utterance.confidence:.2f}"
        rows.append([f"{start:.2f}", f"{end:.2f}", utterance.speaker, utterance.text, "", sure])
    return "\ufeff" + csv_text(rows)


def to_json(transcription: Transcription) -> str:
    """`{"language", "segments": [{"start", "end", "speaker", "text", "confidence", "words": [...]}]}`."""
    segments = []
    for utterance in transcription.utterances:
        start, end = _times(utterance.start, utterance.end)
        words = [
            {
                "word": word.text,
                "start": round(word.start, 2),
                "end": round(word.end, 2),
                "probability": word.probability,
            }
            for word in utterance.words
        ]
        told = {"start": start, "end": end, "speaker": utterance.speaker, "text": utterance.text}
        segments.append({**told, "confidence": utterance.confidence, "words": words})
    return json.dumps({"language": transcription.language, "segments": segments}, indent=1, ensure_ascii=False)


def _times(start: float, end: float) -> tuple[float, float]:
    """Times rounded to hundredths, and still different."""
    return round(start, 2), max(round(end, 2), round(start, 2) + 0.01)
