"""Recognises words and speakers of recordings without a transcript."""

from collections.abc import Callable
from pathlib import Path

from amuse.data.problems import Problem, ProblemHandler
from amuse.data.transcript import Line, read_transcript
from amuse.speech.transcription import Transcriber, transcribe
from amuse.speech.writing import lines, write_transcription


def recognize(media: Path, transcriber: Transcriber, report: ProblemHandler) -> list[Line]:
    """The recognised utterances of a recording, which is reported; none without words or readable sound."""
    try:
        found = transcribe(media, transcriber)
    except ValueError:  # reported when the media are read for features
        return []
    if found.utterances:
        advice = f"to correct them: amuse transcribe {media.name}"
        report(Problem("transcribed", media.name, f"{found}; {advice}"))
    return lines(found, media.stem)


def recognizer_of_folder(folder: Path, keep: Path) -> Callable[[Path, ProblemHandler], list[Line]]:
    """For the recordings of a folder: transcriptions are kept as tables in `keep`, and read from there later.

    Raises:
        ImportError: A package is missing; says how to install it.
    """
    transcriber = Transcriber()

    def understand(media: Path, report: ProblemHandler) -> list[Line]:
        table = keep / media.relative_to(folder).with_suffix(".csv")
        if not table.exists():
            try:
                found = transcribe(media, transcriber)
            except ValueError as error:
                report(Problem("unreadable", str(media), str(error)))
                return []
            if not found.utterances:
                return []
            table.parent.mkdir(parents=True, exist_ok=True)
            write_transcription(found, table)
            report(Problem("transcribed", media.name, f"{found}; kept, and to be corrected, in {table}"))
        else:
            report(Problem("transcribed", media.name, f"before; kept, and to be corrected, in {table}"))
        return read_transcript(table, report)

    return understand
