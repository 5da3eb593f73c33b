"""Which emotion does an actor play? Precomputed features as tables: voice and face of clips, with empty cells.

    python -m amuse.examples.acted combined_summary.csv --out TABLES
    amuse repeat --data TABLES --config amuse/configs/acted.yaml --folds 6 --groups actor --out RUNS

One CSV of RAVDESS features (a row per clip: acoustic measures, the column `file`, then face measures, emotion, actor)
becomes the folder of tables that `amuse.data.tables` describes. Every clip is a dialogue of one utterance, and folds
never split an actor. With --per-actor features are relative to the actor's other clips, as they would be for a person
of whom several clips are at hand: who somebody is shows in voice and face more than what they play.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from amuse.data.delimited import read_utf8
from amuse.data.tables import UTTERANCES_FILE, read_tables
from amuse.files import write_csv

EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")


def run(
    source: Annotated[Path, typer.Argument(help="combined_summary.csv")],
    out: Annotated[Path, typer.Option(help="New folder for the tables.")],
    per_actor: Annotated[
        bool, typer.Option("--per-actor", help="Features relative to the actor's own mean and deviation.")
    ] = False,
) -> None:
    """Write the clips as tables and say what is in them."""
    out.mkdir(parents=True, exist_ok=True)
    rows = list(csv.DictReader(read_utf8(source).splitlines()))
    columns = list(rows[0])
    name, emotion = columns.index("file"), columns.index("emotion")
    streams = {"audio": columns[:name], "video": columns[name + 1 : emotion]}
    utterances = []
    for row in rows:
        # modality-channel-emotion-intensity-statement-repetition-actor, numbers of two digits
        parts = row["file"].split("-")
        utterances.append((row["file"], row["file"], f"actor{parts[6]}", EMOTIONS[int(parts[2]) - 1], parts[6]))
    write_csv([["dialogue", "id", "speaker", "label", "actor"], *utterances], out / UTTERANCES_FILE)
    for stream, names in streams.items():
        cells = np.array([[float(row[n] or "nan") for n in names] for row in rows])
        if per_actor:
            cells = relative(cells, [values[-1] for values in utterances])
        lines = [["" if np.isnan(x) else f"{x:.9g}" for x in values] for values in cells]
        tokens = [[row["file"], *values] for row, values in zip(rows, lines, strict=True)]
        write_csv([["id", *names], *tokens], out / f"{stream}.csv")
    tables = read_tables(out)
    widths = ", ".join(f"{stream} {width}" for stream, width in tables.widths.items())
    actors = len({values for found in tables.columns["actor"].values() for values in found})
    typer.echo(f"{len(rows)} clips of {actors} actors; {widths}; next: amuse repeat --data {out}")


def relative(cells: np.ndarray, owners: Sequence[str]) -> np.ndarray:
    """Every owner's rows with mean 0 and deviation 1, or all 0 where the owner's rows are alike.

    No label is needed, but all clips of the owner are.

    Args:
        cells: `(rows, width)`, NaN where nothing was measured. owners: Per row.
    """
    result = np.full_like(cells, np.nan)
    for owner in sorted(set(owners)):
        own = np.array([each == owner for each in owners])
        known = ~np.isnan(cells[own])
        count = known.sum(0).clip(min=1)
        centre = np.where(known, cells[own], 0).sum(0) / count
        away = np.where(known, cells[own] - centre, 0)
        deviation = np.sqrt((away**2).sum(0) / count)
        varies = deviation > 1e-6 * np.abs(centre)  # rounding gives a constant column a tiny deviation
        result[own] = np.where(known, np.where(varies, away / np.where(varies, deviation, 1), 0.0), np.nan)
    return result


if __name__ == "__main__":
    typer.run(run)
