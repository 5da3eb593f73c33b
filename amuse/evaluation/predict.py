"""Predictions of a model for whole splits, and their scores."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from amuse.data.batch import UNLABELLED, ConversationLoader, collate
from amuse.data.conversation import Conversations
from amuse.evaluation.metrics import Metrics, RegressionMetrics, evaluate_predictions, evaluate_regression
from amuse.model.amuse import Amuse
from amuse.world import World


@dataclass
class Predictions:
    """Logits `(U, C)` of U utterances, labels `(U,)` or None if nothing is labelled, ids (dialogue, utterance)."""

    logits: Tensor
    labels: Tensor | None
    ids: list[tuple[str, str]]

    def probabilities(self, temperature: float = 1.0) -> Tensor:
        """A classifier's probabilities `(U, C)`; the highest in a row is the confidence of its prediction."""
        return (self.logits / temperature).softmax(-1)


@torch.no_grad()
def predict(
    model: Amuse, conversations: Conversations, batch_size: int = 16, world: World | None = None
) -> Predictions:
    """Predict every utterance, in the order of the conversations, on the model's device.

    Args:
        model: The model; its training mode is restored.
        conversations: With the model's modalities.
        batch_size: Dialogues per batch.
        world: The processes among which the dialogues are divided; all must call, and each gets all predictions.

    Raises:
        ValueError: The conversations have other modalities or feature widths than the model.
    """
    if conversations.modalities != model.spec.modalities:
        raise ValueError(
            f"conversations: expected the model's modalities {_widths(model.spec.modalities)}, "
            f"got {_widths(conversations.modalities)}"
        )
    device = next(model.parameters()).device
    world = world or World(device)
    count = len(conversations)
    # neighbours, which are in few shards; every process gets equally many dialogues, since all call a sharded model
    # together, and the first may be repeated
    share = -(-count // world.size)
    turns = range(world.rank * share, (world.rank + 1) * share)
    chunks = [list(turns[i : i + batch_size]) for i in range(0, len(turns), batch_size)]
    loader = ConversationLoader(
        conversations,
        batch_sampler=[[i % count for i in chunk] for chunk in chunks],
        collate_fn=partial(collate, modalities=conversations.modalities, regression=conversations.regression),
        generator=torch.Generator(),
    )
    training = model.training
    model.eval()
    blank = float("nan") if conversations.regression else UNLABELLED
    logits, labels, ids, turn = [], [], [], []
    for chunk, batch in zip(chunks, loader, strict=True):
        logits.append(model(batch.to(device)).logits.float().cpu())
        # a batch without any label counts as unlabelled
        labels.append(torch.full((len(batch),), blank) if batch.labels is None else batch.labels)
        ids.extend(batch.ids)
        turn.append(torch.tensor(chunk)[batch.dialogue])
    model.train(training)

    parts = world.gather((torch.cat(logits), torch.cat(labels), ids, torch.cat(turn)))
    turns_of = torch.cat([part[3] for part in parts])
    order = torch.argsort(turns_of, stable=True)
    order = order[turns_of[order] < count]
    all_ids = [name for part in parts for name in part[2]]
    all_labels = torch.cat([part[1] for part in parts])[order]
    known = ~all_labels.isnan() if conversations.regression else all_labels != UNLABELLED
    return Predictions(
        torch.cat([part[0] for part in parts])[order],
        all_labels if known.any() else None,
        [all_ids[i] for i in order.tolist()],
    )


def evaluate(
    model: Amuse, conversations: Conversations, batch_size: int = 16, bootstrap: int = 0
) -> Metrics | RegressionMetrics:
    """Scores of a model on labelled conversations; `bootstrap` resamples for the interval of weighted F1.

    Raises:
        ValueError: Nothing is labelled, or modalities or class names differ from the model's.
    """
    if conversations.label_names != model.spec.label_names:
        expected, got = (
            "none" if names is None else ", ".join(names)
            for names in (model.spec.label_names, conversations.label_names)
        )
        raise ValueError(f"conversations: expected the model's classes {expected}, got {got}")
    return score_predictions(predict(model, conversations, batch_size), conversations.label_names, bootstrap)


def _widths(modalities: dict[str, int]) -> str:
    return ", ".join(f"{name} ({width})" for name, width in modalities.items())


def score_predictions(
    predictions: Predictions, label_names: list[str] | None, bootstrap: int = 0
) -> Metrics | RegressionMetrics:
    """Scores of predictions; `label_names` None means regression.

    Raises:
        ValueError: Nothing is labelled.
    """
    labels, logits = predictions.labels, predictions.logits
    if labels is None:
        raise ValueError("conversations: expected at least one labelled utterance, got none")
    if label_names is None:
        labelled = ~labels.isnan()
        return evaluate_regression(labels[labelled], logits[labelled, 0])
    return evaluate_predictions(labels, logits, label_names, bootstrap=bootstrap)


def score(metrics: Metrics | RegressionMetrics) -> float:
    """The score that training maximises on the validation split: weighted F1, or minus the mean absolute error."""
    return metrics.weighted_f1 if isinstance(metrics, Metrics) else -metrics.mae
