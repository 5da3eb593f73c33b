"""Early fusion: average features of all modalities, concatenated, before any of them is processed on its own."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from amuse.data.batch import Batch, present_modalities
from amuse.experiments.rivals.rival import Rival
from amuse.model.packed import average
from amuse.model.stages import JoinedWeights


class EarlyFusion(Rival):
    """One linear map reads the averages of all streams; there is no unimodal stage."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        widths = dict(self.spec.modalities)
        widths |= {name: cast(Any, encoder).width for name, encoder in self.encoders.items()}
        # one map of the concatenation is the sum of one map per stream
        self.unimodal = nn.ModuleList(
            nn.ModuleList(nn.Linear(widths[stream], self.config.d_model) for stream in streams)
            for streams in self.groups.values()
        )

    def describe(self, batch: Batch, joined: JoinedWeights | None = None) -> tuple[Tensor, Tensor, Tensor]:
        descriptors = []
        for maps, streams in zip(self.unimodal, self.groups.values(), strict=True):
            parts = []
            for linear, name in zip(cast(nn.ModuleList, maps), streams, strict=True):
                layout, tokens = batch.layouts[name], batch.tokens[name]
                if name in self.encoders:
                    tokens = self.encoders[name](tokens, layout)
                parts.append(linear(average(tokens, layout)) * layout.present[:, None])
            descriptors.append(torch.stack(parts).sum(0))
        logits = torch.stack([head(f) for head, f in zip(self.heads, descriptors, strict=True)], dim=1)
        return torch.stack(descriptors, dim=1), logits, present_modalities(batch, self.groups)
