"""`amuse pretrained`: a model for users without training data."""

from pathlib import Path
from typing import Annotated

import typer


def pretrained(
    name: Annotated[str, typer.Argument(help="meld: seven emotions, from words.")] = "meld",
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data set's CSVs. Default: downloaded from its authors.")
    ] = None,
) -> None:
    """Train a model on public data and keep it in the cache; predict, explain and demo use it if no RUN is given."""
    from amuse.pretrained import pretrain

    folder, metrics = pretrain(name, data)
    if metrics is None:
        typer.echo(f"already trained: {folder}; to train it again, delete that folder")
        return
    typer.echo(metrics.report())
    typer.echo(f"saved with its model card in {folder}; next: amuse predict VIDEO")


def run_and_recording(run: Path, video: Path | None) -> tuple[Path, Path | None]:
    """Resolve the arguments `[RUN] [VIDEO]`: a recording alone uses the pretrained run."""
    if run.is_file() and video is not None and video.is_dir():
        raise ValueError(f"RUN VIDEO: expected the folder of the run first, then the recording: {video} {run}")
    if run.is_file() and video is not None:
        raise ValueError(
            f"RUN: expected the folder of a run, got the file {run}; without a run, give the recording alone"
        )
    if video is not None or run.is_dir():
        return run, video
    if not run.is_file():
        raise FileNotFoundError(f"{run}: no such file or folder; expected a run or a recording")
    from amuse.pretrained import find

    return find(), run
