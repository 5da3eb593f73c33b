"""Contextual LSTM (Poria et al., "Context-dependent sentiment analysis in user-generated videos", ACL 2017)."""

from typing import Any

import torch
from torch import Tensor, nn

from amuse.data.batch import Batch
from amuse.experiments.rivals.rival import Rival
from amuse.model.packed import BiLSTM
from amuse.model.stages import JoinedWeights


class ContextualLSTM(Rival):
    """The hierarchical model: a Bi-LSTM over the dialogue for every modality, whose states, concatenated, enter the
    temporal stage."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        d = self.config.d_model
        self.contexts = nn.ModuleList(BiLSTM(d, d) for _ in self.modalities)

    def describe(self, batch: Batch, joined: JoinedWeights | None = None) -> tuple[Tensor, Tensor, Tensor]:
        descriptors, _, present = super().describe(batch, joined)
        states = [lstm(descriptors[:, m], batch.dialogues.steps) for m, lstm in enumerate(self.contexts)]
        descriptors = torch.stack(states, dim=1) * present[:, :, None]
        logits = torch.stack([head(descriptors[:, m]) for m, head in enumerate(self.heads)], dim=1)
        return descriptors, logits, present
