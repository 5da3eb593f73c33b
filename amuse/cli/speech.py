"""`amuse transcribe`: the words and speakers of recordings."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tqdm import tqdm


def transcribe(
    recordings: Annotated[list[Path], typer.Argument(help="Video or audio files.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="A .csv to correct by hand, or a .json with word times. Default: next to the recording."
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(help="Speech to text: a size of Whisper (base, small, large-v3, ...), a folder or a hub name."),
    ] = "base",
    speakers: Annotated[int | None, typer.Option(help="Number of speakers. Default: found by their voices.")] = None,
    language: Annotated[str | None, typer.Option(help="Code of the language, such as en. Default: detected.")] = None,
    voices: Annotated[
        str, typer.Option(help="Tells speakers apart: resemblyzer, or a transformers x-vector model.")
    ] = "resemblyzer",
    device: Annotated[str, typer.Option(help="Where words are recognised: cpu or cuda.")] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing transcripts.")] = False,
) -> None:
    """Transcribe recordings with speakers and times, to be corrected by hand."""
    from functools import partial

    from amuse.data.clock import clock
    from amuse.files import check_folder_of
    from amuse.progress import progress_bar
    from amuse.speech import SpeechOptions, Transcriber, write_transcription
    from amuse.speech import transcribe as run

    if out is not None and len(recordings) > 1:
        raise ValueError(f"--out: names one transcript, expected one recording with it, got {len(recordings)}")
    targets = [recording.with_suffix(".csv") if out is None else out for recording in recordings]
    for target in targets:
        check_folder_of(target)
        if target.exists() and not overwrite:
            raise FileExistsError(f"{target}: exists, perhaps corrected by hand; to replace it: --overwrite")
    transcriber = Transcriber(SpeechOptions(model, speakers, language, voices, device))
    for recording, target in zip(recordings, targets, strict=True):
        with progress_bar(f"transcribing {recording.name}", 100, "%", leave=False) as bar:
            found = run(recording, transcriber, partial(_show, bar))
        if not found.utterances:
            raise ValueError(f"{recording}: no speech was found, so there is nothing to write")
        write_transcription(found, target)
        for utterance in found.utterances:
            times = f"{clock(utterance.start, decimals=2)} - {clock(utterance.end, decimals=2)}"
            sure = "" if utterance.confidence is None else f"{utterance.confidence:.2f}"
            typer.echo(f"{times}  {utterance.speaker}  {sure:>4}  {utterance.text}")
        typer.echo(f"{found}: {target}")
        if speakers is None:
            typer.echo(f"{_people(found.speakers)} found by their voices; if that is wrong: --speakers N --overwrite")


def _people(count: int) -> str:
    return f"{count} speaker{'s' * (count != 1)} {'was' if count == 1 else 'were'}"


def _show(bar: "tqdm[Any]", share: float) -> None:
    bar.update(round(100 * share) - bar.n)
