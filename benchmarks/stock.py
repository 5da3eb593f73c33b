"""AMuSE in stock PyTorch as a user would write it: padded batches with masks, `nn.LSTM` on packed sequences, one
`nn.MultiheadAttention` per source.

The network of `benchmarks.meld.config` with the weights of an `Amuse`; every utterance has every modality.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from amuse.data.batch import Batch
from amuse.model.amuse import Amuse
from amuse.model.output import Output
from amuse.model.stages import AttentionLayer
from amuse.model.temporal import TemporalStage
from amuse_kernels.nn import AdaptiveFusion


class StockAmuse(nn.Module):
    """The network of `model`, with copies of its weights."""

    def __init__(self, model: Amuse) -> None:
        super().__init__()
        parts: Any = model
        self.unimodal = nn.ModuleList(_Unimodal(stage) for stage in parts.unimodal)
        self.central = nn.ModuleList(
            nn.ModuleList(_Layer(layer) for layer in network.layers) for network in parts.central
        )
        self.heads, self.classifier = copy.deepcopy(parts.heads), copy.deepcopy(parts.classifier)
        self.fusion = _Fusion(parts.fusion)
        self.temporal = _Temporal(parts.temporal)

    def forward(self, features: list[Tensor], masks: list[Tensor], dialogues: list[int], speakers: Tensor) -> Output:
        """Predict U utterances.

        Args:
            features, masks: Per modality padded `(U, L, d_m)` and bool `(U, L)`, True = token.
            dialogues: Utterances of each dialogue.
            speakers: `(U,)`.
        """
        tokens = [stage(*own) for stage, *own in zip(self.unimodal, features, masks, strict=True)]
        pooled = []
        networks: list[Any] = list(self.central)
        for m, layers in enumerate(networks):
            others = [n for n in range(len(tokens)) if n != m]
            g = tokens[m]
            for layer in layers:
                g = layer(g, [tokens[n] for n in others], [masks[n] for n in others])
            mask = masks[m][..., None]
            pooled.append((g * mask).sum(1) / mask.sum(1))
        descriptors = torch.stack(pooled, dim=1)
        logits = torch.stack([head(f) for head, f in zip(self.heads, pooled, strict=True)], dim=1)
        fused, alpha = self.fusion(descriptors)
        context = self.temporal(fused, dialogues, speakers)
        present = torch.stack([mask.any(1) for mask in masks], dim=1)
        return Output(self.classifier(context), logits, descriptors, alpha, present)


class _Unimodal(nn.Module):
    """Bi-LSTM, then self-attention."""

    def __init__(self, stage: Any) -> None:
        super().__init__()
        self.lstm, self.norm = copy.deepcopy(stage.lstm.lstm), copy.deepcopy(stage.norm)
        self.dropout = nn.Dropout(stage.dropout.p)
        self.layers = nn.ModuleList(_Layer(layer) for layer in stage.layers)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.dropout(self.norm(recur(self.lstm, x, mask.sum(1))))
        for layer in self.layers:
            x = layer(x, [x], [mask])
        return x


class _Layer(nn.Module):
    """Attention to the sources, one `nn.MultiheadAttention` each, then the dense layer."""

    def __init__(self, layer: AttentionLayer) -> None:
        super().__init__()
        ours: Any = layer.attention
        count, d = len(ours.k_proj), ours.embed_dim
        self.gate = 1 / (count + 1) if ours.gate == "mean" else float(ours.gate)
        self.attentions = nn.ModuleList()
        for key, value in zip(ours.k_proj, ours.v_proj, strict=True):
            attention = nn.MultiheadAttention(d, ours.num_heads, batch_first=True)
            maps = (ours.q_proj, key, value)
            with torch.no_grad():
                attention.in_proj_weight.copy_(torch.cat([linear.weight for linear in maps]))
                attention.in_proj_bias.copy_(torch.cat([linear.bias for linear in maps]))
                attention.out_proj.weight.copy_(ours.out_proj.weight)
                # the sources' biases add up to the one of ours
                attention.out_proj.bias.copy_(ours.out_proj.bias / (self.gate * count))
            self.attentions.append(attention)
        self.attention_norm, self.dense_norm = copy.deepcopy(layer.attention_norm), copy.deepcopy(layer.dense_norm)
        self.dense, self.dropout = copy.deepcopy(layer.dense), nn.Dropout(layer.dropout.p)

    def forward(self, g: Tensor, sources: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        y = self.attention_norm(g)
        attended = [
            attention(y, source, source, key_padding_mask=~mask, need_weights=False)[0]
            for attention, source, mask in zip(self.attentions, sources, masks, strict=True)
        ]
        g = g + self.dropout(self.gate * sum(attended[1:], start=attended[0]))
        return g + self.dropout(F.gelu(self.dense(self.dense_norm(g))))


class _Fusion(nn.Module):
    """Eq. 2 with the learned gate, pair by pair."""

    def __init__(self, fusion: AdaptiveFusion) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(p.detach().clone()) for p in (fusion.pair_weight, fusion.pair_bias))

    def forward(self, descriptors: Tensor) -> tuple[Tensor, Tensor]:
        count = descriptors.shape[1]
        alphas = descriptors.new_zeros(len(descriptors), count, count)
        mixed, pair = [], 0
        for m in range(count):
            total = torch.zeros_like(descriptors[:, m])
            for n in range(count):
                if n == m:
                    continue
                f_m, f_n = descriptors[:, m], descriptors[:, n]
                alpha = torch.sigmoid(f_m @ self.weight[pair, 0] + f_n @ self.weight[pair, 1] + self.bias[pair])
                total = total + alpha[:, None] * f_n + (1 - alpha[:, None]) * f_m
                alphas[:, m, n] = alpha
                pair += 1
            mixed.append(total / count)
        return torch.cat(mixed, dim=1), alphas


class _Temporal(nn.Module):
    """Two Bi-LSTMs, over padded dialogues and over the padded utterances of each speaker."""

    def __init__(self, temporal: TemporalStage) -> None:
        super().__init__()
        self.project, self.norm = copy.deepcopy(temporal.project), copy.deepcopy(temporal.norm)
        self.dropout = nn.Dropout(temporal.dropout.p)
        self.dialogue_lstm = copy.deepcopy(temporal.dialogue_lstm.lstm)
        self.speaker_lstm = copy.deepcopy(temporal.speaker_lstm.lstm)

    def forward(self, fused: Tensor, dialogues: list[int], speakers: Tensor) -> Tensor:
        x = self.dropout(F.gelu(self.norm(self.project(fused))))
        rows = torch.arange(len(x), device=x.device).split(dialogues)
        turns = [own[speakers[own] == speaker] for own in rows for speaker in speakers[own].unique()]
        contexts = [self._recur(x, rows, self.dialogue_lstm), self._recur(x, turns, self.speaker_lstm)]
        return self.dropout(torch.cat([x, *contexts], dim=-1))

    def _recur(self, x: Tensor, sequences: Sequence[Tensor], lstm: nn.LSTM) -> Tensor:
        padded = pad_sequence([x[rows] for rows in sequences], batch_first=True)
        lengths = torch.tensor([len(rows) for rows in sequences])
        out = recur(lstm, padded, lengths)
        found = out.new_zeros(len(x), out.shape[-1])
        found[torch.cat(list(sequences))] = torch.cat([out[i, :n] for i, n in enumerate(lengths.tolist())])
        return found


def recur(lstm: nn.LSTM, x: Tensor, lengths: Tensor) -> Tensor:
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(lstm(packed)[0], batch_first=True, total_length=x.shape[1])[0]


class StockInputs(NamedTuple):
    """The arguments of `StockAmuse.forward`."""

    features: list[Tensor]
    masks: list[Tensor]
    dialogues: list[int]
    speakers: Tensor

    @classmethod
    def of(cls, batch: Batch) -> "StockInputs":
        features, masks = zip(*(batch.padded(name) for name in batch.tokens), strict=True)
        return cls(list(features), list(masks), batch.dialogues.lengths.tolist(), batch.speaker)
