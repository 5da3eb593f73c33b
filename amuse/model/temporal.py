"""The temporal stage (III-D): each utterance in the context of its dialogue and of its speaker."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amuse.config import ModelConfig
from amuse.data.batch import Batch
from amuse.model.stages import BiLSTM
from amuse_kernels.nn import PeripheralCentralAttention


class TemporalStage(nn.Module):
    """Dialogue context over all utterances, speaker context over the speaker's own (III-D).

    "bilstm" (the paper): two parallel Bi-LSTMs. "attention" (ours): one attention over the sources "same speaker" and
    "any speaker", causal for real-time use. Their results stand beside the utterance's own descriptor.
    """

    def __init__(self, fused_width: int, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.kind, self.causal, self.window = config.temporal, config.causal, config.context_window
        self.project = nn.Linear(fused_width, d)
        self.norm = nn.LayerNorm(d)
        self.dropout = nn.Dropout(config.dropout)
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
            by_dialogue = Sequences(batch.dialogue)
            by_speaker = Sequences(batch.dialogue * (batch.speaker.max() + 1) + batch.speaker)
            contexts = [
                grouping.flat(lstm(grouping.padded(x), grouping.lengths))
                for grouping, lstm in ((by_dialogue, self.dialogue_lstm), (by_speaker, self.speaker_lstm))
            ]
        else:
            contexts = [self._attend(x, batch) if self.window is None else self._attend_window(x, batch, self.window)]
        return self.dropout(torch.cat([x, *contexts], dim=-1))

    def embed(self, fused: Tensor) -> Tensor:
        """The utterance's own descriptor, `(U, d)`."""
        return self.dropout(F.gelu(self.norm(self.project(fused))))

    def _attend(self, x: Tensor, batch: Batch) -> Tensor:
        by_dialogue = Sequences(batch.dialogue)
        context = by_dialogue.padded(x)
        positions = torch.arange(context.shape[1], device=x.device)
        context = context + sinusoids(positions, context.shape[2]).to(x.dtype)
        speakers, mask = by_dialogue.padded(batch.speaker), by_dialogue.mask
        for layer in self.layers:
            context = layer(context, speakers, mask, causal=self.causal)
        return by_dialogue.flat(context)

    def _attend_window(self, x: Tensor, batch: Batch, window: int) -> Tensor:
        """Every utterance as a row of its own, with the last `window` utterances of its dialogue as keys."""
        rows = torch.arange(len(x), device=x.device)[:, None]
        seen = rows - torch.arange(window - 1, -1, -1, device=x.device)  # (U, window)
        mask = seen >= rows - batch.position[:, None]
        seen = seen.clamp(min=0)
        context = (x + sinusoids(batch.position, x.shape[-1]).to(x.dtype))[:, None]
        for layer in self.layers:
            context = layer(context, batch.speaker[:, None], mask, seen)
        return context[:, 0]


class ContextLayer(nn.Module):
    """Each utterance attends to its speaker's utterances and to everybody's, as two sources of one attention."""

    RELATIONS = ("same", "any")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.attention_norm, self.dense_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = PeripheralCentralAttention(d, config.num_heads, [d, d], gate="learned", backend=config.backend)
        self.dense = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(2 * d, d))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, speakers: Tensor, mask: Tensor, seen: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """`(B, N, d)` utterances of B dialogues, their speakers and the keys' bool mask, both `(B, N)`.

        With `seen`, int64 `(B, K)`, N is 1 and row b has the utterances in rows `seen[b]` as keys, masked by `(B, K)`.
        """
        y = self.attention_norm(x)
        keys, key_speakers = (y, speakers) if seen is None else (y[:, 0][seen], speakers[:, 0][seen])
        attended, _ = self.attention(
            y,
            [keys, keys],
            key_masks=[mask, mask],
            query_groups=speakers,
            key_groups=[key_speakers, key_speakers],
            relations=self.RELATIONS,
            causal=causal,
        )
        return self.finish(x, attended)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows the attention."""
        x = x + self.dropout(attended)
        return x + self.dropout(self.dense(self.dense_norm(x)))


class Sequences:
    """Rows `(U, ...)` grouped into padded sequences `(S, N, ...)` by a key, in their order, and back."""

    def __init__(self, key: Tensor) -> None:
        self.order = torch.argsort(key, stable=True)
        _, self.lengths = torch.unique_consecutive(key[self.order], return_counts=True)
        starts = self.lengths.cumsum(0) - self.lengths
        self.row = torch.repeat_interleave(torch.arange(len(self.lengths), device=key.device), self.lengths)
        self.column = torch.arange(len(key), device=key.device) - starts[self.row]
        self.longest = int(self.lengths.max())

    @property
    def mask(self) -> Tensor:
        """bool `(S, N)`, True = a real row."""
        return torch.arange(self.longest, device=self.lengths.device) < self.lengths[:, None]

    def padded(self, rows: Tensor) -> Tensor:
        out = rows.new_zeros(len(self.lengths), self.longest, *rows.shape[1:])
        out[self.row, self.column] = rows[self.order]
        return out

    def flat(self, padded: Tensor) -> Tensor:
        out = padded.new_empty(len(self.order), *padded.shape[2:])
        out[self.order] = padded[self.row, self.column]
        return out


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sine and cosine codes `(N, width)`, float32, of int64 `(N,)` positions."""
    rate = 10000.0 ** (-torch.arange(0, width, 2, device=positions.device) / width)
    angles = positions[:, None].float() * rate
    return torch.stack([torch.sin(angles), torch.cos(angles)], dim=-1).flatten(1)
