"""Is the last remark sarcastic? MUStARD (Castro et al. 2019): a remark and the lines before it.

    python -m amuse.examples.sarcasm sarcasm_data.json --out RUN [--features audio=FILE.safetensors ...]

A remark and its context form a dialogue, in which only the remark has a label. The frozen text encoder reads the words;
other modalities of the remarks come from safetensors files with the remarks' ids as keys and tensors `(tokens, width)`.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from amuse.config import Config
from amuse.data import Conversations, Dialogue, Standardizer, Utterance
from amuse.data.load import Splits, add_text
from amuse.evaluation.predict import evaluate
from amuse.files import load_tensors
from amuse.training.train import train_on
from amuse.world import choose_device

LABEL_NAMES = ("sincere", "sarcastic")
DEFAULTS = ["data.pool=true", "model.d_model=64", "model.dropout=0.5", "model.man_layers=1", "loss.gamma=0.0"]


def run(
    file: Annotated[Path, typer.Argument(help="MUStARD's sarcasm_data.json.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    features: Annotated[list[str] | None, typer.Option(help="modality=FILE.safetensors")] = None,
    test_show: Annotated[
        str,
        typer.Option(help="The show of the test split, where the file names shows: other speakers than in training."),
    ] = "FRIENDS",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="section.key=value")] = None,
) -> None:
    """Train on MUStARD's layout and print the test scores."""
    config = Config.load(None, [*DEFAULTS, *(overrides or ())])
    remarks = read_mustard(file)
    shows = {remark["show"] for remark in remarks.values() if "show" in remark}
    if shows and test_show not in shows:
        raise ValueError(f"--test-show: expected one of {', '.join(sorted(shows))}, got {test_show!r}")
    how = f"test = {test_show}" if shows else "no shows in the file: test drawn, whose lines may be context in training"
    parts = split(remarks, test_show if shows else None, config.data.seed)
    typer.echo(f"{len(remarks)} remarks; {how}; " + ", ".join(f"{len(ids)} {name}" for name, ids in parts.items()))

    made = {name: dialogues(remarks, ids) for name, ids in parts.items()}
    device = choose_device(config.train.device)
    made = {name: add_text(config.data, part, device=device) for name, part in made.items()}
    for argument in features or ():
        modality, _, path = argument.partition("=")
        tokens = load_tensors(Path(path))
        width = next(iter(tokens.values())).shape[-1]
        made = {name: part.with_features(modality, width, tokens) for name, part in made.items()}
    standardizer = Standardizer.fit(made["train"])
    train, valid, test = (standardizer.apply(made[name]) for name in ("train", "valid", "test"))
    splits = Splits(train, valid, test, standardizer)
    model = train_on(splits, config, out)
    typer.echo(evaluate(model, splits.test).report())


def read_mustard(path: Path) -> dict[str, dict[str, Any]]:
    """Id -> remark, with the fields that are used checked.

    Raises:
        ValueError: Not MUStARD's layout; names the remark and the field.
    """
    try:
        remarks = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    kinds = {"utterance": str, "speaker": str, "context": list, "context_speakers": list, "sarcasm": bool}
    if not isinstance(remarks, dict) or not remarks:
        raise ValueError(f"{path}: expected a mapping of ids to remarks")
    for name, remark in remarks.items():
        for field, kind in kinds.items():
            if not isinstance(remark.get(field), kind):
                got = remark.get(field)
                raise ValueError(f"{path}, remark {name}, {field}: expected {kind.__name__}, got {got!r}")
        if len(remark["context"]) != len(remark["context_speakers"]):
            raise ValueError(f"{path}, remark {name}, context_speakers: expected one for each line of the context")
    return remarks


def split(remarks: Mapping[str, Mapping[str, Any]], test_show: str | None, seed: int) -> dict[str, list[str]]:
    """Ids of "train", "valid" (15 % of the rest) and "test" (a show, or 20 % drawn)."""
    order = random.Random(seed).sample(sorted(remarks), len(remarks))
    if test_show is None:
        test = order[: max(len(order) // 5, 1)]
    else:
        test = [name for name in order if remarks[name].get("show") == test_show]
    rest = [name for name in order if name not in set(test)]
    held = max(round(0.15 * len(rest)), 1)
    return {"train": rest[held:], "valid": rest[:held], "test": test}


def dialogues(remarks: Mapping[str, Mapping[str, Any]], ids: list[str]) -> Conversations:
    """The remarks as the last, labelled utterances of dialogues."""
    made = []
    for name in ids:
        remark = remarks[name]
        lines = zip(remark["context"], remark["context_speakers"], strict=True)
        before = [Utterance(f"{name}_{i}", speaker, {}, text=text) for i, (text, speaker) in enumerate(lines)]
        last = Utterance(name, remark["speaker"], {}, int(remark["sarcasm"]), remark["utterance"])
        made.append(Dialogue(name, [*before, last]))
    return Conversations(made, LABEL_NAMES, {})


if __name__ == "__main__":
    typer.run(run)
