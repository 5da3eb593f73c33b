"""The stages of AMuSE in the order in which data flow: unimodal (III-A), Multimodal Attention Network (III-B), temporal
(III-D). Sizes as in `amuse.model.amuse`: U utterances, L tokens of a stream, d = d_model.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amuse.config import ModelConfig
from amuse.model.score_map import MappedScoresAttention
from amuse_kernels.nn import PeripheralCentralAttention


class UnimodalStage(nn.Module):
    """Bi-LSTM over the tokens of one stream, then stacked self-attention (III-A): features to f_m."""

    def __init__(self, width: int, config: ModelConfig, num_layers: int | None = None) -> None:
        super().__init__()
        d = config.d_model
        num_layers = config.unimodal_layers if num_layers is None else num_layers
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.lstm = BiLSTM(width, d) if config.unimodal_lstm else None
        self.project = nn.Identity() if config.unimodal_lstm else nn.Linear(width, d)
        self.norm = nn.LayerNorm(d)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(AttentionLayer([d], 1.0, config) for _ in range(num_layers))

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """`(U, L, d_m)` features and their bool `(U, L)` mask, a prefix of True, to `(U, L, d)`."""
        x = self.input_dropout(features.masked_fill(~mask[..., None], 0.0))
        x = self.lstm(x, mask.sum(-1)) if self.lstm is not None else self.project(x)
        x = self.dropout(self.norm(x))
        for layer in self.layers:
            x = layer(x, mask, [x], [mask])
        return x


class StreamsStage(nn.Module):
    """Several streams that make one modality, such as face and background of a video (III-A).

    A Bi-LSTM for each, then self-attention over the tokens of all of them side by side: f_m of 2n tokens.
    """

    def __init__(self, widths: list[int], config: ModelConfig) -> None:
        super().__init__()
        self.streams = nn.ModuleList(UnimodalStage(width, config, num_layers=0) for width in widths)
        self.layers = nn.ModuleList(
            AttentionLayer([config.d_model], 1.0, config) for _ in range(config.unimodal_layers)
        )

    def forward(self, features: list[Tensor], masks: list[Tensor]) -> Tensor:
        """Per stream `(U, L_s, d_s)` and its mask to `(U, sum of L_s, d)`."""
        streams = zip(self.streams, features, masks, strict=True)
        x, mask = torch.cat([stage(f, m) for stage, f, m in streams], dim=1), torch.cat(masks, dim=1)
        for layer in self.layers:
            x = layer(x, mask, [x], [mask])
        return x


class CentralNetwork(nn.Module):
    """The Central network of one modality (III-B): every layer attends to the other modalities' f_n (Eq. 1).

    On request a Bi-LSTM follows the layers, which Fig. 1 draws before the fusion and the text does not mention.
    """

    def __init__(self, num_peripherals: int, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.layers = nn.ModuleList(
            AttentionLayer([d] * num_peripherals, config.man_gate, config, config.man_score_map)
            for _ in range(config.man_layers)
        )
        self.lstm = BiLSTM(d, d) if config.man_lstm else None

    def forward(self, tokens: Tensor, mask: Tensor, peripherals: list[Tensor], masks: list[Tensor]) -> Tensor:
        """`(U, L, d)` tokens of this modality to g^h, the state after the last layer, of the same shape."""
        g = tokens
        for layer in self.layers:
            g = layer(g, mask, peripherals, masks)
        return g if self.lstm is None else self._recur(self.lstm, g, mask)

    @staticmethod
    def _recur(lstm: "BiLSTM", g: Tensor, mask: Tensor) -> Tensor:
        """The Bi-LSTM over the real tokens; several streams of one modality have padding between them."""
        order = mask.logical_not().byte().argsort(dim=1, stable=True)[..., None].expand_as(g)
        return torch.zeros_like(g).scatter(1, order, lstm(g.gather(1, order), mask.sum(-1)).to(g.dtype))


class AttentionLayer(nn.Module):
    """g + attention to the sources (Eq. 1), then a dense layer with a residual; without a source the dense layer only.

    The layer norms before both are ours: four layers train unreliably without.
    """

    def __init__(self, source_dims: list[int], gate: str | float, config: ModelConfig, score_map: bool = False) -> None:
        super().__init__()
        d = config.d_model
        options: dict[str, Any] = {"head_merge": config.head_merge, "backend": config.backend}
        self.attention: nn.Module | None = None
        if source_dims:
            self.attention_norm = nn.LayerNorm(d)
            if score_map:
                mean = 1 / (len(source_dims) + 1)
                self.attention = MappedScoresAttention(d, config.num_heads, source_dims, gate=mean, **options)
            else:
                self.attention = PeripheralCentralAttention(d, config.num_heads, source_dims, gate=gate, **options)
        self.dense_norm = nn.LayerNorm(d)
        self.dense = nn.Linear(d, d)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, g: Tensor, mask: Tensor, sources: list[Tensor], masks: list[Tensor]) -> Tensor:
        if self.attention is not None:
            attended, _ = self.attention(self.attention_norm(g), sources, query_mask=mask, key_masks=masks)
            g = g + self.dropout(attended)
        return g + self.dropout(F.gelu(self.dense(self.dense_norm(g))))


class BiLSTM(nn.Module):
    """A bidirectional LSTM over padded sequences whose result does not depend on the padding."""

    def __init__(self, width: int, d_model: int, num_layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        between = dropout if num_layers > 1 else 0.0
        self.lstm = nn.LSTM(width, d_model // 2, num_layers, batch_first=True, bidirectional=True, dropout=between)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`(S, L, width)` and `(S,)` lengths to `(S, L, d_model)`, 0 behind each length."""
        if x.shape[0] == 0:
            return x.new_zeros(*x.shape[:2], 2 * self.lstm.hidden_size)
        # a sequence of length 0 (absent modality) runs over one step of zeros; whoever reads it masks it
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        out, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])
        return out


def average(tokens: Tensor, mask: Tensor) -> Tensor:
    """Average of `(U, L, d)` tokens where the bool `(U, L)` mask is True; 0 where it never is."""
    total = tokens.masked_fill(~mask[..., None], 0.0).sum(1)
    return total / mask.sum(1, keepdim=True).clamp(min=1)
