"""`amuse live`: emotions while people speak."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from amuse.live import Live


def live(
    run: Annotated[Path | None, typer.Argument(help="Folder of a run; default: the run of amuse pretrained.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A recording to replay. Default: the microphone.")] = None,
    speed: Annotated[
        float, typer.Option(help="Speed of the replay: 2 = twice as fast; 0 = as fast as possible.")
    ] = 1.0,
    microphone: Annotated[
        str | None, typer.Option(help="Number or part of the name of a microphone. Default: the system's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A .csv with words, speakers and predictions, as they come.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Speech to text, as for transcribe; tiny.en takes half as long and errs more.")
    ] = "base",
    speakers: Annotated[
        int | None, typer.Option(help="At most so many speakers. Default: found by their voices.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="Code of the language, such as en. Default: detected.")] = None,
    patience: Annotated[
        float, typer.Option(help="Seconds that speech may wait to be processed; older speech is dropped.")
    ] = 20.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Predict emotions while people speak, from a microphone or a recording replayed in real time; Ctrl-C stops it."""
    from contextlib import nullcontext

    from amuse.data.problems import problem_table
    from amuse.files import check_recording
    from amuse.inference.recording import Recognizer
    from amuse.live import Live, LiveOptions, Lost, Spoken
    from amuse.live.sources import check_microphone
    from amuse.live.writing import LiveTranscript, line, summary
    from amuse.pretrained import find
    from amuse.speech import SpeechOptions

    if run is not None and run.is_file():
        raise ValueError(f"RUN: expected the folder of a run, got the file {run}; a recording is replayed by --file")
    if file is not None and microphone is not None:
        raise ValueError(f"--microphone: expected no --file with it, got {file}")
    if file is None:
        check_microphone(microphone)
    else:
        check_recording(file)
    options = LiveOptions(SpeechOptions(model, speakers, language), patience)
    transcript = None if out is None else LiveTranscript(out, overwrite)
    delays: list[float] = []

    def show(event: Spoken | Lost) -> None:
        typer.echo(line(event))
        if isinstance(event, Spoken):
            delays.append(event.delay)
            if transcript is not None:
                transcript.add(event)

    with transcript or nullcontext():
        listener = Live(Recognizer(find() if run is None else run), show, options)
        typer.echo(f"listening to {file or 'the microphone'}, with {listener.description}; Ctrl-C stops it", err=True)
        try:
            _listen(listener, file, speed, microphone)
        except KeyboardInterrupt:
            typer.echo("stopping; what was said until now is still processed", err=True)
        listener.finish()
    typer.echo(f"{summary(delays, listener.lost)}{'' if out is None else f': {out}'}")
    if listener.problems:
        typer.echo(problem_table(list(listener.problems)), err=True)


def _listen(listener: "Live", file: Path | None, speed: float, device: str | None) -> None:
    from amuse.live.sources import microphone, replay

    if file is not None:
        replay(file, listener, speed)
    else:
        for block in microphone(device):
            listener.hear(block)
