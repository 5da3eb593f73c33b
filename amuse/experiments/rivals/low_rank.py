"""Low-rank Multimodal Fusion (Liu et al., "Efficient low-rank multimodal fusion with modality-specific factors",
ACL 2018): the outer product of tensor fusion times a weight of low rank, computed without either."""

from typing import Any

import torch
from torch import Tensor, nn

from amuse.experiments.rivals.rival import Rival

RANK = 4  # the paper searches 1 to 16


class LowRankFusion(Rival):
    """sum over r of the product over m of W_m^r [1; f_m]."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        d = self.config.d_model
        factors = [nn.Linear(d, RANK * d) for _ in self.modalities]
        self.weights = nn.Parameter(torch.full((RANK,), 1 / RANK))
        for factor in factors:  # products of M numbers near 1 neither vanish nor explode
            nn.init.normal_(factor.weight, std=0.5 / d**0.5)
            nn.init.ones_(factor.bias)
        self.factors = nn.ModuleList(factors)
        self.read_fused(d)

    def fuse(self, descriptors: Tensor, present: Tensor) -> tuple[Tensor, None]:
        product: Tensor | float = 1.0
        for m, factor in enumerate(self.factors):
            product = product * factor(descriptors[:, m] * present[:, m, None]).unflatten(1, (RANK, -1))
        return torch.einsum("urd,r->ud", product, self.weights), None
