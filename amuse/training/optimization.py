"""Learning rates and decay of parameters, and weights of classes and dialogues."""

import math
from typing import Any, cast

import torch
from torch import Tensor

from amuse.config import LossConfig, TrainConfig
from amuse.data.conversation import Conversations
from amuse.encoders.trainable import PretrainedEncoder
from amuse.model.amuse import Amuse


def parameter_groups(model: Amuse, config: TrainConfig) -> list[dict[str, Any]]:
    """Lower rates for a pretrained encoder, lowest for its bottom layers; no decay of biases, norms and gates."""
    own = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("encoders.")]
    rated = [(own, config.learning_rate)]
    for encoder in model.encoders.values():
        for depth, members in enumerate(cast(PretrainedEncoder, encoder).layer_groups()):
            rated.append((members, config.encoder_learning_rate * config.encoder_decay**depth))
    groups = []
    for parameters, rate in rated:
        for decays in (True, False):
            members = [p for p in parameters if (p.dim() > 1) == decays]
            if members:
                groups.append({"params": members, "lr": rate, "weight_decay": config.weight_decay if decays else 0.0})
    return groups


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """Factor of the learning rate: rises linearly over the first `warmup` share of all steps, then a cosine to 0.

    It stays 0 after `total` steps: epochs may differ by a few steps where a bound on tokens limits batches.
    """
    rise = warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * min((step - rise) / max(total - rise, 1), 1)))


def class_weights(train: Conversations, config: LossConfig) -> Tensor | None:
    """Weight per class, its frequency in the training split to the power of -config.class_weights; 1 on average."""
    return None if train.label_names is None else _inverse_frequency(train, config.class_weights)


def centre_outputs(model: Amuse, train: Conversations) -> None:
    """Start regression at the mean of the training labels, which may be far away in small steps.

    Classifiers and models of unlabelled conversations are left as they are.
    """
    labels = [u.label for u in train.utterances() if u.label is not None]
    if train.label_names is None and labels:
        for layer in model.output_layers():
            torch.nn.init.constant_(layer.bias, float(torch.tensor(labels).double().mean()))


def dialogue_weights(train: Conversations, config: TrainConfig) -> Tensor | None:
    """Weight per dialogue: the mean over its labelled utterances of their class's frequency ** -config.balance.

    Dialogues without a label get the mean of the others.

    Raises:
        ValueError: `balance` with regression, which has no classes.
    """
    if config.balance == 0:
        return None
    if train.label_names is None:
        raise ValueError("train.balance: expected 0 for regression, which has no classes")
    weights = _inverse_frequency(train, config.balance)
    assert weights is not None
    labels = [[u.label for u in dialogue.utterances if u.label is not None] for dialogue in train.dialogues]
    means = torch.tensor([weights[torch.tensor(known)].mean().item() if known else math.nan for known in labels])
    return means.nan_to_num(nan=means.nanmean().item())


def _inverse_frequency(train: Conversations, power: float) -> Tensor | None:
    if power == 0:
        return None
    weights = train.class_counts().clamp(min=1).double() ** -power
    return (weights / weights.mean()).float()
