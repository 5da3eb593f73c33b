"""The linear map that Eq. 1 prints around its scores: softmax(linear(g K_n^T / sqrt(d))).

The text does not say over what the map runs. It cannot run over keys, since streams differ in length from utterance to
utterance, and a factor per head would be absorbed by W^K. What is left is a map across heads, one per source and
layer, as in talking-heads attention (Shazeer et al. 2020). Its bias would cancel in the softmax, so it has none.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amuse_kernels import p2c_attention_varlen
from amuse_kernels.nn import Packed, ProjectedSource


class MappedScoresAttention(nn.Module):
    """Peripheral-to-Central attention whose scores are mapped across heads before the softmax.

    With S_(n,h) = q_h k_(n,h)^T / sqrt(D), head h attends to source n by softmax(sum_i A_n[h, i] S_(n,i)). The sum is
    one inner product of width H * D, of all heads' queries with their keys weighted by A_n[h], so the fused op computes
    it, at H times the work of plain attention.

    Args:
        embed_dim: Width d = H * D of the query, a multiple of 8 * `num_heads` up to 256.
        num_heads: H.
        source_dims: Widths of the P sources.
        gate: Weight of every source.
        head_merge: Heads' results as "mean" (the paper) or "concat".
        backend: Of the kernels; None = best available.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        source_dims: Sequence[int],
        *,
        gate: float,
        head_merge: str = "mean",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.gate, self.head_merge, self.backend = gate, head_merge, backend
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.ModuleList(nn.Linear(width, embed_dim) for width in source_dims)
        self.v_proj = nn.ModuleList(nn.Linear(width, embed_dim) for width in source_dims)
        self.out_proj = nn.Linear(self.head_dim if head_merge == "mean" else embed_dim, embed_dim)
        # at the identity this is plain attention
        self.score_map = nn.Parameter(torch.eye(num_heads).repeat(len(source_dims), 1, 1))
        for linear in (self.q_proj, *self.k_proj, *self.v_proj):
            nn.init.xavier_uniform_(linear.weight)
        for linear in (self.q_proj, *self.k_proj, *self.v_proj, self.out_proj):
            nn.init.zeros_(linear.bias)

    def forward(
        self, query: Packed, sources: Sequence[ProjectedSource], *, gates: Tensor | None = None
    ) -> tuple[Packed, None]:
        """Attend to all sources, called as `PeripheralCentralAttention` is.

        Args:
            query: Packed `(Tq, d)`.
            sources: P packed keys and values `(Tp, H, D)`, made by `k_proj` and `v_proj`.
            gates: For this call, in place of the constant ones.

        Returns:
            Packed `(Tq, d)`.
        """
        queries = self.project_query(query.values)
        layouts: list[Any] = [(source.cu_seq, source.max_len) for source in sources]
        wide: Any = p2c_attention_varlen(
            queries,
            self.mapped_keys(sources),
            [F.pad(source.value, (0, queries.shape[-1] - self.head_dim)) for source in sources],
            query.cu_seq,
            [cu_seq for cu_seq, _ in layouts],
            query.max_len,
            [max_len for _, max_len in layouts],
            gates=self.gates(query) if gates is None else gates,
            softmax_scale=self.softmax_scale,
            backend=self.backend,
        )  # (Tq, H, H * D)
        heads = wide[..., : self.head_dim]
        output = self.out_proj(heads.mean(1) if self.head_merge == "mean" else heads.flatten(1))
        return query._replace(values=output), None

    def project_query(self, query: Tensor) -> Tensor:
        """`(T, H * D)` to `(T, H, H * D)`: every head sees all heads' queries; what differs are its keys."""
        return self.q_proj(query)[:, None].expand(-1, self.num_heads, -1)

    def mapped_keys(self, sources: Sequence[ProjectedSource]) -> list[Tensor]:
        """Per source its keys `(T, H, D)` as `(T, H, H * D)`: head i's part times A[h, i] for head h."""
        maps = zip(self.score_map, sources, strict=True)
        return [torch.einsum("hi,tid->thid", score_map, source.key).flatten(-2) for score_map, source in maps]

    def gates(self, query: Packed) -> Tensor:
        """The constant gates `(P,)`."""
        return torch.full((len(self.k_proj),), self.gate, device=query.values.device)

    @property
    def softmax_scale(self) -> float:
        return self.head_dim**-0.5
