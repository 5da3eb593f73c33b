"""The contrastive loss between modalities (Eq. 3-4)."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from amuse.config import LossConfig
from amuse.model.precision import at_least_fp32

GatherRows = Callable[[Tensor], tuple[Tensor, int]]


def contrastive_loss(
    descriptors: Tensor, present: Tensor, config: LossConfig, gather: GatherRows | None = None
) -> Tensor:
    """Eq. 3: 1/|M| times the sum over ordered pairs of modalities, absent modalities left out.

    The term of a pair is averaged over the anchors, the utterances that have both modalities. These are the candidates
    too: an anchor's own utterance is its positive, all others are its negatives. Without a negative the term is 0.
    "nce" is Eq. 4, corrected as docs/paper.md says: -log h(pos) - sum_k log(1 - h(neg_k)), h = P / (P + |N_j| / |N|),
    P the softmax over the |N| candidates of their cosine similarity to the anchor, divided by the temperature, and
    |N_j| the number of negatives. "infonce" (ours, an option) is the cross-entropy of finding the positive; summed
    over ordered pairs, it is symmetric.

    All pairs are one matrix product, and what is absent is masked: nothing is selected, since only the device knows
    how much is present.

    Args:
        descriptors: `(U, M, d)`. present: bool `(U, M)`.
        config: "nce" or "infonce" and the temperature.
        gather: From this process's rows to those of all processes, which are the candidates, and the index at which its
            own begin. The losses of all processes then add up to that of the whole batch.
    """
    terms = {"nce": _nce, "infonce": _infonce}[config.contrastive_kind]
    count = descriptors.shape[1]
    descriptors = descriptors.masked_fill(~present[..., None], 0.0)
    anchors = candidates = _directions(descriptors)
    everyone, start = present, 0
    if gather is not None:
        rows, start = gather(torch.cat([descriptors, present[..., None].to(descriptors.dtype)], dim=-1))
        candidates, everyone = _directions(rows[..., :-1]), rows[..., -1] > 0
    # ordered pairs (m, n) by anchors and candidates: (M, M, U, V)
    product = anchors.flatten(0, 1) @ candidates.flatten(0, 1).T  # (U * M, V * M)
    similarity = product.view(*anchors.shape[:2], *candidates.shape[:2]).permute(1, 3, 0, 2) / config.temperature
    both = present.T[:, None] & present.T  # (M, M, U)
    all_both = everyone.T[:, None] & everyone.T  # (M, M, V)
    pairs = ~torch.eye(count, dtype=torch.bool, device=present.device)
    return _masked_loss(terms, similarity, both & pairs[..., None], all_both, start) / count


def _masked_loss(terms: "Terms", similarity: Tensor, anchors: Tensor, candidates: Tensor, start: int = 0) -> Tensor:
    """Sum over pairs of modalities of the average over anchors.

    Args:
        terms: `_nce` or `_infonce`.
        similarity: `(..., U, V)`.
        anchors: bool `(..., U)`, which ones count. candidates: bool `(..., V)`, which ones there are.
        start: The candidate that is the first anchor's partner.
    """
    count = candidates.sum(-1)[..., None, None]
    # without a negative there is nothing to tell apart: all candidates are shown, so that the softmax exists
    shown = candidates[..., None, :] | (count < 2)
    log_p = similarity.masked_fill(~shown, -math.inf).log_softmax(-1)
    rows, columns = (torch.arange(size, device=similarity.device) for size in similarity.shape[-2:])
    counted = (anchors[..., None] & candidates[..., None, :]) & (count >= 2)
    losses = terms(log_p, columns == rows[:, None] + start, count.clamp(min=2).to(log_p.dtype))
    return (losses.masked_fill(~counted, 0.0).sum((-2, -1), keepdim=True) / count.clamp(min=1)).sum()


Terms = Callable[[Tensor, Tensor, Tensor], Tensor]


def _nce(log_p: Tensor, positive: Tensor, count: Tensor) -> Tensor:
    """Each term of Eq. 4 of log-probabilities over `count` candidates; `positive` says which is the partner."""
    # with z = log(P / noise): -log h = log(1 + exp(-z)) and -log(1 - h) = log(1 + exp(z))
    z = log_p - ((count - 1) / count).log()
    return F.softplus(z * (1 - 2 * positive))


def _infonce(log_p: Tensor, positive: Tensor, count: Tensor) -> Tensor:
    return torch.where(positive, -log_p, 0.0)


def _directions(rows: Tensor) -> Tensor:
    return F.normalize(at_least_fp32(rows), dim=-1)


def contrasts(config: LossConfig) -> bool:
    """Whether the loss between modalities is on."""
    return config.contrastive_kind != "none" and config.contrastive > 0
