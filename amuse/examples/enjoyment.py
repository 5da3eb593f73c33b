"""How much does somebody enjoy talking to a robot? Precomputed features as tables: audio, action units, timing.

    python -m amuse.examples.enjoyment ICMI2024LLMsEnjoymentDetection --out TABLES
    amuse repeat --data TABLES --config amuse/configs/enjoyment.yaml --folds 5 --groups dialogue --out RUNS

The features and ratings of Pereira et al. (ICMI 2024), with the face's tokens in `video_tokens.npz`, become the folder
of tables that `amuse.data.tables` describes: a row per exchange, the mean of three coders' ratings as target. The face
is there twice: as tokens in `video`, and summed up in `actions`, `expressions` and `pose`.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from amuse.data.delimited import read_utf8
from amuse.data.tables import UTTERANCES_FILE, read_tables
from amuse.files import write_csv

POSE = ("Pitch", "Roll", "Yaw")


def run(
    source: Annotated[Path, typer.Argument(help="Folder of the data set.")],
    out: Annotated[Path, typer.Option(help="New folder for the tables.")],
) -> None:
    """Write the data set as tables and say what is in them."""
    out.mkdir(parents=True, exist_ok=True)
    ratings = read_ratings(source / "enjoyment_labels.csv")
    rows = [
        (participant, exchange_id(participant, turn), participant, float(np.mean(given)))
        for (participant, turn), given in sorted(ratings.items())
    ]
    write_csv([["dialogue", "id", "speaker", "target"], *rows], out / UTTERANCES_FILE)
    for name, file in (("audio", "Opensmile_features.csv"), ("prosody", "Audio_Features.csv")):
        header, *lines = csv.reader(read_utf8(source / file).splitlines())
        known = [[_id_of(line[0]), *line[1:]] for line in lines]
        rated = [row for row in known if row[0] in {r[1] for r in rows}]
        write_csv([["id", *header[1:]], *rated], out / f"{name}.csv")
    tokens = video_tokens(source / "video_tokens.npz")
    write_csv(tokens, out / "video.csv")
    for name, columns in parts_of_face(tokens[0]).items():
        write_csv(moments(tokens, columns), out / f"{name}.csv")
    write_csv(timing(source / "turn_taking", {participant for participant, _ in ratings}), out / "timing.csv")
    tables = read_tables(out)
    streams = ", ".join(f"{name} {width}" for name, width in tables.widths.items())
    typer.echo(f"{len(tables.dialogues)} dialogues, {len(rows)} exchanges; {streams}; next: amuse repeat --data {out}")


def read_ratings(path: Path) -> dict[tuple[int, int], list[float]]:
    """(participant, turn) -> the coders' ratings."""
    ratings: dict[tuple[int, int], list[float]] = {}
    for row in csv.DictReader(read_utf8(path).splitlines()):
        for column, cell in row.items():
            if column.startswith("Turn ") and cell:
                ratings.setdefault((int(row["Participant"]), int(column[5:])), []).append(float(cell))
    return ratings


def exchange_id(participant: int, turn: int) -> str:
    return f"P{participant}_T{turn}"


def _id_of(name: str) -> str:
    """The id of an exchange named `P09_T3` or `P9_T3`."""
    participant, turn = name.lstrip("P").split("_T")
    return exchange_id(int(participant), int(turn))


def video_tokens(path: Path) -> list[list[str]]:
    """Header and rows: action units, expressions and pose of up to 64 moments per exchange."""
    with np.load(path, allow_pickle=False) as arrays:
        lengths = arrays["length"]
        ids = [exchange_id(p, t) for p, t in zip(arrays["participant"], arrays["turn"], strict=True)]
        tokens, columns = arrays["tokens"].astype(float), [str(name) for name in arrays["columns"]]
    owners = [name for name, length in zip(ids, lengths, strict=True) for _ in range(length)]
    rows = [[name, *(f"{x:.6g}" for x in token)] for name, token in zip(owners, tokens, strict=True)]
    return [["id", *columns], *rows]


def parts_of_face(header: Sequence[str]) -> dict[str, list[int]]:
    """Action units, pose of the head, and expressions: name -> their columns, of those that are there."""
    parts: dict[str, list[int]] = {"actions": [], "expressions": [], "pose": []}
    for i, name in enumerate(header[1:], 1):
        parts["actions" if name.startswith("AU") else "pose" if name in POSE else "expressions"].append(i)
    return {name: columns for name, columns in parts.items() if columns}


def moments(tokens: Sequence[Sequence[str]], columns: Sequence[int]) -> list[list[str]]:
    """Header and rows: mean and deviation of some columns over an exchange, and the mean of its later half.

    How much a face moves, and how it is while the person answers, would be lost in the model's average over tokens.
    """
    header, *rest = tokens
    by_id: dict[str, list[list[float]]] = {}
    for token in rest:
        by_id.setdefault(token[0], []).append([float(token[i]) for i in columns])
    rows = []
    for name, values in by_id.items():
        array = np.array(values)
        later = array[len(array) // 2 :]
        rows.append([name, *(f"{x:.6g}" for x in (*array.mean(0), *array.std(0), *later.mean(0)))])
    names = [header[i] for i in columns]
    return [["id", *(f"{name}_{kind}" for kind in ("mean", "deviation", "later") for name in names)], *rows]


def timing(folder: Path, participants: Iterable[int]) -> list[list[str]]:
    """Header and rows: how long robot, person and pauses of each exchange took."""
    header: list[str] = []
    rows = []
    for participant in sorted(participants):
        file = folder / f"turn_taking_{participant}.tsv"
        names, *lines = csv.reader(read_utf8(file).splitlines(), delimiter="\t")
        header = ["id", *names[1:]]
        rows += [[exchange_id(participant, int(line[0])), *line[1:]] for line in lines if line]
    return [header, *rows]


if __name__ == "__main__":
    typer.run(run)
