"""Plots of a run: curves of training, scores by class, confusion, modality weights by emotion, calibration."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amuse.data.batch import make_loader
from amuse.data.conversation import Conversations
from amuse.evaluation.calibration import load_temperature
from amuse.evaluation.load import load_run
from amuse.evaluation.predict import predict
from amuse.evaluation.quality import Quality
from amuse.explain.influence import fusion_weights
from amuse.files import LOG_FILE
from amuse.model.amuse import Amuse
from amuse.report.outcome import OTHERS, colours

FORMATS = ("png", "svg")
TRAINING, VALIDATION = OTHERS[4], OTHERS[6]  # blue, vermilion


def plot_run(run: Path, out: Path, split: str = "test", file_format: str = "png") -> list[Path]:
    """Draw every plot for which a run has data, and return the files.

    Args:
        run: Folder of the run.
        out: Folder of the plots.
        split: "train", "valid" or "test", the split that is scored.
        file_format: "png" or "svg".

    Raises:
        FileNotFoundError, ValueError: A faulty run or argument; says what is wrong.
        ImportError: matplotlib is missing.
    """
    if file_format not in FORMATS:
        raise ValueError(f"file_format: expected one of {', '.join(FORMATS)}, got {file_format!r}")
    try:
        import matplotlib.figure
    except ImportError:
        raise ImportError("plots need matplotlib: pip install amuse-kernels[explain]") from None
    model, conversations, config = load_run(run, split)
    drawings: dict[str, tuple[Callable[..., None], Any]] = {}
    log = run / LOG_FILE
    if log.is_file():
        drawings["curves"] = draw_curves, [json.loads(line) for line in log.read_text().splitlines()]
    names = model.spec.label_names
    if names is not None:
        predictions = predict(model, conversations, config.train.batch_size)
        probabilities = predictions.probabilities(load_temperature(run))
        if predictions.labels is not None:
            quality = Quality.measure(probabilities, predictions.labels, names)
            drawings["f1"] = draw_f1, quality
            drawings["confusion"] = draw_confusion, quality
            drawings["calibration"] = draw_calibration, quality
        weights = modality_weights(model, conversations, config.train.batch_size)
        if weights is not None:
            drawings["modalities"] = draw_modalities, (weights, probabilities.argmax(-1), names, model.modalities)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, (draw, data) in drawings.items():
        figure = matplotlib.figure.Figure(figsize=(6.4, 4.4), layout="constrained")
        draw(figure, data)
        paths.append(out / f"{name}.{file_format}")
        figure.savefig(paths[-1], dpi=150)
    return paths


@torch.no_grad()
def modality_weights(model: Amuse, conversations: Conversations, batch_size: int) -> Tensor | None:
    """Share of each modality in the fused descriptor of every utterance, `(U, M)`, in the order of `predict`."""
    device = next(model.parameters()).device
    rows = []
    for batch in make_loader(conversations, batch_size, shuffle=False):
        output = model.eval()(batch.to(device))
        for m in range(len(batch)):
            weights = fusion_weights(None if output.alpha is None else output.alpha[m], output.present[m])
            if weights is None:
                return None
            rows.append(weights)
    return torch.stack(rows)


def draw_curves(figure: Any, records: list[dict[str, Any]]) -> None:
    """Every loss term of training and every validation score by epoch, each on a scale of its own."""
    epochs = [record["epoch"] for record in records]
    curves = [(part, name) for part in ("train", "valid") for name in records[0][part]]
    columns = 2 if len(curves) > 3 else 1
    rows = -(-len(curves) // columns)
    figure.set_size_inches(3.4 + 3.4 * columns, max(4.4, 1.5 * rows))
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for axes, (part, name) in zip(grid, curves, strict=False):
        colour = TRAINING if part == "train" else VALIDATION
        axes.plot(epochs, [record[part][name] for record in records], marker=".", color=colour)
        kind = {"train": "training", "valid": "validation"}[part]
        axes.set_title(f"{kind}: {name.replace('_', ' ')}", fontsize="small", loc="left")
        axes.grid(alpha=0.3)
    for axes in grid[len(curves) :]:
        axes.set_axis_off()
    for axes in grid[max(len(curves) - columns, 0) : len(curves)]:
        axes.set_xlabel("epoch")
        axes.tick_params(labelbottom=True)


def draw_f1(figure: Any, quality: Quality) -> None:
    """F1 of each class with its support; a class that is never predicted is named as such."""
    metrics = quality.metrics
    axes = figure.subplots()
    names = [f"{name} ({n})" for name, n in zip(metrics.label_names, metrics.support, strict=True)]
    bars = axes.barh(names, metrics.f1, color=colours(metrics.label_names))
    predicted = [sum(column) for column in zip(*metrics.confusion, strict=True)]
    axes.bar_label(
        bars, [f"{f1:.2f}" if n else "never predicted" for f1, n in zip(metrics.f1, predicted, strict=True)], padding=3
    )
    title = f"weighted F1 {metrics.weighted_f1:.3f}, accuracy {metrics.accuracy:.3f}"
    axes.set(xlim=(0, 1.1), xlabel="F1", ylabel="class (labelled utterances)", title=title)
    axes.invert_yaxis()


def draw_confusion(figure: Any, quality: Quality) -> None:
    """Counts, shaded by their share of the labelled class."""
    metrics = quality.metrics
    counts = torch.tensor(metrics.confusion)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    axes = figure.subplots()
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(metrics.confusion):
        for j, count in enumerate(row):
            axes.text(j, i, count, ha="center", va="center", color="w" if shares[i, j] > 0.5 else "k")
    ticks = range(len(counts))
    axes.set_xticks(ticks, metrics.label_names, rotation=30, ha="right")
    axes.set_yticks(ticks, metrics.label_names)
    axes.set(xlabel="predicted", ylabel="labelled")
    figure.colorbar(image, label="share of the labelled class")


def draw_calibration(figure: Any, quality: Quality) -> None:
    """Accuracy by confidence; the size of a dot is its number of utterances."""
    axes = figure.subplots()
    most = max(b.count for b in quality.bins)
    axes.plot([0, 1], [0, 1], color="gray", linestyle="--")
    axes.scatter(
        [b.confidence for b in quality.bins],
        [b.accuracy for b in quality.bins],
        [20 + 180 * b.count / most for b in quality.bins],
    )
    error = f"expected calibration error {quality.calibration_error:.3f}"
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="confidence", ylabel="accuracy", title=error)


def draw_modalities(figure: Any, data: tuple[Tensor, Tensor, list[str], list[str]]) -> None:
    """Mean share of each modality in the fusion, by predicted emotion; the lines are one sample standard deviation."""
    weights, predicted, names, modalities = data
    axes = figure.subplots()
    width = 0.8 / len(modalities)
    counts = [int((predicted == i).sum()) for i in range(len(names))]
    occurring = [i for i, count in enumerate(counts) if count]
    for m, modality in enumerate(modalities):
        groups = [weights[predicted == i, m] for i in occurring]
        places = [i + (m - (len(modalities) - 1) / 2) * width for i in occurring]
        deviations = [float(g.std()) if len(g) > 1 else 0.0 for g in groups]
        axes.bar(places, [float(g.mean()) for g in groups], width, yerr=deviations, label=modality)
    numbers = {0: "never predicted", 1: "1 utterance"}
    ticks = [f"{name}\n{numbers.get(n, f'{n} utterances')}" for name, n in zip(names, counts, strict=True)]
    axes.set_xticks(range(len(names)), ticks, rotation=20)
    axes.set(ylabel="share in the fusion", xlabel="predicted emotion")
    figure.legend(loc="outside upper center", ncols=len(modalities))
