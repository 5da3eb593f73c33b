"""`amuse explain`, `amuse plot` and `amuse demo`."""

from pathlib import Path
from typing import Annotated

import typer

from amuse.cli.pretrained import run_and_recording

Run = Annotated[Path, typer.Argument(help="Folder of a run, as given to train --out.")]
Split = Annotated[str, typer.Option(help="train, valid or test")]


def explain(
    run: Annotated[
        Path, typer.Argument(help="Folder of a run, as given to train --out; default: the run of amuse pretrained.")
    ],
    video: Annotated[
        Path | None, typer.Argument(help="Video or audio file. Default: a dialogue of the run's data.")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The report, one HTML file.")] = Path("report.html"),
    transcript: Annotated[
        Path | None,
        typer.Option(help="Any kind in docs/data.md. Default: the one next to VIDEO, or recognised speech."),
    ] = None,
    dialogue: Annotated[str | None, typer.Option(help="Id of a dialogue; default: the first.")] = None,
    split: Split = "test",
    method: Annotated[str, typer.Option(help="lime, shap, occlusion or gradients")] = "lime",
    samples: Annotated[int, typer.Option(help="Perturbations per utterance.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the perturbations.")] = 0,
    sound: Annotated[
        bool, typer.Option("--sound", help="Embed the sound of VIDEO in the report, about 5 kB per second.")
    ] = False,
    expressions: Annotated[
        bool | None,
        typer.Option(help="Also facial expressions by another model (fer). Default: without RUN, if installed."),
    ] = None,
) -> None:
    """Explain every prediction for a recording, or for a dialogue of the run's data, and write a report."""
    from amuse.files import check_folder_of

    check_folder_of(out)
    from amuse.explain import ExplainOptions
    from amuse.report import write_report

    options = ExplainOptions(method, samples, seed)
    named = video is not None or run.is_dir()
    run, video = run_and_recording(run, video)

    if video is None:
        from amuse.report.from_run import explain_run

        if transcript is not None:
            raise ValueError("--transcript: expected VIDEO, the recording that it belongs to, got none")
        if sound:
            raise ValueError("--sound: expected VIDEO, since a run's data hold no sound, got none")
        content = explain_run(run, dialogue, options, split=split)
    else:
        from amuse.cli.problems import problems_shown
        from amuse.data.folder import AUDIO
        from amuse.inference.expressions import face_expressions, installed
        from amuse.report.from_recording import explain_recording

        if dialogue is not None:
            raise ValueError("--dialogue: expected no VIDEO with it, since it names a dialogue of the run's data")
        with problems_shown() as report:
            content = explain_recording(run, video, transcript, report, options)
            if expressions is None:
                expressions = not named and video.suffix.lower() not in AUDIO and installed()
            if expressions:
                times = [(turn.utterance.start or 0.0, turn.utterance.end or 0.0) for turn in content.turns]
                for turn, face in zip(content.turns, face_expressions(times, video, report), strict=True):
                    turn.expression = face
    write_report(content, out, sound=sound)
    size = out.stat().st_size / 1e3
    typer.echo(f"{len(content.turns)} utterances explained: {out} ({size:,.0f} kB{', with sound' if sound else ''})")


def plot(
    run: Run,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder; default: RUN/plots.")] = None,
    split: Split = "test",
    file_format: Annotated[str, typer.Option("--format", help="png or svg")] = "png",
) -> None:
    """Draw losses and scores, F1 by class, confusion, modality weights by emotion and calibration."""
    from amuse.report.plots import plot_run

    for path in plot_run(run, run / "plots" if out is None else out, split, file_format):
        typer.echo(path)


def demo(
    run: Annotated[
        Path | None,
        typer.Argument(help="Folder of a run, as given to train --out; default: the run of amuse pretrained."),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Default: the first free one from 7860.")] = None,
) -> None:
    """Serve a page on this machine only: drop a video, watch its emotions appear, click one for its explanation."""
    from amuse.demo.page import serve

    if run is None:
        from amuse.pretrained import find

        run = find()
    serve(run, port)
