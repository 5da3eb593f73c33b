"""Ridge and logistic regression on the utterances' average features: what a network has to beat on few data."""

from dataclasses import dataclass
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from amuse.data.batch import label_tensor
from amuse.data.conversation import Conversations
from amuse.evaluation.predict import Predictions

PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Weights of the squared norm to choose from: `alpha` of ridge, `1 / C` of logistic regression."""


@dataclass
class LinearModel:
    """A linear model of every modality's mean token, side by side; an absent modality is its mean."""

    regressor: Any  # a scikit-learn pipeline

    @classmethod
    def fit(cls, parts: list[Conversations], penalty: float) -> "LinearModel":
        """Fit on all labelled utterances of `parts`; features are standardised on them."""
        rows = torch.cat([mean_features(part) for part in parts])
        labels = [u.label for part in parts for u in part.utterances()]
        known = [i for i, label in enumerate(labels) if label is not None]
        classes = parts[0].label_names is not None
        model = LogisticRegression(C=1 / penalty, max_iter=1000) if classes else Ridge(penalty)
        targets = [labels[i] for i in known]
        return cls(make_pipeline(StandardScaler(), model).fit(rows[known].double().numpy(), targets))

    def predict(self, conversations: Conversations) -> Predictions:
        """Log-probabilities `(U, C)` of classes, or `(U, 1)` numbers."""
        rows = mean_features(conversations).double().numpy()
        if conversations.label_names is None:
            outputs = torch.from_numpy(self.regressor.predict(rows))[:, None].float()
        else:
            known = torch.from_numpy(self.regressor.predict_log_proba(rows)).float()
            # a class without an example in the training part is never predicted
            outputs = torch.full((len(rows), len(conversations.label_names)), -1e4)
            outputs[:, torch.as_tensor(self.regressor.classes_)] = known
        labels = label_tensor([u.label for u in conversations.utterances()], conversations.label_names is None)
        ids = [(d.id, u.id) for d in conversations.dialogues for u in d.utterances]
        return Predictions(outputs, labels, ids)


def mean_features(conversations: Conversations) -> Tensor:
    """`(U, sum of widths)`: the mean token of each modality, 0 where it is absent."""
    return torch.stack(
        [
            torch.cat(
                [
                    u.features[m].float().mean(0) if u.num_tokens(m) else torch.zeros(width)
                    for m, width in conversations.modalities.items()
                ]
            )
            for u in conversations.utterances()
        ]
    )
