"""The contrastive loss between modalities (Eq. 3-4)."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from amuse.config import LossConfig


def nce_loss(anchors: Tensor, candidates: Tensor, temperature: float = 0.1, partners: Tensor | None = None) -> Tensor:
    """-log h(pos) - sum_k log(1 - h(neg_k)), averaged over anchors (Eq. 4, corrected as docs/paper.md says).

    h = P / (P + |N_j| / |N|), P the softmax over the |N| candidates of their similarity to the anchor, the positive
    being the same utterance in the other modality and the negatives all others of the batch.

    Args:
        anchors: `(A, d)`. candidates: `(N, d)`, one for each anchor of the batch.
        temperature: Divides the cosine similarity.
        partners: int64 `(A,)`, the candidate of each anchor; default: A = N in the same order. The sum over these
            anchors is divided by N, so that the losses of several parts of a batch add up to the batch's.

    Returns:
        A scalar; 0 for fewer than two candidates, where there is no negative.
    """
    count = len(candidates)
    if count < 2:
        return anchors.sum() * 0.0 + candidates.sum() * 0.0
    log_p = _similarity(anchors, candidates, temperature).log_softmax(-1)  # (A, N)
    log_noise = math.log((count - 1) / count)
    log_total = torch.logaddexp(log_p, log_p.new_tensor(log_noise))
    positive = _one_hot(partners, log_p)
    log_h, log_not_h = log_p - log_total, log_noise - log_total
    return -torch.where(positive, log_h, log_not_h).sum(-1).sum() / count


def infonce_loss(
    anchors: Tensor, candidates: Tensor, temperature: float = 0.1, partners: Tensor | None = None
) -> Tensor:
    """InfoNCE (ours, an option): cross-entropy of finding the partner; arguments as for `nce_loss`.

    The sum over ordered pairs of modalities makes it symmetric.
    """
    if len(candidates) < 2:
        return anchors.sum() * 0.0 + candidates.sum() * 0.0
    log_p = _similarity(anchors, candidates, temperature).log_softmax(-1)
    return -log_p[_one_hot(partners, log_p)].sum() / len(candidates)


def _one_hot(partners: Tensor | None, similarity: Tensor) -> Tensor:
    columns = torch.arange(similarity.shape[1], device=similarity.device)
    return columns == (columns if partners is None else partners)[:, None]


def _similarity(anchors: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    return F.normalize(anchors.float(), dim=-1) @ F.normalize(candidates.float(), dim=-1).T / temperature


GatherRows = Callable[[Tensor], tuple[Tensor, int]]


def contrastive_loss(
    descriptors: Tensor, present: Tensor, config: LossConfig, gather: GatherRows | None = None
) -> Tensor:
    """Eq. 3: 1/|M| times the sum over ordered pairs of modalities, absent modalities left out.

    Args:
        descriptors: `(U, M, d)`. present: bool `(U, M)`.
        config: "nce" or "infonce" and the temperature.
        gather: From this process's rows to those of all processes, which are the candidates, and the index at which its
            own begin. The losses of all processes then add up to that of the whole batch.
    """
    loss = {"nce": nce_loss, "infonce": infonce_loss}[config.contrastive_kind]
    count = descriptors.shape[1]
    everywhere, everyone, start = descriptors, present, 0
    if gather is not None:
        rows, start = gather(torch.cat([descriptors, present[..., None].to(descriptors.dtype)], dim=-1))
        everywhere, everyone = rows[..., :-1], rows[..., -1] > 0
    total = descriptors.new_zeros(())
    for m in range(count):
        for n in range(count):
            if n != m:
                both, all_both = present[:, m] & present[:, n], everyone[:, m] & everyone[:, n]
                partners = (all_both.cumsum(0) - 1)[start : start + len(both)][both]
                anchors, candidates = descriptors[both, m], everywhere[all_both, n]
                total = total + loss(anchors, candidates, config.temperature, partners)
    return total / count


def contrasts(config: LossConfig) -> bool:
    """Whether the loss between modalities is on."""
    return config.contrastive_kind != "none" and config.contrastive > 0
