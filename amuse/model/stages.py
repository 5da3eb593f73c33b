"""The stages of AMuSE in the order in which data flow: unimodal (III-A), Multimodal Attention Network (III-B); the
temporal stage (III-D) is in `amuse.model.temporal`. Sizes as in `amuse.model.amuse`: U utterances, d = d_model, T_m
tokens of modality m in all utterances, one utterance after the other without padding.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from amuse.config import ModelConfig
from amuse.layout import Layout, Merge
from amuse.model.dropout import Dropout
from amuse.model.packed import BiLSTM, pack, reorder
from amuse.model.score_map import MappedScoresAttention
from amuse_kernels.nn import PeripheralCentralAttention, ProjectedSource

Attention = PeripheralCentralAttention | MappedScoresAttention
Readers = Sequence[tuple[Attention, int]]
"""Attentions of equal widths and numbers of heads that read the same tokens, each as its source of this number."""


class JoinedWeights:
    """The weights of `inject`, joined once for many calls, between which they must not change.

    At the size of an utterance joining them takes as long as the product.
    """

    def __init__(self) -> None:
        self._of: dict[tuple[Attention, int], tuple[Tensor, Tensor]] = {}

    def of(self, readers: Readers) -> tuple[Tensor, Tensor]:
        """Weight and bias for the readers, which no others share the first one with."""
        if readers[0] not in self._of:
            self._of[readers[0]] = join(readers)
        return self._of[readers[0]]


class UnimodalStage(nn.Module):
    """Bi-LSTM over the tokens of one stream, then stacked self-attention (III-A): features to f_m."""

    def __init__(self, width: int, config: ModelConfig, num_layers: int | None = None) -> None:
        super().__init__()
        d = config.d_model
        num_layers = config.unimodal_layers if num_layers is None else num_layers
        self.input_dropout = Dropout(config.input_dropout)
        self.lstm = BiLSTM(width, d) if config.unimodal_lstm else None
        self.project = nn.Identity() if config.unimodal_lstm else nn.Linear(width, d)
        self.norm = nn.LayerNorm(d) if config.descriptor_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(AttentionLayer([d], 1.0, config) for _ in range(num_layers))

    def forward(self, features: Tensor, layout: Layout, joined: JoinedWeights | None = None) -> Tensor:
        """`(T, d_m)` features to `(T, d)`; `joined`: see `inject`."""
        x = self.input_dropout(features)
        x = self.lstm(x, layout.steps) if self.lstm is not None else self.project(x)
        return attend_to_itself(self.dropout(self.norm(x)), layout, self.layers, joined)


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

    def forward(
        self, features: list[Tensor], layouts: list[Layout], merge: Merge, joined: JoinedWeights | None = None
    ) -> Tensor:
        """Per stream `(T_s, d_s)` to `(sum of T_s, d)`, laid out as `merge` says; `joined`: see `inject`."""
        streams = zip(self.streams, features, layouts, strict=True)
        x = reorder(torch.cat([stage(f, layout) for stage, f, layout in streams]), merge.order, merge.inverse)
        return attend_to_itself(x, merge.layout, self.layers, joined)


class MultimodalAttentionNetwork(nn.ModuleList):
    """The Central networks of all modalities (III-B).

    The Peripheral networks inject keys and values at every layer, and f_n is the same at each: keys and values of a
    modality are one matrix product, for every layer of every Central network that reads them.
    """

    def __init__(self, num_modalities: int, config: ModelConfig) -> None:
        super().__init__(CentralNetwork(num_modalities - 1, config) for _ in range(num_modalities))

    def forward(
        self,
        tokens: list[Tensor],
        layouts: list[Layout],
        recompute: bool = False,
        joined: JoinedWeights | None = None,
    ) -> list[Tensor]:
        """f_m `(T_m, d)` of every modality to g^h, the state after the last layer, of the same shape.

        With `recompute` the backward pass computes the networks again, from the keys and values that are kept.
        `joined`: see `inject`.
        """
        networks = cast(list[CentralNetwork], list(self))
        injected: list[list[list[ProjectedSource]]] = [[[] for _ in network.layers] for network in networks]
        for n, (f, layout) in enumerate(zip(tokens, layouts, strict=True)):
            readers = [(m, layer) for m in range(len(networks)) if m != n for layer in range(len(injected[m]))]
            # the sources of network m are the other modalities in their order
            attentions = [(networks[m].attention(layer), n - (n > m)) for m, layer in readers]
            for (m, layer), source in zip(readers, inject(f, layout, attentions, joined), strict=True):
                injected[m][layer].append(source)
        calls = zip(networks, tokens, layouts, injected, strict=True)
        if recompute:
            return [checkpoint(network, *arguments, use_reentrant=False) for network, *arguments in calls]
        return [network(*arguments) for network, *arguments in calls]


class CentralNetwork(nn.Module):
    """The Central network of one modality (III-B): every layer attends to the other modalities' f_n (Eq. 1).

    On request a Bi-LSTM follows the layers, which Fig. 1 draws before the fusion and the text does not mention.
    """

    def __init__(self, num_peripherals: int, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.layers = nn.ModuleList(
            AttentionLayer(
                [d] * num_peripherals, config.man_gate, config, config.man_score_map, config.man_normalization
            )
            for _ in range(config.man_layers)
        )
        self.lstm = BiLSTM(d, d) if config.man_lstm else None
        self.constant_gate = num_peripherals > 0 and config.man_gate not in ("learned", "input")

    def attention(self, layer: int) -> Attention:
        """The attention of a layer, of a network that has peripherals."""
        return cast(Attention, cast(AttentionLayer, self.layers[layer]).attention)

    def forward(self, tokens: Tensor, layout: Layout, injected: Sequence[Sequence[ProjectedSource]]) -> Tensor:
        """`(T, d)` tokens of this modality to g^h, of the same shape; `injected`: keys and values for each layer."""
        g, gates = tokens, None
        if self.constant_gate and len(self.layers):  # filled once for all layers
            gates = self.attention(0).gates(pack(tokens, layout))
        for layer, sources in zip(self.layers, injected, strict=True):
            g = layer(g, layout, sources, gates)
        return g if self.lstm is None else self.lstm(g, layout.steps)


class AttentionLayer(nn.Module):
    """g + attention to the sources (Eq. 1), then a dense layer with a residual; without a source the dense layer only.

    The layer norms before both are ours: four layers train unreliably without.
    """

    def __init__(
        self,
        source_dims: list[int],
        gate: str | float,
        config: ModelConfig,
        score_map: bool = False,
        normalization: str = "per_source",
    ) -> None:
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
                self.attention = PeripheralCentralAttention(
                    d, config.num_heads, source_dims, normalization=normalization, gate=gate, **options
                )
        self.dense_norm = nn.LayerNorm(d)
        self.dense = nn.Linear(d, d)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, g: Tensor, layout: Layout, sources: Sequence[ProjectedSource], gates: Tensor | None = None
    ) -> Tensor:
        """`(T, d)` to the same shape; `sources`: see `inject`; `gates`: in place of the attention's own."""
        if self.attention is not None:
            attended, _ = self.attention(pack(self.attention_norm(g), layout), sources, gates=gates)
            g = self.dropout.add(g, attended.values)
        return self.dropout.add(g, F.gelu(self.dense(self.dense_norm(g))))


def attend_to_itself(
    tokens: Tensor, layout: Layout, layers: nn.ModuleList, joined: JoinedWeights | None = None
) -> Tensor:
    """Stacked self-attention: every `AttentionLayer` has its own input as its one source."""
    for layer in layers:
        tokens = layer(tokens, layout, inject(tokens, layout, [(cast(Attention, layer.attention), 0)], joined))
    return tokens


def inject(
    tokens: Tensor, layout: Layout, readers: Readers, joined: JoinedWeights | None = None
) -> list[ProjectedSource]:
    """Keys and values of the same `(T, d)` tokens for several attentions, in one matrix product.

    Args:
        tokens: Of one source. layout: Of them.
        readers: The attentions.
        joined: Keeps the weights of the product for the next call.
    """
    if not readers:
        return []
    heads = keys_and_values(tokens, readers, joined).unbind(1)
    pairs = zip(heads[::2], heads[1::2], strict=True)  # (T, H, D)
    return [ProjectedSource(key, value, layout.cu_seq, layout.max_len) for key, value in pairs]


def keys_and_values(tokens: Tensor, readers: Readers, joined: JoinedWeights | None = None) -> Tensor:
    """`(T, d)` tokens to `(T, 2 R, H, D)`: keys, then values, for each of R readers; arguments as for `inject`."""
    weight, bias = join(readers) if joined is None else joined.of(readers)
    return F.linear(tokens, weight, bias).unflatten(-1, (2 * len(readers), readers[0][0].num_heads, -1))


def join(readers: Readers) -> tuple[Tensor, Tensor]:
    """Weight and bias of the product that makes keys and values for all readers."""
    linears: Any = [kind[p] for attention, p in readers for kind in (attention.k_proj, attention.v_proj)]
    return torch.cat([linear.weight for linear in linears]), torch.cat([linear.bias for linear in linears])
