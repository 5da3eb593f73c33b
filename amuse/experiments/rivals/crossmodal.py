"""MulT (Tsai et al., "Multimodal transformer for unaligned multimodal language sequences", ACL 2019)."""

from typing import Any

import torch
from torch import Tensor, nn

from amuse.config import ModelConfig
from amuse.experiments.rivals.rival import Rival
from amuse.layout import Layout
from amuse.model.stages import AttentionLayer, JoinedWeights, attend_to_itself, inject


class CrossmodalTransformer(Rival):
    """A crossmodal transformer for every ordered pair of modalities; per target, their results side by side pass
    through self-attention. Its layers are AMuSE's attention layers with one source."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if len(self.modalities) > 1:
            self.central = CrossmodalNetworks(len(self.modalities), self.config)  # type: ignore[assignment]


class CrossmodalNetworks(nn.Module):
    """For each target modality: layers per other modality, a projection of their results, one self-attention layer."""

    def __init__(self, count: int, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.pairs: Any = nn.ModuleList(
            nn.ModuleList(
                nn.ModuleList(AttentionLayer([d], 1.0, config) for _ in range(config.man_layers))
                for _ in range(count - 1)
            )
            for _ in range(count)
        )
        self.merge = nn.ModuleList(nn.Linear((count - 1) * d, d) for _ in range(count))
        self.memory: Any = nn.ModuleList(nn.ModuleList([AttentionLayer([d], 1.0, config)]) for _ in range(count))

    def forward(
        self,
        tokens: list[Tensor],
        layouts: list[Layout],
        recompute: bool = False,
        joined: JoinedWeights | None = None,
    ) -> list[Tensor]:
        """`(T_m, d)` of every modality to the same shapes; `recompute` changes nothing here. `joined`: see `inject`."""
        states = []
        for m, (own, layout) in enumerate(zip(tokens, layouts, strict=True)):
            others = [n for n in range(len(tokens)) if n != m]
            seen = []
            for n, layers in zip(others, self.pairs[m], strict=True):
                x = own
                for layer in layers:
                    x = layer(x, layout, inject(tokens[n], layouts[n], [(layer.attention, 0)], joined))
                seen.append(x)
            states.append(attend_to_itself(self.merge[m](torch.cat(seen, dim=-1)), layout, self.memory[m], joined))
        return states
