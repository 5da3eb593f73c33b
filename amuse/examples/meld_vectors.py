"""Vectors of MELD's utterances from an array, as features for `amuse train`: one row per line of one of MELD's CSVs.

    python -m amuse.examples.meld_vectors audio_wav2vec2_val.npy --csv MELD/dev_sent_emo.csv --without 110:7 \\
        --out wav2vec2_dev.safetensors
    amuse repeat --data MELD --config amuse/configs/meld_dev.yaml --set data.features.audio=wav2vec2_dev.safetensors

Arrays that others have published lack the rows of clips that they could not read; name those.
"""

import csv
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from amuse.data.delimited import read_utf8
from amuse.files import save_tensors


def run(
    vectors: Annotated[Path, typer.Argument(help="NumPy array (rows, width).")],
    csv_file: Annotated[Path, typer.Option("--csv", help="MELD's CSV of that split.")],
    out: Annotated[Path, typer.Option(help="New safetensors file.")],
    without: Annotated[
        list[str] | None, typer.Option(help="dialogue:utterance that the array lacks, any number of times.")
    ] = None,
) -> None:
    """Write the vectors by utterance and say how many there are."""
    lacking = set(without or ())
    ids = [(row["Dialogue_ID"], row["Utterance_ID"]) for row in csv.DictReader(read_utf8(csv_file).splitlines())]
    unknown = lacking - {f"{dialogue}:{utterance}" for dialogue, utterance in ids}
    if unknown:
        raise SystemExit(f"--without: expected dialogue:utterance of {csv_file}, got {sorted(unknown)[0]}")
    present = [(d, u) for d, u in ids if f"{d}:{u}" not in lacking]
    array = np.load(vectors, allow_pickle=False)
    if array.ndim != 2 or len(array) != len(present):
        rest = f" without {', '.join(sorted(lacking))}" if lacking else ""
        raise SystemExit(f"{vectors}: expected {len(present)} rows, as {csv_file}{rest}, got {array.shape}")
    rows = torch.from_numpy(array).float()
    save_tensors({f"dia{d}_utt{u}": rows[i].clone() for i, (d, u) in enumerate(present)}, out)
    typer.echo(f"{len(present)} of {len(ids)} utterances, width {array.shape[1]}: {out}")


if __name__ == "__main__":
    typer.run(run)
