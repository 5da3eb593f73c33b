"""Predictions of a model for whole splits, and their scores."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from amuse.config import Config
from amuse.data.batch import UNLABELLED, make_loader
from amuse.data.conversation import Conversations
from amuse.data.load import load_split
from amuse.data.standardize import Standardizer
from amuse.files import BEST, CONFIG_FILE, STANDARDIZER_FILE, load_tensors
from amuse.metrics import Metrics, RegressionMetrics, evaluate_predictions, evaluate_regression
from amuse.model import Amuse


def choose_device(name: str) -> torch.device:
    """ "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


@dataclass
class Predictions:
    """Of U utterances: logits `(U, C)`, labels `(U,)` or None where nothing is labelled, ids (dialogue, utterance)."""

    logits: Tensor
    labels: Tensor | None
    ids: list[tuple[str, str]]


@torch.inference_mode()
def predict(model: Amuse, conversations: Conversations, batch_size: int = 16) -> Predictions:
    """Predict every utterance, in the order of the conversations, on the model's device.

    Raises:
        ValueError: the conversations have other modalities or feature widths than the model.
    """
    if conversations.modalities != model.config.modalities:
        raise ValueError(
            f"conversations: expected the model's modalities {model.config.modalities}, got {conversations.modalities}"
        )
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    logits, labels, ids = [], [], []
    for batch in make_loader(conversations, batch_size, shuffle=False):
        logits.append(model(batch.to(device)).logits.float().cpu())
        labels.append(batch.labels)
        ids.extend(batch.ids)
    model.train(training)
    known = [label for label in labels if label is not None]
    if known:  # a batch without any label counts as unlabelled
        blank = float("nan") if known[0].is_floating_point() else UNLABELLED
        sizes = [len(part) for part in logits]
        labels = [known[0].new_full((n,), blank) if x is None else x for x, n in zip(labels, sizes, strict=True)]
    return Predictions(torch.cat(logits), torch.cat(labels) if known else None, ids)


def evaluate(
    model: Amuse, conversations: Conversations, batch_size: int = 16, bootstrap: int = 0
) -> Metrics | RegressionMetrics:
    """Scores of a model on labelled conversations; `bootstrap` resamples for the interval of weighted F1.

    Raises:
        ValueError: nothing is labelled, other modalities or other class names than the model's.
    """
    if conversations.label_names != model.config.label_names:
        raise ValueError(
            f"conversations: expected the model's classes {model.config.label_names}, got {conversations.label_names}"
        )
    predictions = predict(model, conversations, batch_size)
    if predictions.labels is None:
        raise ValueError("conversations: expected at least one labelled utterance, got none")
    if conversations.label_names is None:
        labelled = ~predictions.labels.isnan()
        return evaluate_regression(predictions.labels[labelled], predictions.logits[labelled, 0])
    return evaluate_predictions(predictions.labels, predictions.logits, conversations.label_names, bootstrap=bootstrap)


def score(metrics: Metrics | RegressionMetrics) -> float:
    """What training maximises on the validation split: weighted F1, or minus the mean absolute error."""
    return metrics.weighted_f1 if isinstance(metrics, Metrics) else -metrics.mae


def load_run(folder: str | Path, split: str) -> tuple[Amuse, Conversations, Config]:
    """The best model of a run, one split of its data, prepared as in training, and its configuration.

    Raises:
        FileNotFoundError: no such run or no such data.
        ValueError: a damaged checkpoint or an unknown split.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder}: expected the folder of a run, {CONFIG_FILE} is missing")
    config = Config.load(folder / CONFIG_FILE)
    model = Amuse.from_pretrained(folder / BEST).to(choose_device(config.train.device))
    conversations = load_split(config.data, split)
    standardizer = folder / BEST / STANDARDIZER_FILE
    if standardizer.is_file():
        conversations = Standardizer.from_state_dict(load_tensors(standardizer)).apply(conversations)
    return model, conversations, config
