"""AMuSE on padded dialogues without data-dependent shapes, as exporters need it.

The weights and layers are those of `amuse.model.amuse.Amuse`; only the walk through them differs, since packing tokens
makes shapes that depend on values. Sizes: B dialogues, N utterances of the longest, U = B * N, L tokens, d = d_model.
"""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amuse.data.standardize import Standardizer
from amuse.model.amuse import Amuse
from amuse.model.packed import BiLSTM
from amuse.model.score_map import MappedScoresAttention
from amuse.model.stages import AttentionLayer, CentralNetwork, StreamsStage, UnimodalStage
from amuse.model.temporal import ContextLayer, TemporalStage, sinusoids
from amuse.onnx.lstm import OnnxBiLSTM
from amuse_kernels import p2c_attention
from amuse_kernels.nn import PeripheralCentralAttention


class Tokens(NamedTuple):
    """Padded sequences `(U, L, d)` and their bool mask `(U, L)`, a prefix of True."""

    values: Tensor
    mask: Tensor

    @property
    def lengths(self) -> Tensor:
        return self.mask.sum(1)


class PaddedAmuse(nn.Module):
    """A trained model, its standardization of features and its temperature in one module.

    Args:
        model: In evaluation mode; every parameter stays shared with it.
        standardizer: Of the features; None = features arrive as the model reads them.
        temperature: Divides the logits before the softmax.

    Raises:
        ValueError: A model that cannot be exported: an encoder trained with it, or random fusion.
    """

    def __init__(self, model: Amuse, standardizer: Standardizer | None = None, temperature: float = 1.0) -> None:
        super().__init__()
        if model.encoders:
            raise ValueError(
                "model: expected features as inputs, got encoders trained with the model, which cannot be exported to "
                f"ONNX: {', '.join(model.encoders)}"
            )
        if model.config.fusion == "random":
            raise ValueError("fusion: 'random' gives other numbers in every run and cannot be exported to ONNX")
        self.model, self.temperature = model, temperature
        self.clip = None if standardizer is None else standardizer.clip
        self.standardized = [] if standardizer is None else list(standardizer.mean)
        for name in self.standardized:
            assert standardizer is not None
            self.register_buffer(f"mean_{name}", standardizer.mean[name])
            self.register_buffer(f"std_{name}", standardizer.std[name])
        # by the place of the LSTM in the model
        self.lstms = nn.ModuleDict(
            {
                name.replace(".", "-"): OnnxBiLSTM(module.lstm)
                for name, module in model.named_modules()
                if isinstance(module, BiLSTM)
            }
        )
        self.places = {module: name.replace(".", "-") for name, module in model.named_modules()}

    def forward(
        self, features: dict[str, Tensor], masks: dict[str, Tensor], utterances: Tensor, speakers: Tensor
    ) -> tuple[Tensor, ...]:
        """Predict every utterance; arguments as for `amuse.hf.AmuseForUtteranceClassification.forward`.

        Returns:
            Logits `(B, N, C)`; unless it is a regression, probabilities of that shape; and the modalities' own logits
            `(B, N, M, C)`. All are meaningless where `utterances` is False.
        """
        groups = self.model.groups.values()
        streams = {name: self._stream(name, features[name], masks[name], utterances) for name in features}
        tokens = [
            self._unimodal(cast(UnimodalStage, stage), streams[names[0]])
            if len(names) == 1
            else self._streams(cast(StreamsStage, stage), [streams[name] for name in names])
            for stage, names in zip(self.model.unimodal, groups, strict=True)
        ]
        central = self.model.central
        states = tokens if central is None else [self._central(m, tokens) for m in range(len(tokens))]
        pooled = [_average(state) for state in states]
        modality_logits = torch.stack([head(f) for head, f in zip(self.model.heads, pooled, strict=True)], dim=1)
        present = torch.stack([state.mask.any(1) for state in tokens], dim=1)
        fused, _ = self.model.fuse(torch.stack(pooled, dim=1), present)
        logits = self.model.classifier(self._temporal(self.model.temporal, fused, utterances, speakers))
        logits, modality_logits = (x.unflatten(0, utterances.shape) for x in (logits, modality_logits))
        if self.model.spec.regression:
            return logits, modality_logits
        return logits, (logits / self.temperature).softmax(-1), modality_logits

    def _stream(self, name: str, features: Tensor, mask: Tensor, utterances: Tensor) -> Tokens:
        if name in self.standardized:
            features = (features - getattr(self, f"mean_{name}")) / getattr(self, f"std_{name}")
            features = features if self.clip is None else features.clamp(-self.clip, self.clip)
        mask = mask & utterances[:, :, None]
        return Tokens(features.masked_fill(~mask[..., None], 0.0).flatten(0, 1), mask.flatten(0, 1))

    def _lstm(self, module: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
        return self.lstms[self.places[module]](x, lengths)

    def _unimodal(self, stage: UnimodalStage, x: Tokens) -> Tokens:
        values = stage.project(x.values) if stage.lstm is None else self._lstm(stage.lstm, x.values, x.lengths)
        return _attend_to_itself(x._replace(values=stage.norm(values)), stage.layers)

    def _streams(self, stage: StreamsStage, streams: list[Tokens]) -> Tokens:
        each = [self._unimodal(cast(UnimodalStage, s), x) for s, x in zip(stage.streams, streams, strict=True)]
        values, mask = torch.cat([x.values for x in each], 1), torch.cat([x.mask for x in each], 1)
        return _attend_to_itself(_compacted(values, mask), stage.layers)

    def _central(self, m: int, tokens: list[Tokens]) -> Tokens:
        network = cast(CentralNetwork, cast(Any, self.model.central)[m])
        g, others = tokens[m], [x for n, x in enumerate(tokens) if n != m]
        for layer in network.layers:
            g = _attention_layer(cast(AttentionLayer, layer), g, others)
        return g if network.lstm is None else g._replace(values=self._lstm(network.lstm, g.values, g.lengths))

    def _temporal(self, stage: TemporalStage, fused: Tensor, utterances: Tensor, speakers: Tensor) -> Tensor:
        x = stage.embed(fused)
        if stage.kind == "none":
            return x
        dialogues = x.unflatten(0, utterances.shape)
        if stage.kind == "bilstm":
            dialogue = self._lstm(stage.dialogue_lstm, dialogues, utterances.sum(1))
            turns = _turns(utterances, speakers)
            own = self._lstm(stage.speaker_lstm, turns.place(dialogues), turns.lengths)
            return torch.cat([x, dialogue.flatten(0, 1), turns.read(own)], dim=-1)
        positions = torch.arange(utterances.shape[1], device=x.device)
        context = dialogues + sinusoids(positions, x.shape[-1]).to(x.dtype)
        for layer in stage.layers:
            context = _context_layer(cast(ContextLayer, layer), context, utterances, speakers, stage)
        return torch.cat([x, context.flatten(0, 1)], dim=-1)


class _Turns(NamedTuple):
    """The utterances of each speaker of each dialogue, as sequences: S speakers, at most N utterances each.

    Attributes:
        rows: int64 `(B, N)`, where an utterance is in `(B * S * N)`; that of padding is B * S * N, one place more.
        lengths: int64 `(B * S,)`.
    """

    rows: Tensor
    lengths: Tensor

    def place(self, x: Tensor) -> Tensor:
        """`(B, N, d)` as `(B * S, N, d)`."""
        sequences, steps = self.lengths.shape[0], x.shape[1]
        empty = x.new_zeros(sequences * steps + 1, x.shape[2])
        placed = empty.index_put((self.rows.flatten(),), x.flatten(0, 1))
        return placed[: sequences * steps].unflatten(0, (sequences, steps))

    def read(self, sequences: Tensor) -> Tensor:
        """`(B * S, N, d)` as `(B * N, d)`, 0 of padding."""
        return F.pad(sequences.flatten(0, 1), (0, 0, 0, 1)).index_select(0, self.rows.flatten())


def _turns(utterances: Tensor, speakers: Tensor) -> _Turns:
    # as many sequences as utterances, most of them empty, since the number of speakers would be a shape from values
    batch, steps = utterances.shape
    same = (speakers[:, :, None] == speakers[:, None, :]) & utterances[:, None, :] & utterances[:, :, None]
    index = torch.arange(steps, device=speakers.device)
    earlier = index[None, :] < index[:, None]
    rank = (same & earlier).sum(-1)
    first = torch.where(same, index, steps).amin(-1)  # the speaker's first utterance gives the sequence its number
    sequence = first + steps * torch.arange(batch, device=speakers.device)[:, None]
    rows = torch.where(utterances, sequence * steps + rank, batch * steps * steps)
    lengths = torch.where((first == index) & utterances, same.sum(-1), 0)
    return _Turns(rows, lengths.flatten())


def _attend_to_itself(x: Tokens, layers: nn.ModuleList) -> Tokens:
    for layer in layers:
        x = _attention_layer(cast(AttentionLayer, layer), x, [x])
    return x


def _attention_layer(layer: AttentionLayer, g: Tokens, sources: list[Tokens]) -> Tokens:
    values = g.values
    if layer.attention is not None:
        query = g._replace(values=layer.attention_norm(values))
        if isinstance(layer.attention, MappedScoresAttention):
            values = values + _mapped_scores(layer.attention, query, sources)
        else:
            attention = cast(PeripheralCentralAttention, layer.attention)
            masks = [x.mask for x in sources]
            values = (
                values + attention(query.values, [x.values for x in sources], query_mask=g.mask, key_masks=masks)[0]
            )
    return g._replace(values=values + F.gelu(layer.dense(layer.dense_norm(values))))


def _mapped_scores(attention: MappedScoresAttention, query: Tokens, sources: list[Tokens]) -> Tensor:
    """`MappedScoresAttention.forward` of padded tokens."""

    def heads(linear: nn.Module, x: Tensor) -> Tensor:
        return linear(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)  # (U, H, L, D)

    queries = attention.q_proj(query.values)[:, None].expand(-1, attention.num_heads, -1, -1)
    keys = [heads(linear, x.values) for linear, x in zip(attention.k_proj, sources, strict=True)]
    values = [heads(linear, x.values) for linear, x in zip(attention.v_proj, sources, strict=True)]
    wide: Any = p2c_attention(
        queries,
        [torch.einsum("hi,uild->uhlid", m, k).flatten(-2) for m, k in zip(attention.score_map, keys, strict=True)],
        [F.pad(value, (0, queries.shape[-1] - attention.head_dim)) for value in values],
        gates=torch.full((len(sources),), attention.gate, device=query.values.device),
        key_masks=[x.mask for x in sources],
        softmax_scale=attention.softmax_scale,
        backend=attention.backend,
    )
    merged = wide[..., : attention.head_dim].transpose(1, 2)
    return attention.out_proj(merged.mean(2) if attention.head_merge == "mean" else merged.flatten(2))


def _context_layer(
    layer: ContextLayer, x: Tensor, utterances: Tensor, speakers: Tensor, stage: TemporalStage
) -> Tensor:
    """`ContextLayer.forward`, or `attend_window`, of `(B, N, d)` dialogues."""
    if stage.window is not None:
        rows = torch.arange(x.shape[0] * x.shape[1], device=x.device)[:, None]
        seen = rows - torch.arange(stage.window - 1, -1, -1, device=x.device)
        position = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1).reshape(-1, 1)
        mask = seen >= rows - position
        flat = layer.attend_window(x.flatten(0, 1), speakers.flatten(), seen.clamp(min=0), mask)
        return flat.unflatten(0, utterances.shape)
    y = layer.attention_norm(x)
    attended, _ = layer.attention(
        y,
        [y, y],
        key_masks=[utterances, utterances],
        query_groups=speakers,
        key_groups=[speakers, speakers],
        relations=ContextLayer.RELATIONS,
        causal=stage.causal,
    )
    return layer.finish(x, attended)


def _compacted(values: Tensor, mask: Tensor) -> Tokens:
    """Tokens of several streams side by side, those of padding moved to the end; the order of others is kept."""
    count = mask.sum(1, keepdim=True)
    place = torch.where(mask, mask.cumsum(1) - 1, count + (~mask).cumsum(1) - 1)
    values = torch.zeros_like(values).scatter(1, place[..., None].expand_as(values), values)
    return Tokens(values, torch.arange(mask.shape[1], device=mask.device) < count)


def _average(x: Tokens) -> Tensor:
    total = x.values.masked_fill(~x.mask[..., None], 0.0).sum(1)
    return total / x.lengths.clamp(min=1)[:, None]
