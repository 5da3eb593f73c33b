"""`amuse data` and `amuse predict`: from raw media to features and emotions."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amuse.cli.pretrained import run_and_recording

if TYPE_CHECKING:
    from amuse.data.problems import ProblemHandler
    from amuse.data.transcript import Line
    from amuse.encoders.words import TextOptions

app = typer.Typer(no_args_is_help=True)


@app.callback()
def data() -> None:
    """Make features from raw video and audio, and share them."""


@app.command()
def prepare(
    source: Annotated[str, typer.Argument(help="Folder of the raw data; hf: or OWNER/NAME on the hub.")],
    out: Annotated[Path, typer.Option(help="Folder of the prepared data; a killed run resumes there.")],
    dataset: Annotated[str, typer.Option(help="Layout of SOURCE: meld, iemocap, folder or hf.")] = "folder",
    audio: Annotated[
        str, typer.Option(help="logmel, a transformers model (name or folder), raw:MODEL, or none.")
    ] = "logmel",
    vision: Annotated[
        str, typer.Option(help="hog, a transformers model (name or folder), raw:MODEL, or none.")
    ] = "hog",
    face: Annotated[
        str | None, typer.Option(help="Encoder of faces: fer, or any that --vision takes. Default: that of --vision.")
    ] = None,
    faces: Annotated[
        bool | None, typer.Option(help="Faces and background apart. Default: when a detector is installed.")
    ] = None,
    speaker_face: Annotated[
        bool,
        typer.Option(
            "--speaker-face/--largest-face", help="Of several faces, the one whose mouth moves with the sound."
        ),
    ] = True,
    text: Annotated[
        str, typer.Option(help="none, since training encodes words; or minilm, a transformers model (name or folder).")
    ] = "none",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="With --text: data.context=2, data.speakers=true, ..., as the training has them."),
    ] = None,
    audio_rate: Annotated[float, typer.Option(help="Audio tokens per second.")] = 5.0,
    frames: Annotated[int, typer.Option(help="Key frames per utterance.")] = 4,
    max_seconds: Annotated[float, typer.Option(help="Seconds of an utterance that are read at most.")] = 30.0,
    classes: Annotated[int, typer.Option(help="IEMOCAP: 6 or 4.")] = 6,
    whole_frame: Annotated[
        bool, typer.Option("--whole-frame", help="IEMOCAP: read the whole frame, not only the speaker's half.")
    ] = False,
    subset: Annotated[str | None, typer.Option(help="hf: the configuration, if there are several.")] = None,
    valid_fraction: Annotated[
        float | None, typer.Option(help="Share of the dialogues for validation. Default: iemocap 0.1, else 0.15.")
    ] = None,
    test_fraction: Annotated[float, typer.Option(help="folder, hf: share of the dialogues for the test split.")] = 0.15,
    seed: Annotated[int, typer.Option(help="Seed of the draw of those dialogues.")] = 0,
    engine: Annotated[
        str, typer.Option(help="local: this machine's processes. ray: a Ray cluster that shares the folders.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(help="Processes; default: one per CPU core. ray: networks; default: one per GPU.")
    ] = None,
    shard_size: Annotated[int, typer.Option(help="Utterances per file.")] = 64,
    device: Annotated[str, typer.Option(help="Where transformers encoders run: cpu or cuda.")] = "cpu",
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 when anything could not be used.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Summarise the data and encode nothing.")] = False,
) -> None:
    """Cut, encode and store every utterance of a data set; report what is broken."""
    from amuse.data.preflight import Preflight
    from amuse.data.prepared import REPORT_FILE
    from amuse.data.problems import problem_table
    from amuse.media.extract import Options
    from amuse.media.prepare import prepare as prepare_source
    from amuse.media.sources import folder_source, hub_source, iemocap_source, meld_source

    if dataset not in ("meld", "iemocap", "folder", "hf"):
        raise ValueError(f"dataset: expected meld, iemocap, folder or hf, got {dataset!r}")
    if subset is not None and dataset != "hf":
        raise ValueError(f"--subset: expected --dataset hf with it, got {dataset}")
    separate = vision != "none" and not dry_run and (_detector_installed() if faces is None else faces)
    options = Options(
        audio=None if audio == "none" else audio,
        vision=None if vision == "none" else vision,
        face=face,
        faces=separate,
        speaker_face=separate and speaker_face,
        audio_rate=audio_rate,
        frames=frames,
        max_seconds=max_seconds,
        text=_text_options(text, settings or []),
    )
    if valid_fraction is None:
        valid_fraction = 0.1 if dataset == "iemocap" else 0.15
    if dataset == "meld":
        found = meld_source(Path(source))
    elif dataset == "iemocap":
        found = iemocap_source(Path(source), classes, valid_fraction, seed, whole_frame)
    elif dataset == "folder":
        recognize = None if dry_run else _speech_recognizer(Path(source), out)  # a dry run reads no media
        found = folder_source(Path(source), valid_fraction, test_fraction, seed, recognize)
    else:
        found = hub_source(source, None if dry_run else out / "media", subset, valid_fraction, test_fraction, seed)
    preflight = Preflight.of(found.splits, max_seconds)
    if dry_run:
        typer.echo(f"{found.protocol}\n{preflight.table()}\n{problem_table(found.problems)}")
        typer.echo("nothing was encoded; the media files themselves were not read")
        raise typer.Exit(int(strict and any(problem.lost for problem in found.problems)))
    result = prepare_source(found, out, options, engine=engine, workers=workers, shard_size=shard_size, device=device)
    total = sum(part.num_utterances for part in found.splits.values())
    usable = ", ".join(f"{modality} {count}" for modality, count in result.usable.items()) or "nothing"
    typer.echo(f"{found.protocol}\n{preflight.table()}\n{total} utterances; usable: {usable}")
    typer.echo(problem_table(result.problems))
    typer.echo(f"full report: {out / REPORT_FILE}; next: amuse train --data {out} --out RUN")
    if not result.usable or (strict and any(problem.lost for problem in result.problems)):
        raise typer.Exit(1)


@app.command()
def push(
    data: Annotated[Path, typer.Argument(help="Folder of prepared data.")],
    target: Annotated[str, typer.Argument(help="hf:OWNER/NAME, which becomes private, or a new folder.")],
) -> None:
    """Publish prepared features as a data set of Parquet files that the library datasets reads."""
    from amuse.data.parquet import push as push_prepared

    push_prepared(data, target)
    typer.echo(f"amuse data pull {target} --out DATA restores the prepared data")


@app.command()
def pull(
    source: Annotated[str, typer.Argument(help="hf:OWNER/NAME, or a folder that amuse data push wrote.")],
    out: Annotated[Path, typer.Option(help="New folder of the prepared data.")],
) -> None:
    """Restore the prepared data that amuse data push published."""
    from amuse.data.parquet import pull as pull_prepared

    pull_prepared(source, out)
    typer.echo(f"next: amuse train --data {out} --out RUN")


@app.command()
def cartoon(
    out: Annotated[Path, typer.Option(help="Folder of the videos and transcripts.")],
    talks: Annotated[int, typer.Option(help="Number of recordings.")] = 40,
    utterances: Annotated[int, typer.Option(help="Utterances per recording.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the talks.")] = 0,
) -> None:
    """Make videos of talking cartoon faces with transcripts, to try everything without any data."""
    from amuse.media.cartoon import write_talks

    write_talks(out, talks, utterances, seed)
    typer.echo(f"{talks} talks; next: amuse data prepare {out} --out DATA --no-faces")


def predict(
    run: Annotated[
        Path, typer.Argument(help="Folder of a run, as given to train --out; default: the run of amuse pretrained.")
    ],
    video: Annotated[Path | None, typer.Argument(help="Video or audio file.")] = None,
    transcript: Annotated[
        Path | None,
        typer.Option(help="Any kind in docs/data.md. Default: the one next to VIDEO, or recognised speech."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write everything to this file.")] = None,
    expressions: Annotated[
        bool | None,
        typer.Option(
            help="Also the speaker's facial expression, by another model (fer). Default: without RUN, if installed."
        ),
    ] = None,
) -> None:
    """Predict the emotion of every utterance of a recording: time, speaker, emotion, probability, words."""
    from dataclasses import replace

    from amuse.cli.problems import problems_shown
    from amuse.data.folder import AUDIO
    from amuse.files import check_folder_of, write_text
    from amuse.inference.expressions import face_expressions, installed
    from amuse.inference.prediction import predict_recording, table, to_json

    check_folder_of(json_file)
    run, recording = run_and_recording(run, video)
    if recording is None:
        raise ValueError(f"VIDEO: expected a recording to predict, got only the run {run}")
    with problems_shown() as report:
        rows = predict_recording(run, recording, transcript, report)
        if expressions is None:
            expressions = video is None and recording.suffix.lower() not in AUDIO and installed()
        if expressions:
            found = face_expressions([(row.start, row.end) for row in rows], recording, report)
            rows = [replace(row, expression=face) for row, face in zip(rows, found, strict=True)]
        typer.echo(table(rows))
    if json_file is not None:
        write_text(to_json(rows), json_file)


def _text_options(encoder: str, settings: list[str]) -> "TextOptions | None":
    from dataclasses import fields

    from amuse.config import Config
    from amuse.encoders.words import TextOptions

    names = [f"data.{field.name}" for field in fields(TextOptions) if field.name != "encoder"]
    for setting in settings:
        if encoder == "none":
            raise ValueError(f"--set {setting}: expected --text with it, which was not given")
        if setting.partition("=")[0] not in names:
            raise ValueError(f"--set {setting}: expected one of {', '.join(names)}")
    return None if encoder == "none" else TextOptions.of(Config.load(None, [f"data.encoder={encoder}", *settings]).data)


def _speech_recognizer(source: Path, out: Path) -> "Callable[[Path, ProblemHandler], list[Line]] | None":
    """A transcriber for recordings without a transcript, if its packages are installed."""
    from amuse.speech.automatic import recognizer_of_folder

    try:
        return recognizer_of_folder(source, out / "transcripts")
    except ImportError as error:
        typer.echo(f"recordings without a transcript are left out: {error}")
        return None


def _detector_installed() -> bool:
    from amuse.media.faces import FaceDetector

    try:
        FaceDetector()
    except ImportError as error:
        typer.echo(f"faces are not separated from the background: {error}")
        return False
    return True
