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

from amuse_kernels import p2c_attention, p2c_attention_weights


class MappedScoresAttention(nn.Module):
    """Peripheral-to-Central attention whose scores are mapped across heads before the softmax.

    With S_(n,h) = q_h k_(n,h)^T / sqrt(D), head h attends to source n by softmax(sum_i A_n[h, i] S_(n,i)). The sum is
    one inner product of width H * D, of all heads' queries with their keys weighted by A_n[h], so the fused op computes
    it, at H times the work of plain attention.

    Args:
        embed_dim: width d = H * D of the query, a multiple of 8 * `num_heads` up to 256.
        num_heads: H.
        source_dims: widths of the P sources.
        gate: weight of every source.
        head_merge: heads' results as "mean" (the paper) or "concat".
        backend: of the kernels; None = best available.
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
        self,
        query: Tensor,
        sources: Sequence[Tensor],
        *,
        query_mask: Tensor | None = None,
        key_masks: Sequence[Tensor] | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """As `PeripheralCentralAttention`: `(B, Lq, d)` and, with `need_weights`, per source `(B, Lq, Lp)`.

        Args:
            query: `(B, Lq, d)`.
            sources: P tensors `(B, Lp, width)`.
            query_mask: not read; no gate here depends on the query.
            key_masks: per source bool `(B, Lp)`, True = attend.
            need_weights: also return the weights, averaged over heads.
        """
        batch, length, width = query.shape
        # every head sees all heads' queries; what differs are the weights on the keys
        queries = self.q_proj(query)[:, None].expand(batch, self.num_heads, length, width)
        pairs = list(zip(self.k_proj, self.score_map, sources, strict=True))
        keys = [self._mapped(project(source), score_map) for project, score_map, source in pairs]
        options: dict[str, Any] = {
            "gates": torch.full((len(sources),), self.gate, device=query.device),
            "key_masks": key_masks,
            "softmax_scale": self.head_dim**-0.5,
            "backend": self.backend,
        }
        values = [
            F.pad(project(source).unflatten(-1, (self.num_heads, -1)).transpose(1, 2), (0, width - self.head_dim))
            for project, source in zip(self.v_proj, sources, strict=True)
        ]
        wide: Any = p2c_attention(queries, keys, values, **options)  # (B, H, Lq, H * D)
        heads = wide[..., : self.head_dim]
        merged = heads.mean(1) if self.head_merge == "mean" else heads.transpose(1, 2).flatten(2)
        if not need_weights:
            return self.out_proj(merged), None
        weights: Any = p2c_attention_weights(queries, keys, **options)
        return self.out_proj(merged), tuple(weight.mean(1) for weight in weights)

    def _mapped(self, key: Tensor, score_map: Tensor) -> Tensor:
        """`(B, Lp, H * D)` keys to `(B, H, Lp, H * D)`: head i's part times A[h, i] for head h."""
        parts = key.unflatten(-1, (self.num_heads, self.head_dim))
        return torch.einsum("hi,blid->bhlid", score_map, parts).flatten(-2)
