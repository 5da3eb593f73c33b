"""The temporal stage (III-D): each utterance in the context of its dialogue and of its speaker."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amuse.config import ModelConfig
from amuse.data.batch import Batch
from amuse.layout import Layout
from amuse.model.dropout import Dropout
from amuse.model.packed import BiLSTM, pack
from amuse_kernels.nn import PeripheralCentralAttention, ProjectedSource


class TemporalStage(nn.Module):
    """Dialogue context over all utterances, speaker context over the speaker's own (III-D).

    "bilstm" (the paper): two parallel Bi-LSTMs. "attention" (ours): one attention over the sources "same speaker" and
    "any speaker", causal for real-time use. Their results are concatenated with the utterance's own descriptor.
    """

    def __init__(self, fused_width: int, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.kind, self.causal, self.window = config.temporal, config.causal, config.context_window
        self.project = nn.Linear(fused_width, d)
        self.norm = nn.LayerNorm(d) if config.descriptor_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.width = d
        if self.kind == "bilstm":
            self.dialogue_lstm = BiLSTM(d, d, config.temporal_layers, config.dropout)
            self.speaker_lstm = BiLSTM(d, d, config.temporal_layers, config.dropout)
            self.width = 3 * d
        elif self.kind == "attention":
            self.layers = nn.ModuleList(ContextLayer(config) for _ in range(config.temporal_layers))
            self.width = 2 * d

    def forward(self, fused: Tensor, batch: Batch) -> Tensor:
        """`(U, fused_width)` to `(U, width)`."""
        x = self.embed(fused)
        if self.kind == "none":
            return x
        if self.kind == "bilstm":
            contexts = [self.dialogue_lstm(x, batch.dialogues.steps), self.speaker_lstm(x, batch.turns)]
        else:
            contexts = [self._attend(x, batch) if self.window is None else self._attend_window(x, batch, self.window)]
        return self.dropout(torch.cat([x, *contexts], dim=-1))

    def embed(self, fused: Tensor) -> Tensor:
        """The utterance's own descriptor, `(U, d)`."""
        return self.dropout(F.gelu(self.norm(self.project(fused))))

    def _attend(self, x: Tensor, batch: Batch) -> Tensor:
        context = x + sinusoids(batch.position, x.shape[-1]).to(x.dtype)
        for layer in self.layers:
            context = layer(context, batch.dialogues, batch.speaker, self.causal)
        return context

    def _attend_window(self, x: Tensor, batch: Batch, window: int) -> Tensor:
        """Every utterance as a query of its own, with the last `window` utterances of its dialogue as keys."""
        rows = torch.arange(len(x), device=x.device)[:, None]
        seen = rows - torch.arange(window - 1, -1, -1, device=x.device)  # (U, window)
        mask = seen >= rows - batch.position[:, None]
        context = x + sinusoids(batch.position, x.shape[-1]).to(x.dtype)
        for layer in self.layers:
            context = cast(ContextLayer, layer).attend_window(context, batch.speaker, seen.clamp(min=0), mask)
        return context


class ContextLayer(nn.Module):
    """Each utterance attends to its speaker's utterances and to all utterances, as two sources of one attention."""

    RELATIONS = ("same", "any")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.attention_norm, self.dense_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = PeripheralCentralAttention(d, config.num_heads, [d, d], gate="learned", backend=config.backend)
        self.dense = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), Dropout(config.dropout), nn.Linear(2 * d, d))
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, dialogues: Layout, speakers: Tensor, causal: bool = False) -> Tensor:
        """`(U, d)` utterances of the dialogues and their speakers `(U,)` to `(U, d)`."""
        y = pack(self.attention_norm(x), dialogues)
        groups = {"query_groups": speakers, "key_groups": [speakers] * 2, "relations": self.RELATIONS}
        attended, _ = self.attention(y, [y, y], **groups, causal=causal)
        return self.finish(x, attended.values)

    def attend_window(self, x: Tensor, speakers: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
        """`forward` with the utterances in rows `seen[u]` as keys of utterance u, where `mask` is True.

        Args:
            x: `(U, d)`. speakers: `(U,)`.
            seen: int64 `(U, K)`.
            mask: bool `(U, K)`.
        """
        y = self.attention_norm(x)
        # projected once, and then seen by up to K utterances
        projected = [self.attention.project_source(p, y[None]) for p in range(2)]
        attended = self.attention.attend(
            self.attention.project_query(y[:, None]),
            [
                ProjectedSource(source.key[0, :, seen].transpose(0, 1), source.value[0, :, seen].transpose(0, 1))
                for source in projected
            ],
            gates=self.attention.gates(y[:, None]),
            key_masks=[mask, mask],
            query_groups=speakers[:, None],
            key_groups=[speakers[seen]] * 2,
            relations=self.RELATIONS,
        )
        return self.finish(x, self.attention.finish(attended)[:, 0])

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of the layer, after the attention."""
        x = self.dropout.add(x, attended)
        return self.dropout.add(x, self.dense(self.dense_norm(x)))


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sine and cosine codes `(N, width)`, float32, of int64 `(N,)` positions."""
    rate = 10000.0 ** (-torch.arange(0, width, 2, device=positions.device) / width)
    angles = positions[:, None].float() * rate
    return torch.stack([torch.sin(angles), torch.cos(angles)], dim=-1).flatten(1)
