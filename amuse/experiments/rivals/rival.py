"""The base class of the rivals."""

from dataclasses import replace
from typing import Any

from torch import nn

from amuse.config import ModelConfig
from amuse.data.spec import DataSpec
from amuse.model.amuse import Amuse
from amuse.model.temporal import TemporalStage


class Rival(Amuse):
    """AMuSE without the Multimodal Attention Network, its descriptors concatenated (fusion "concat")."""

    def __init__(
        self, config: ModelConfig, spec: DataSpec, encoder_configs: dict[str, dict[str, Any]] | None = None
    ) -> None:
        super().__init__(replace(config, man=False, fusion="concat", gate_teacher=False), spec, encoder_configs)

    def read_fused(self, width: int) -> None:
        """Gives the temporal stage and the classifier the width of the fusion's output."""
        self.temporal = TemporalStage(width, self.config)
        self.classifier = nn.Linear(self.temporal.width, self.spec.num_outputs)
