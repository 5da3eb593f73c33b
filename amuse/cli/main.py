"""The `amuse` command. Heavy imports are inside the commands, so that --help answers at once."""

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from amuse.cli import data as cli_data
from amuse.cli import explain as cli_explain
from amuse.cli import live as cli_live
from amuse.cli import pretrained as cli_pretrained
from amuse.cli import speech as cli_speech
from amuse.errors import in_words

app = typer.Typer(
    no_args_is_help=True, invoke_without_command=True, add_completion=False, pretty_exceptions_enable=False
)
app.add_typer(cli_data.app, name="data")
app.command()(cli_pretrained.pretrained)
app.command()(cli_speech.transcribe)
app.command()(cli_data.predict)
app.command()(cli_live.live)
app.command()(cli_explain.explain)
app.command()(cli_explain.plot)
app.command()(cli_explain.demo)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML file, or small, demo, meld, ...; see docs/training.md.")
]
# a string, since a Path would take one slash of a URL
DataFolder = Annotated[str | None, typer.Option(help="Folder of prepared data (or its URL), tables, MELD or CMU-MOSI.")]
Engine = Annotated[str, typer.Option(help="local: one run after the other. ray: one task per run on a Ray cluster.")]
Gpus = Annotated[float, typer.Option(help="ray: GPUs per run; a fraction shares one.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value, any number of times, e.g. train.epochs=5")
]


@app.callback()
def amuse(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Recognise emotions in conversations, from text, voice and picture."""
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"amuse {installed('amuse-kernels')}")
        raise typer.Exit


def say(text: object) -> None:
    """Print; under torchrun, in the first process only."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(text)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    data: DataFolder = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run in OUT from its last state; else start one.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every shard of prepared data with its hash again.")
    ] = False,
) -> None:
    """Train a model; the best checkpoint by validation score ends up in OUT/best."""
    from amuse.config import Config

    again = ["data.verify=true"] if verify else []
    # mistakes are named before torch is imported
    settings = Config.load(config, [*_source(data), *again, *(overrides or ())])
    from amuse.training.train import train as run

    model = run(settings, out, resume)
    parameters = sum(p.numel() for p in model.parameters())
    say(f"{parameters:,} parameters; best model in {out / 'best'}; next: amuse eval {out}")


@app.command(name="eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run, as given to train --out.")],
    split: Annotated[str, typer.Option(help="train, valid or test")] = "test",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all scores to this file.")] = None,
    bootstrap: Annotated[
        int, typer.Option(help="Bootstrap resamples for the interval of weighted F1; 0 = none.")
    ] = 1000,
) -> None:
    """Score a trained model on one split: weighted F1, accuracy, each class, confusion matrix, calibration."""
    import json
    from dataclasses import asdict

    from amuse.evaluation.calibration import Calibration, load_temperature
    from amuse.evaluation.load import load_run
    from amuse.evaluation.predict import predict, score_predictions
    from amuse.files import check_folder_of, write_text

    check_folder_of(json_file)
    model, conversations, config = load_run(run, split)
    predictions = predict(model, conversations, config.train.batch_size)
    metrics = score_predictions(predictions, conversations.label_names, bootstrap)
    say(metrics.report())
    scores = metrics.to_dict()
    if conversations.label_names is not None and predictions.labels is not None:
        calibration = Calibration.measure(predictions.logits, predictions.labels, load_temperature(run))
        say(f"\n{calibration.report()}")
        scores["calibration"] = asdict(calibration)
    if json_file is not None:
        write_text(json.dumps(scores, indent=2), json_file)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run, as given to train --out.")],
    out: Annotated[Path, typer.Option(help="New folder.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write model.onnx; needs the extra onnx.")] = False,
    scores: Annotated[
        bool, typer.Option("--scores/--no-scores", help="Score the test split for the card; needs the run's data.")
    ] = True,
) -> None:
    """Export the best model of a run as a folder that works without this package: for transformers, and for ONNX."""
    from amuse.hf import export_run

    export_run(run, out, onnx=onnx, scores=scores)
    call = f"pipeline('emotion-in-conversation', model={str(out)!r}, trust_remote_code=True)"
    say(f"exported to {out}; with transformers: {call}")


@app.command()
def compare(
    data: Annotated[
        str | None,
        typer.Option(
            help="Folder of prepared data (or its URL), tables, MELD or CMU-MOSI; default: generated conversations."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/compare"),
    config: ConfigFile = None,
    overrides: Overrides = None,
    rivals: Annotated[
        list[str] | None, typer.Option("--rival", help="Also a published fusion, such as MulT; all = every one.")
    ] = None,
    trials: Annotated[int, typer.Option(help="Settings tried per contender, chosen by validation scores.")] = 1,
    seeds: Annotated[int, typer.Option(help="Runs per contender, with the chosen settings.")] = 1,
) -> None:
    """Train AMuSE, each modality alone, concatenation and published fusions; print a table of test scores."""
    from amuse.experiments.comparison import compare as run

    say(run(data, out, config, overrides or (), rivals=rivals or (), trials=trials, seeds=seeds))


@app.command()
def repeat(
    out: Annotated[Path, typer.Option(help="Folder of the runs, one folder per seed; finished runs are kept.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(help="Number of runs; with --folds, of assignments to folds.")] = 5,
    data: DataFolder = None,
    folds: Annotated[int, typer.Option(help="Cross-validation in this many folds; 0 = the data's own splits.")] = 0,
    groups: Annotated[
        str | None, typer.Option(help="What folds never split: dialogue, speaker or a column of the tables.")
    ] = None,
    choose: Annotated[
        list[str] | None,
        typer.Option(help="section.key=[value, ...]: with --folds, chosen inside each fold."),
    ] = None,
    inner: Annotated[
        int, typer.Option(help="Inner folds for these choices; 0 = choose by the validation part of each fold.")
    ] = 0,
    trials: Annotated[int, typer.Option(help="Random settings to choose from in each fold, instead of --choose.")] = 1,
    rival: Annotated[
        str | None, typer.Option(help="With --folds: a published fusion instead of AMuSE, such as MulT, or linear.")
    ] = None,
    ensemble: Annotated[
        int, typer.Option(help="With --folds: average this many models that differ in their seeds only.")
    ] = 1,
    engine: Engine = "local",
    gpus: Gpus = 0.0,
) -> None:
    """Train and test with several seeds, or with every fold of a grouped cross-validation; print mean and deviation."""
    from amuse.config import Config
    from amuse.experiments.contender import contender
    from amuse.experiments.cross_validation import cross_validate
    from amuse.experiments.repetition import repeat as run

    folded = [f"data.folds={folds}"] if folds else []
    folded += [f"data.groups={groups}"] if groups else []
    folded += [f"data.inner_folds={inner}"] if inner else []
    settings = Config.load(config, [*_source(data), *folded, *(overrides or ())])
    if settings.data.folds:
        if engine != "local":
            raise ValueError(f"--engine: expected local with --folds, got {engine!r}")
        trained = contender(rival, ensemble)
        say(cross_validate(settings, out, seeds, choose or (), trials=trials, trained=trained).to_markdown())
    elif choose or groups or rival or trials > 1 or ensemble > 1:
        raise ValueError("--choose, --groups, --rival, --trials, --ensemble: expected --folds with them, got none")
    else:
        say(run(settings, out, seeds, engine=engine, gpus=gpus))


@app.command()
def differences(
    runs: Annotated[list[Path], typer.Argument(help="Folders of amuse repeat; the first is the reference.")],
    latex: Annotated[bool, typer.Option("--latex", help="A LaTeX tabular instead of Markdown.")] = False,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Also write the numbers to this file.")] = None,
) -> None:
    """Compare runs with the first, fold by fold or seed by seed: mean difference, corrected interval, verdict."""
    from amuse.experiments.paired import compare_folders, to_csv, to_latex, to_markdown
    from amuse.files import check_folder_of, write_text

    check_folder_of(csv_file)
    measure, rows = compare_folders(runs)
    say((to_latex if latex else to_markdown)(measure, rows))
    if csv_file is not None:
        write_text(to_csv(rows), csv_file)


@app.command()
def ablate(
    out: Annotated[Path, typer.Option(help="Folder of the grid; finished runs there are not repeated.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    tables: Annotated[
        str, typer.Option(help="Tables of the paper, I,II,III,IV,V, and ours, losses,attention,overfitting.")
    ] = "I,III,IV,V",
    seeds: Annotated[int, typer.Option(help="Runs per row; with --folds, assignments to folds.")] = 1,
    data: DataFolder = None,
    folds: Annotated[int, typer.Option(help="Cross-validation of each row; 0 = the data's own splits.")] = 0,
    groups: Annotated[str | None, typer.Option(help="What folds never split; see amuse repeat.")] = None,
    latex: Annotated[bool, typer.Option("--latex", help="Print LaTeX tabulars instead of Markdown.")] = False,
    engine: Engine = "local",
    gpus: Gpus = 0.0,
) -> None:
    """Run the paper's ablations on your data: each row paired with the unchanged model: helps, hurts or not shown.

    Writes ablation.md, ablation.csv, ablation.tex and ablation.json into OUT.
    """
    from amuse.config import Config
    from amuse.experiments.ablation import ablate as run
    from amuse.experiments.tables import grid_latex, grid_markdown

    folded = [f"data.folds={folds}"] if folds else []
    folded += [f"data.groups={groups}"] if groups else []
    settings = Config.load(config, [*_source(data), *folded, *(overrides or ())])
    rows = run(settings, out, [t for t in tables.split(",") if t], seeds, engine=engine, gpus=gpus)
    say((grid_latex if latex else grid_markdown)(rows))


def _source(data: str | None) -> list[str]:
    """The settings that name a folder of data, or its URL."""
    if data is None:
        return []
    from amuse.data.load import guess_dataset

    return [f"data.dataset={guess_dataset(data)}", f"data.path={data}"]


def main() -> None:
    """Run the command. A user's error is reported in one line; a bug keeps its traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        raise SystemExit(f"amuse: {in_words(error)}") from None


if __name__ == "__main__":
    main()
