"""The specification of adaptive_fusion (paper Eq. 2) in plain PyTorch, on any device, twice differentiable."""

import torch
from torch import Tensor

from amuse_kernels.buffers import accumulation_dtype


def adaptive_fusion(
    descriptors: Tensor,
    alpha: Tensor | None,
    pair_weight: Tensor | None,
    pair_bias: Tensor | None,
    present: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """fused_m = 1/|S| sum_{n in S, n != m} (alpha[m, n] f_n + (1 - alpha[m, n]) f_m), S the present modalities.

    Args:
        descriptors: `(..., M, d)`.
        alpha: `(..., M, M)` or `(..., M, M, d)`, or None for the gate.
        pair_weight: `(M (M - 1), 2, d)`. pair_bias: `(M (M - 1),)`.
        present: bool `(..., M)` or None.

    Returns:
        fused `(..., M, d)`, and alpha with 0 on the diagonal and on pairs with an absent member.
    """
    *batch, modalities, _width = descriptors.shape
    dtype = accumulation_dtype(descriptors.dtype)
    if present is None:
        present = descriptors.new_ones((*batch, modalities), dtype=torch.bool)
    f = descriptors.masked_fill(~present[..., None], 0.0).to(dtype)
    pair_present = present[..., :, None] & present[..., None, :]
    pair_present = pair_present & ~torch.eye(modalities, dtype=torch.bool, device=f.device)  # (..., M, M)

    if alpha is None:
        assert pair_weight is not None
        assert pair_bias is not None
        coefficient = _gate(f, pair_weight.to(dtype), pair_bias.to(dtype))
    else:
        coefficient = alpha.to(dtype)
    elementwise = coefficient.dim() == f.dim() + 1
    if not elementwise:  # one coefficient for all of d
        coefficient = coefficient[..., None]
    coefficient = torch.where(pair_present[..., None], coefficient, 0.0)  # (..., M, M, d or 1)

    f_m, f_n = f[..., :, None, :], f[..., None, :, :]
    mixed = torch.where(pair_present[..., None], coefficient * f_n + (1 - coefficient) * f_m, 0.0)
    count = present.sum(-1)[..., None, None]
    fused = torch.where(count == 1, f, mixed.sum(-2) / count.clamp(min=1))

    out_alpha = coefficient if elementwise else coefficient.squeeze(-1)
    return fused.to(descriptors.dtype), out_alpha.to(descriptors.dtype)


def _gate(f: Tensor, pair_weight: Tensor, pair_bias: Tensor) -> Tensor:
    """alpha[m, n] = sigmoid(<w_mn[0], f_m> + <w_mn[1], f_n> + b_mn), `(..., M, M)` with 0 on the diagonal."""
    modalities = f.shape[-2]
    pair = torch.arange(modalities * (modalities - 1), device=f.device)
    place = pair + pair // modalities + 1  # m * M + n: the diagonal is left out
    f_m, f_n = f.index_select(-2, place // modalities), f.index_select(-2, place % modalities)
    logits = (pair_weight[:, 0] * f_m + pair_weight[:, 1] * f_n).sum(-1) + pair_bias
    flat = f.new_zeros((*f.shape[:-2], modalities * modalities))
    return flat.index_copy(-1, place, torch.sigmoid(logits)).unflatten(-1, (modalities, modalities))
