"""Adaptive fusion as a layer."""

import torch
from torch import Tensor, nn

from amuse_kernels.api import adaptive_fusion
from amuse_kernels.fusion.inputs import MAX_MODALITIES
from amuse_kernels.nn.checks import check_floating, check_size


class AdaptiveFusion(nn.Module):
    """Adaptive fusion of M descriptors (AMuSE, Eq. 2) with the amortised gate, see `amuse_kernels.adaptive_fusion`.

    Args:
        embed_dim: width d of a descriptor.
        num_modalities: M, from 1 to 8.
        backend: see `adaptive_fusion`.

    Raises:
        ValueError: naming the argument, what it was and what was expected.
    """

    def __init__(
        self,
        embed_dim: int,
        num_modalities: int,
        backend: str | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("embed_dim", embed_dim)
        check_size("num_modalities", num_modalities)
        if not 1 <= num_modalities <= MAX_MODALITIES:
            raise ValueError(f"num_modalities: expected 1 to {MAX_MODALITIES}, got {num_modalities}")
        self.embed_dim = embed_dim
        self.num_modalities = num_modalities
        self.backend = backend
        pairs = num_modalities * (num_modalities - 1)
        self.pair_weight = nn.Parameter(torch.empty(pairs, 2, embed_dim, device=device, dtype=dtype))
        self.pair_bias = nn.Parameter(torch.empty(pairs, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small weights and zero biases: alpha starts near the equal mix 1/2 and differs between instances."""
        if self.pair_weight.numel():
            nn.init.normal_(self.pair_weight, std=self.embed_dim**-0.5)
        nn.init.zeros_(self.pair_bias)

    def forward(
        self, descriptors: Tensor, *, present: Tensor | None = None, alpha: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Fuse `(..., M, d)` descriptors.

        Args:
            descriptors: `(..., M, d)`.
            present: bool `(..., M)`, True = this sample has the modality.
            alpha: `(..., M, M)` or `(..., M, M, d)` in the place of the gate.

        Returns:
            fused `(..., M, d)` and the alpha used.

        Raises:
            TypeError, ValueError: naming the argument, what it was and what was expected.
        """
        check_floating("descriptors", descriptors)
        if descriptors.shape[-2:] != (self.num_modalities, self.embed_dim):
            raise ValueError(
                f"descriptors: expected (..., {self.num_modalities}, {self.embed_dim}), got {tuple(descriptors.shape)}"
            )
        if alpha is not None:
            return adaptive_fusion(descriptors, alpha, present=present, backend=self.backend)
        return adaptive_fusion(
            descriptors,
            pair_weight=self.pair_weight,
            pair_bias=self.pair_bias,
            present=present,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, num_modalities={self.num_modalities}"
