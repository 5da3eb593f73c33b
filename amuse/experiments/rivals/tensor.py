"""Tensor Fusion Network (Zadeh et al., "Tensor fusion network for multimodal sentiment analysis", EMNLP 2017)."""

from typing import Any

import torch
from torch import Tensor, nn

from amuse.experiments.rivals.rival import Rival

FACTORS = 4096  # entries of the outer product, at most: d_model for each modality would be millions


class TensorFusion(Rival):
    """The outer product of [1; z_m] over the modalities m, with z_m a narrow projection of the descriptor."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        count = len(self.modalities)
        width = max(int(FACTORS ** (1 / count)) - 1, 1)
        self.narrow = nn.ModuleList(nn.Linear(self.config.d_model, width) for _ in self.modalities)
        self.read_fused((width + 1) ** count)

    def fuse(self, descriptors: Tensor, present: Tensor) -> tuple[Tensor, None]:
        one = torch.ones_like(descriptors[:, 0, :1])
        product = one
        for m, narrow in enumerate(self.narrow):
            factor = torch.cat([one, narrow(descriptors[:, m]) * present[:, m, None]], dim=1)
            product = (product[:, :, None] * factor[:, None, :]).flatten(1)
        return product, None
