"""How positive is an utterance? CMU-MOSI as a regression, or sentiment in MELD's dialogues as classes.

python -m amuse.examples.sentiment mosi FOLDER --out RUN [--scores FILE]
python -m amuse.examples.sentiment meld FOLDER --out RUN
"""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from amuse.config import Config
from amuse.data import Conversations, Dialogue, read_meld
from amuse.data.delimited import csv_of, read_utf8
from amuse.data.load import Splits, add_text, load_splits
from amuse.evaluation.predict import evaluate
from amuse.experiments.comparison import CONFIGS
from amuse.training.train import train_on
from amuse.world import choose_device

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Folder = Annotated[Path, typer.Argument(help="Folder of the data set.")]
Out = Annotated[Path, typer.Option(help="Folder of the run.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="section.key=value, see docs/training.md")]


@app.command()
def mosi(
    folder: Folder,
    out: Out,
    scores: Annotated[Path | None, typer.Option(help="CSV: segment name, score from -3 to 3.")] = None,
    overrides: Overrides = None,
) -> None:
    """Regression on CMU-MOSI's features: its scores, or without them the polarity, -1 or 1."""
    config = Config.load(CONFIGS / "mosi.yaml", [f"data.path={folder}", *(overrides or ())])
    known = None if scores is None else read_scores(scores)
    splits = load_splits(config.data, device=choose_device(config.train.device))
    if known is not None:
        missing = sum(
            u.id not in known for part in (splits.train, splits.valid, splits.test) for u in part.utterances()
        )
        typer.echo(f"{missing} segments have no score in {scores} and count as unlabelled")
    train, valid, test = (as_numbers(part, known) for part in (splits.train, splits.valid, splits.test))
    splits = Splits(train, valid, test, splits.standardizer)
    model = train_on(splits, config, out)
    typer.echo(evaluate(model, splits.test).report())


@app.command()
def meld(folder: Folder, out: Out, overrides: Overrides = None) -> None:
    """MELD's sentiment labels (neutral, positive, negative), from the words of the dialogue."""
    config = Config.load(CONFIGS / "meld.yaml", [f"data.path={folder}", *(overrides or ())])
    device = choose_device(config.train.device)
    train, valid, test = (
        add_text(config.data, read_meld(folder, split, target="sentiment"), device=device)
        for split in ("train", "dev", "test")
    )
    splits = Splits(train, valid, test, standardizer=None)
    model = train_on(splits, config, out)
    typer.echo(evaluate(model, test).report())


def as_numbers(conversations: Conversations, scores: dict[str, float] | None) -> Conversations:
    """Class labels (negative, positive) to -1 and 1, or to the scores of the segments; None where there is none."""
    if scores is None:
        scores = {u.id: 2.0 * u.label - 1.0 for u in conversations.utterances() if u.label is not None}
    dialogues = [
        Dialogue(dialogue.id, [replace(u, label=scores.get(u.id)) for u in dialogue.utterances])
        for dialogue in conversations.dialogues
    ]
    return Conversations(dialogues, None, conversations.modalities)


def read_scores(path: Path) -> dict[str, float]:
    """Segment name -> score, without a header.

    Raises:
        ValueError: A line of another form; names it.
    """
    scores = {}
    with csv_of(path):
        for number, row in enumerate(csv.reader(read_utf8(path).splitlines()), start=1):
            try:
                name, score = row
                scores[name] = float(score)
            except ValueError:
                raise ValueError(f"{path}, line {number}: expected a segment name and a number, got {row}") from None
    return scores


if __name__ == "__main__":
    app()
