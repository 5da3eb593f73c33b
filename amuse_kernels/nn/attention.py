"""Attention of a Central network to Peripheral sources as a layer."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from amuse_kernels.api import p2c_attention, p2c_attention_varlen, p2c_attention_weights
from amuse_kernels.attention.inputs import MAX_HEAD_DIM, MAX_SOURCES, NORMALIZATIONS
from amuse_kernels.buffers import accumulation_dtype
from amuse_kernels.checks import check_flag, check_mask, choice
from amuse_kernels.nn.checks import check_floating, check_size
from amuse_kernels.nn.packed import Packed, as_packed, average, like, values_of
from amuse_kernels.nn.sources import ProjectedSource, Source, SourceTokens, split_heads

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
            number: that constant | a list of P numbers: a constant per source. Trainable gates start at 1 / (P + 1).
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
        gate: str | float | Sequence[float] = "mean",
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
        choice("normalization", normalization, NORMALIZATIONS)
        if isinstance(gate, list | tuple):
            if len(gate) != len(source_dims) or not all(_is_number(g) for g in gate):
                raise ValueError(f"gate: expected {len(source_dims)} finite numbers, one per source, got {gate!r}")
            gate = tuple(gate)
        elif not _is_number(gate) and gate not in GATES:
            expected = f"one of {', '.join(GATES)}, a finite number or one per source"
            raise ValueError(f"gate: expected {expected}, got {gate!r}")
        choice("head_merge", head_merge, HEAD_MERGES)
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
        query: Tensor | Packed,
        sources: Sequence[Source | ProjectedSource],
        *,
        query_mask: Tensor | None = None,
        key_masks: Sequence[Tensor | None] | None = None,
        query_groups: Tensor | None = None,
        key_groups: Sequence[Tensor | None] | None = None,
        relations: Sequence[str] | None = None,
        causal: bool | Sequence[bool] = False,
        gates: Tensor | None = None,
        need_weights: bool = False,
        average_attn_weights: bool = True,
    ) -> tuple[Any, tuple[Tensor, ...] | None]:
        """Attend to all sources.

        Query and sources are padded tensors, or packed: `Packed` or jagged nested tensors (`torch.nested`,
        `layout=torch.jagged`), between which no padding is computed. Packed tokens have no masks; their groups are
        `(T,)` or packed as they are, and `batch_first` does not concern them.

        Args:
            query: `(B, Lq, embed_dim)`, or packed.
            sources: per source its tokens `(B, Lp, dim)`, or packed as the query is; or a pair of key tokens and value
                tokens; or what `project_sources` made of it for this layer.
            query_mask: bool `(B, Lq)`, True = a real token; only read by gate="input", for its average.
            key_masks, query_groups, key_groups, relations, causal: see `p2c_attention` and `p2c_attention_varlen`. They
                are batch first always, and a mask is True where a key may be attended (`nn.MultiheadAttention` has it
                the other way round).
            gates: for this call, broadcastable to `(B, H, P)`, in place of the layer's own.
            need_weights: also return the attention weights; not of packed tokens.
            average_attn_weights: weights averaged over heads.

        Returns:
            Output `(B, Lq, embed_dim)`, or of the packed query's kind, and None; with `need_weights` also per source
            its weights `(B, Lq, Lp)` or `(B, H, Lq, Lp)`, gates applied and without dropout: they add up to the gates,
            not to 1.

        Raises:
            TypeError, ValueError: naming the argument, what it was and what was expected.
        """
        if not isinstance(sources, list | tuple | Sequence):  # the common ones first: an abstract class takes longer
            raise TypeError(f"sources: expected a list or tuple with one entry per source, got {type(sources)}")
        if len(sources) != len(self.source_dims):
            raise ValueError(f"sources: expected {len(self.source_dims)} entries, got {len(sources)}")
        check_flag("need_weights", need_weights)
        check_flag("average_attn_weights", average_attn_weights)
        options: dict[str, Any] = {"relations": relations, "causal": causal}
        packed = as_packed("query", query)
        if packed is not None:
            for name, given in (("query_mask", query_mask), ("key_masks", key_masks), ("need_weights", need_weights)):
                if given is not None and given is not False:
                    raise ValueError(f"{name}: not available with packed tokens")
            groups = None if key_groups is None else [values_of(group) for group in key_groups]
            options |= {"query_groups": values_of(query_groups), "key_groups": groups}
            tokens, batch = packed.values, None
        else:
            check_floating("query", query)
            assert isinstance(query, Tensor)
            options |= {"key_masks": key_masks, "query_groups": query_groups, "key_groups": key_groups}
            tokens = query if self.batch_first else query.transpose(0, 1)
            batch = tokens.shape[0]
        self._check_query(tokens, packed)
        read = [self._read(p, source, batch, packed) for p, source in enumerate(sources)]

        heads_query = self.project_query(tokens)
        projected = [self._project(p, source) for p, source in enumerate(read)]
        options["gates"] = self.gates(tokens if packed is None else packed, query_mask) if gates is None else gates
        output = self.finish(self.attend(heads_query, projected, packing=packed, **options))
        if packed is not None:
            return like(query, output), None
        if not self.batch_first:
            output = output.transpose(0, 1)
        if not need_weights:
            return output, None
        keys = [source.key for source in projected]
        weights: Any = p2c_attention_weights(heads_query, keys, normalization=self.normalization, **options)
        return output, tuple(w.mean(1) for w in weights) if average_attn_weights else weights

    def project_query(self, query: Tensor) -> Tensor:
        """The heads `(B, H, Lq, D)` of `(B, Lq, embed_dim)` tokens; packed `(Tq, H, D)` of `(Tq, embed_dim)`."""
        return split_heads(self.q_proj(query), self.num_heads)

    def project_source(self, p: int, source: Source) -> ProjectedSource:
        """Keys and values of source p, in one of the forms that `forward` takes."""
        return self._project(
            p, SourceTokens.read(f"sources[{p}]", source, self.source_dims[p], batch_first=self.batch_first)
        )

    def gates(self, query: Tensor | Packed, query_mask: Tensor | None = None) -> Tensor | None:
        """The gates of a call, broadcastable to (B, H, P), or None where all are constantly 1.

        `query` and `query_mask` are as in `forward`, batch first.
        """
        sources = len(self.source_dims)
        if self.gate == "learned":
            return self.log_gate.exp()
        if self.gate == "input":
            token = average(query) if isinstance(query, Packed) else _average(query, query_mask)
            return self.gate_proj(token).exp().unflatten(-1, (self.num_heads, sources))
        if self.gate == "mean":
            constants = [1 / (sources + 1)] * sources
        else:
            given: Any = self.gate
            constants = [float(g) for g in given] if isinstance(given, tuple) else [float(given)] * sources
        if all(constant == 1 for constant in constants):
            return None
        # filled, so that nothing is copied from the host; torch's default dtype says nothing about this layer
        values = values_of(query)
        factory: Any = {"dtype": accumulation_dtype(values.dtype), "device": values.device}
        if len(set(constants)) == 1:
            return torch.full((sources,), constants[0], **factory)
        return torch.stack([torch.full((), constant, **factory) for constant in constants])

    def attend(
        self,
        query: Tensor,
        sources: Sequence[ProjectedSource],
        *,
        gates: Tensor | None,
        packing: Packed | None = None,
        **options: Any,
    ) -> Tensor:
        """`p2c_attention` with this layer's normalization, dropout and backend.

        Args:
            query: the result of `project_query`, `(B, H, Lq, D)` or packed `(Tq, H, D)`.
            sources: per source the result of `project_source`.
            gates: see `gates`.
            packing: of a packed query, whose offsets and maximum are read; the op is then `p2c_attention_varlen`.
            options: `key_masks`, `query_groups`, `key_groups`, `relations` and `causal` of the op.

        Returns:
            The shape of `query`, for `finish`.
        """
        attention: Any = p2c_attention
        keys, values = [source.key for source in sources], [source.value for source in sources]
        arguments: tuple[Any, ...] = (query, keys, values)
        if packing is not None:
            attention = p2c_attention_varlen
            arguments += (packing.cu_seq, [source.cu_seq for source in sources])
            arguments += (packing.max_len, [source.max_len for source in sources])
        return attention(
            *arguments,
            gates=gates,
            normalization=self.normalization,
            dropout_p=self.dropout if self.training else 0.0,
            backend=self.backend,
            **options,
        )

    def finish(self, heads: Tensor) -> Tensor:
        """Merge the heads of `attend` and project them to the output `(B, Lq, embed_dim)`, packed `(Tq, embed_dim)`."""
        if heads.dim() == 4:
            heads = heads.transpose(1, 2)
        return self.out_proj(heads.flatten(-2) if self.head_merge == "concat" else heads.mean(-2))

    def _check_query(self, query: Tensor, packed: Packed | None) -> None:
        if query.dim() != (3 if packed is None else 2) or query.shape[-1] != self.embed_dim:
            expected = f"(B, Lq, {self.embed_dim})" if packed is None else f"packed (T, {self.embed_dim})"
            raise ValueError(f"query: expected {expected}, got {tuple(query.shape)}")

    def _read(self, p: int, source: Any, batch: int | None, packed: Packed | None) -> SourceTokens | ProjectedSource:
        """Source p in any form, packed if the query is."""
        if not isinstance(source, ProjectedSource):
            widths, first = self.source_dims[p], self.batch_first
            source = SourceTokens.read(f"sources[{p}]", source, widths, batch_first=first, batch=batch)
        if (source.cu_seq is None) != (packed is None):
            raise TypeError(f"sources[{p}]: expected {'padded' if packed is None else 'packed'} tokens, as the query's")
        return source

    def _project(self, p: int, tokens: SourceTokens | ProjectedSource) -> ProjectedSource:
        if isinstance(tokens, ProjectedSource):
            return tokens
        key, value = self.k_proj[p](tokens.key), self.v_proj[p](tokens.value)
        heads = split_heads(key, self.num_heads), split_heads(value, self.num_heads)
        return ProjectedSource(*heads, tokens.cu_seq, tokens.max_len)

    def extra_repr(self) -> str:
        dims = ", ".join(str(k) if k == v else f"({k}, {v})" for k, v in self.source_dims)
        return (
            f"{self.embed_dim}, num_heads={self.num_heads}, source_dims=[{dims}], "
            f"normalization={self.normalization!r}, gate={self.gate!r}, head_merge={self.head_merge!r}"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _widths(name: str, dims: object) -> tuple[int, int]:
    """The widths of key and value tokens."""
    if not isinstance(dims, tuple | list):
        check_size(name, dims)
        return (cast(int, dims),) * 2
    if len(dims) != 2:
        raise ValueError(f"{name}: expected a width, or a pair of key width and value width, got {dims!r}")
    for dim in dims:
        check_size(name, dim)
    return dims[0], dims[1]


def _average(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Average of `(B, L, d)` tokens over L, those that the bool `(B, L)` mask hides left out; 0 over none."""
    if mask is None:
        return tokens.sum(1) / max(tokens.shape[1], 1)
    check_mask("query_mask", mask, tuple(tokens.shape[:2]), tokens.device, "a real token")
    total = tokens.masked_fill(~mask[..., None], 0.0).sum(1)
    return total / mask.sum(1, keepdim=True).clamp(min=1)
