"""Attention of a Central network to Peripheral sources as a layer."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from amuse_kernels.api import p2c_attention, p2c_attention_weights
from amuse_kernels.attention.inputs import MAX_HEAD_DIM, MAX_SOURCES, NORMALIZATIONS
from amuse_kernels.checks import check_flag, check_mask
from amuse_kernels.nn.checks import check_floating, check_size

GATES = ("learned", "mean", "input")
HEAD_MERGES = ("concat", "mean")


class PeripheralCentralAttention(nn.Module):
    """Multi-head attention of a Central network's tokens to P Peripheral sources (AMuSE, Eq. 1).

    It is called like `nn.MultiheadAttention`, with a list of sources in the place of key and value:

        attention = PeripheralCentralAttention(256, 8, source_dims=[256, 128])
        output, _ = attention(text, [audio, video], key_masks=[audio_mask, video_mask])

    Args:
        embed_dim: width of the query and the output; `embed_dim / num_heads` must be a multiple of 8 from 8 to 256.
        num_heads: number of heads H.
        source_dims: per source the width of its tokens, or a pair (key width, value width).
        normalization: "per_source" (the paper) | "joint".
        gate: weight of each source. "mean": the paper's constant 1 / (P + 1) | "learned": one positive parameter a head
            and source | "input": positive, from the average query token, so that it differs between instances | a
            number: that constant. The trainable gates start at 1 / (P + 1).
        head_merge: "concat" | "mean" (the paper pools heads by average).
        dropout: probability to drop an attention weight in training.
        bias: whether the projections have biases.
        batch_first: False takes and returns (L, B, ...) as `nn.MultiheadAttention` does by default.
        backend: see `p2c_attention`.

    Raises:
        ValueError: naming the argument, what it was and what was expected.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        source_dims: Sequence[int | tuple[int, int]],
        *,
        normalization: str = "per_source",
        gate: str | float = "mean",
        head_merge: str = "concat",
        dropout: float = 0.0,
        bias: bool = True,
        batch_first: bool = True,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("embed_dim", embed_dim)
        check_size("num_heads", num_heads)
        if embed_dim % num_heads or (embed_dim // num_heads) % 8:
            raise ValueError(
                f"embed_dim: expected num_heads ({num_heads}) times a head dim that is a multiple of 8, got {embed_dim}"
            )
        if embed_dim // num_heads > MAX_HEAD_DIM:
            raise ValueError(f"num_heads: head dim {embed_dim // num_heads} is above {MAX_HEAD_DIM}")
        if isinstance(source_dims, str) or not isinstance(source_dims, Sequence):
            raise TypeError(f"source_dims: expected a list or tuple, got {type(source_dims).__name__}")
        if not 1 <= len(source_dims) <= MAX_SOURCES:
            raise ValueError(f"source_dims: expected 1 to {MAX_SOURCES} sources, got {len(source_dims)}")
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization: expected one of {NORMALIZATIONS}, got {normalization!r}")
        if not _is_number(gate) and gate not in GATES:
            raise ValueError(f"gate: expected one of {GATES} or a finite number, got {gate!r}")
        if head_merge not in HEAD_MERGES:
            raise ValueError(f"head_merge: expected one of {HEAD_MERGES}, got {head_merge!r}")
        if not _is_number(dropout) or not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.source_dims = [_widths(f"source_dims[{p}]", dims) for p, dims in enumerate(source_dims)]
        self.normalization = normalization
        self.gate = gate
        self.head_merge = head_merge
        self.dropout = dropout
        self.batch_first = batch_first
        self.backend = backend

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        sources = len(self.source_dims)
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias=bias, **factory)
        self.k_proj = nn.ModuleList(nn.Linear(k, embed_dim, bias=bias, **factory) for k, _ in self.source_dims)
        self.v_proj = nn.ModuleList(nn.Linear(v, embed_dim, bias=bias, **factory) for _, v in self.source_dims)
        merged_dim = embed_dim if head_merge == "concat" else self.head_dim
        self.out_proj = nn.Linear(merged_dim, embed_dim, bias=bias, **factory)
        if gate == "learned":
            self.log_gate = nn.Parameter(torch.empty(num_heads, sources, **factory))
        elif gate == "input":
            self.gate_proj = nn.Linear(embed_dim, num_heads * sources, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier weights and zero biases, as in `nn.MultiheadAttention`; trainable gates at 1 / (P + 1)."""
        for linear in (self.q_proj, *self.k_proj, *self.v_proj):
            nn.init.xavier_uniform_(linear.weight)
        self.out_proj.reset_parameters()
        for linear in (self.q_proj, *self.k_proj, *self.v_proj, self.out_proj):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        mean_log_gate = -math.log(len(self.source_dims) + 1)
        if self.gate == "learned":
            nn.init.constant_(self.log_gate, mean_log_gate)
        elif self.gate == "input":
            nn.init.normal_(self.gate_proj.weight, std=0.02)
            nn.init.constant_(self.gate_proj.bias, mean_log_gate)

    @classmethod
    def from_multihead_attention(cls, mha: nn.MultiheadAttention, *, backend: str | None = None) -> Self:
        """A layer with one source, gate fixed at 1 and the weights of `mha`, which gives the output of `mha`.

        Raises:
            ValueError: `mha` uses `add_bias_kv` or `add_zero_attn`, or a head dim that the kernels do not cover.
        """
        if mha.bias_k is not None or mha.add_zero_attn:
            raise ValueError("mha: add_bias_kv and add_zero_attn have no counterpart here")
        weight = mha.out_proj.weight
        layer = cls(
            mha.embed_dim,
            mha.num_heads,
            [(mha.kdim, mha.vdim)],
            gate=1.0,
            dropout=mha.dropout,
            bias=mha.in_proj_bias is not None,
            batch_first=mha.batch_first,
            backend=backend,
            device=weight.device,
            dtype=weight.dtype,
        )
        if mha.in_proj_weight is not None:
            projections = mha.in_proj_weight.chunk(3)
        else:
            projections = (mha.q_proj_weight, mha.k_proj_weight, mha.v_proj_weight)
        linears: Any = (layer.q_proj, layer.k_proj[0], layer.v_proj[0])
        with torch.no_grad():
            for linear, projection in zip(linears, projections, strict=True):
                linear.weight.copy_(projection)
            layer.out_proj.weight.copy_(weight)
            if mha.in_proj_bias is not None:
                for linear, bias in zip(linears, mha.in_proj_bias.chunk(3), strict=True):
                    linear.bias.copy_(bias)
                layer.out_proj.bias.copy_(mha.out_proj.bias)
        return layer.train(mha.training)

    def forward(
        self,
        query: Tensor,
        sources: Sequence[Tensor | tuple[Tensor, Tensor]],
        *,
        query_mask: Tensor | None = None,
        key_masks: Sequence[Tensor | None] | None = None,
        query_groups: Tensor | None = None,
        key_groups: Sequence[Tensor | None] | None = None,
        relations: Sequence[str] | None = None,
        causal: bool | Sequence[bool] = False,
        need_weights: bool = False,
        average_attn_weights: bool = True,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Attend to all sources.

        Args:
            query: `(B, Lq, embed_dim)`.
            sources: per source its tokens `(B, Lp, dim)`, or a pair of key tokens and value tokens.
            query_mask: bool `(B, Lq)`, True = a real token; only read by gate="input", for its average.
            key_masks, query_groups, key_groups, relations, causal: see `p2c_attention`. They are batch first always,
                and a mask is True where a key may be attended (`nn.MultiheadAttention` has it the other way round).
            need_weights: also return the attention weights.
            average_attn_weights: weights averaged over heads.

        Returns:
            output `(B, Lq, embed_dim)`, and None or, with `need_weights`, per source the weights without dropout,
            `(B, Lq, Lp)` or `(B, H, Lq, Lp)`. A query that sees no key gets the bias of the output projection.

        Raises:
            TypeError, ValueError: naming the argument, what it was and what was expected.
        """
        if isinstance(sources, Tensor) or not isinstance(sources, Sequence):
            raise TypeError(f"sources: expected a list or tuple, got {type(sources).__name__}")
        if len(sources) != len(self.source_dims):
            raise ValueError(f"sources: expected {len(self.source_dims)} entries, got {len(sources)}")
        check_flag("need_weights", need_weights)
        check_flag("average_attn_weights", average_attn_weights)
        check_floating("query", query)
        pairs = [_tokens(f"sources[{p}]", source) for p, source in enumerate(sources)]
        if not self.batch_first:
            query = query.transpose(0, 1)
            pairs = [(key.transpose(0, 1), value.transpose(0, 1)) for key, value in pairs]
        self._check(query, pairs)

        heads_query = self._split_heads(self.q_proj(query))
        keys = [self._split_heads(project(key)) for project, (key, _) in zip(self.k_proj, pairs, strict=True)]
        values = [self._split_heads(project(value)) for project, (_, value) in zip(self.v_proj, pairs, strict=True)]
        options: dict[str, Any] = {
            "gates": self._gates(query, query_mask),
            "key_masks": key_masks,
            "query_groups": query_groups,
            "key_groups": key_groups,
            "relations": relations,
            "causal": causal,
            "normalization": self.normalization,
        }
        dropout_p = self.dropout if self.training else 0.0
        heads: Any = p2c_attention(heads_query, keys, values, dropout_p=dropout_p, backend=self.backend, **options)
        # (B, Lq, H * D) or (B, Lq, D)
        merged = heads.transpose(1, 2).flatten(2) if self.head_merge == "concat" else heads.mean(1)
        output = self.out_proj(merged)
        if not self.batch_first:
            output = output.transpose(0, 1)
        if not need_weights:
            return output, None
        weights: Any = p2c_attention_weights(heads_query, keys, **options)
        return output, tuple(w.mean(1) for w in weights) if average_attn_weights else weights

    def _check(self, query: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> None:
        if query.dim() != 3 or query.shape[-1] != self.embed_dim:
            raise ValueError(f"query: expected (B, Lq, {self.embed_dim}), got {tuple(query.shape)}")
        for p, ((key, value), (key_dim, value_dim)) in enumerate(zip(pairs, self.source_dims, strict=True)):
            for name, tokens, dim in (("key", key, key_dim), ("value", value, value_dim)):
                if tokens.dim() != 3 or tokens.shape[0] != query.shape[0] or tokens.shape[-1] != dim:
                    raise ValueError(
                        f"sources[{p}] ({name}): expected ({query.shape[0]}, L, {dim}), got {tuple(tokens.shape)}"
                    )

    def _split_heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _gates(self, query: Tensor, query_mask: Tensor | None) -> Tensor:
        """Broadcastable to (B, H, P)."""
        sources = len(self.source_dims)
        if self.gate == "learned":
            return self.log_gate.exp()
        if self.gate == "input":
            return self.gate_proj(_average(query, query_mask)).exp().unflatten(-1, (self.num_heads, sources))
        constant = 1 / (sources + 1) if self.gate == "mean" else float(self.gate)
        return torch.full((sources,), constant, device=query.device)

    def extra_repr(self) -> str:
        dims = ", ".join(str(k) if k == v else f"({k}, {v})" for k, v in self.source_dims)
        return (
            f"{self.embed_dim}, num_heads={self.num_heads}, source_dims=[{dims}], "
            f"normalization={self.normalization!r}, gate={self.gate!r}, head_merge={self.head_merge!r}"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _widths(name: str, dims: object) -> tuple[int, int]:
    """Of key and value tokens."""
    if not isinstance(dims, tuple | list):
        check_size(name, dims)
        return (cast(int, dims),) * 2
    if len(dims) != 2:
        raise ValueError(f"{name}: expected a width, or a pair of key width and value width, got {dims!r}")
    for dim in dims:
        check_size(name, dim)
    return dims[0], dims[1]


def _tokens(name: str, source: object) -> tuple[Tensor, Tensor]:
    """Of keys and values."""
    if isinstance(source, tuple | list) and len(source) == 2:
        for tokens in source:
            check_floating(name, tokens)
        return source[0], source[1]
    check_floating(name, source)
    return cast(Tensor, source), cast(Tensor, source)


def _average(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Average of `(B, L, d)` tokens over L, those that the bool `(B, L)` mask hides left out; 0 over none."""
    if mask is None:
        return tokens.sum(1) / max(tokens.shape[1], 1)
    check_mask("query_mask", mask, tuple(tokens.shape[:2]), tokens.device, "a real token")
    total = tokens.masked_fill(~mask[..., None], 0.0).sum(1)
    return total / mask.sum(1, keepdim=True).clamp(min=1)
