"""Which emotion does an actor play? Precomputed features as tables: voice and face of clips, with empty cells.

    python -m amuse.examples.acted combined_summary.csv --out TABLES
    amuse repeat --data TABLES --config amuse/configs/acted.yaml --folds 6 --groups actor --out RUNS

One CSV of RAVDESS features (a row per clip: acoustic measures, the column `file`, then face measures, emotion, actor)
becomes the folder of tables that `amuse.data.tables` describes. Every clip is a dialogue of one utterance, and folds
never split an actor.
"""

import csv
from pathlib import Path
from typing import Annotated

import typer

from amuse.data.delimited import read_utf8
from amuse.data.tables import UTTERANCES_FILE, read_tables
from amuse.files import write_csv

EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")


def run(
    source: Annotated[Path, typer.Argument(help="combined_summary.csv")],
    out: Annotated[Path, typer.Option(help="New folder for the tables.")],
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
        tokens = [[row["file"], *(row[name] for name in names)] for row in rows]
        write_csv([["id", *names], *tokens], out / f"{stream}.csv")
    tables = read_tables(out)
    widths = ", ".join(f"{stream} {width}" for stream, width in tables.widths.items())
    actors = len({values for found in tables.columns["actor"].values() for values in found})
    typer.echo(f"{len(rows)} clips of {actors} actors; {widths}; next: amuse repeat --data {out}")


if __name__ == "__main__":
    typer.run(run)
