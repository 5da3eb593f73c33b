"""Late fusion: every modality predicts with its own context; the logits of those that are present are averaged."""

from typing import Any

import torch
from torch import Tensor, nn

from amuse.data.batch import Batch
from amuse.data.mix import Mix
from amuse.experiments.rivals.rival import Rival
from amuse.model.output import Output
from amuse.model.temporal import TemporalStage


class LateFusion(Rival):
    """A temporal stage and a classifier per modality."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        stages = [TemporalStage(self.config.d_model, self.config) for _ in self.modalities]
        self.temporal = nn.ModuleList(stages)  # type: ignore[assignment]
        self.classifier = nn.ModuleList(  # type: ignore[assignment]
            nn.Linear(stage.width, self.spec.num_outputs) for stage in stages
        )

    def output_layers(self) -> list[nn.Linear]:
        return [*self.classifier, *self._linear_heads]  # type: ignore[misc]

    def forward(self, batch: Batch, mix: Mix | None = None) -> Output:
        descriptors, modality_logits, present = self.describe(batch)
        logits, contexts = [], []
        for m, (temporal, classifier) in enumerate(zip(self.temporal, self.classifier, strict=True)):  # type: ignore[call-overload]
            own = descriptors[:, m] if mix is None else mix.apply(descriptors[:, m])
            contexts.append(temporal(own, batch))
            logits.append(classifier(contexts[-1]))
        weights = present.to(descriptors.dtype)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
        average = (torch.stack(logits, dim=1) * weights[:, :, None]).sum(1)
        context: Tensor = torch.cat(contexts, dim=-1)
        return Output(average, modality_logits, descriptors, None, present, context=context)
