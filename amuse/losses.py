"""The losses of III-E: noise contrastive estimation between modalities (Eq. 3-4) and focal loss (Eq. 5)."""

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from amuse.config import LossConfig
from amuse.data.batch import UNLABELLED

if TYPE_CHECKING:
    from amuse.model import Output


def focal_loss(
    logits: Tensor,
    labels: Tensor,
    gamma: float = 1.0,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-(1 - p_c)^gamma log p_c (Eq. 5, whose print lost the -log), averaged over labelled rows.

    Args:
        logits: `(N, C)`. labels: int64 `(N,)`, -100 = unlabelled.
        gamma: 0 is the cross-entropy.
        class_weights: `(C,)`; the average is weighted by them.
        label_smoothing: share of the target spread over all classes.

    Returns:
        A scalar; 0 when nothing is labelled.
    """
    labelled = labels != UNLABELLED
    logits, labels = logits[labelled].float(), labels[labelled]
    log_p = logits.log_softmax(-1)
    # the bound keeps the slope of q^gamma finite at p = 1 for gamma < 1
    q = (1 - log_p.exp()).clamp(min=torch.finfo(log_p.dtype).eps)
    focal = -(q**gamma) * log_p  # (N, C)
    loss = focal.gather(1, labels[:, None]).squeeze(1)
    if label_smoothing > 0:
        loss = (1 - label_smoothing) * loss + label_smoothing * focal.mean(-1)
    if class_weights is None:
        return loss.sum() / max(len(loss), 1)
    weight = class_weights.to(loss)[labels]
    return (weight * loss).sum() / weight.sum().clamp(min=1e-12)


def focal_logit_gradient(logits: Tensor, labels: Tensor, gamma: float = 1.0) -> Tensor:
    """Gradient of each row's focal loss with respect to its logits, in closed form, `(N, C)`.

    With q = 1 - p_c: dL/dp_c = gamma q^(gamma - 1) log p_c - q^gamma / p_c and dp_c/dz = p_c (onehot - p).
    """
    log_p = logits.log_softmax(-1)
    log_c = log_p.gather(1, labels[:, None])
    p_c = log_c.exp()
    q = (1 - p_c).clamp(min=torch.finfo(p_c.dtype).eps)
    slope = gamma * q ** (gamma - 1) * p_c * log_c - q**gamma  # dL/dp_c times p_c
    return slope * (F.one_hot(labels, logits.shape[-1]) - log_p.exp())


def nce_loss(anchors: Tensor, candidates: Tensor, temperature: float = 0.1) -> Tensor:
    """-log h(pos) - sum_k log(1 - h(neg_k)), averaged over anchors (Eq. 4, mended).

    h = P / (P + |N_j| / |N|), P the softmax over the |N| candidates of their similarity to the anchor, the positive
    being the same utterance in the other modality and the negatives all others of the batch.

    Args:
        anchors, candidates: `(N, d)`, row j of both from utterance j.
        temperature: of the cosine similarity.

    Returns:
        A scalar; 0 for fewer than two rows, which have no negative.
    """
    count = len(anchors)
    if count < 2:
        return anchors.sum() * 0.0
    log_p = _similarity(anchors, candidates, temperature).log_softmax(-1)  # (N, N)
    log_noise = math.log((count - 1) / count)
    log_total = torch.logaddexp(log_p, log_p.new_tensor(log_noise))
    positive = torch.eye(count, dtype=torch.bool, device=log_p.device)
    log_h, log_not_h = log_p - log_total, log_noise - log_total
    return -torch.where(positive, log_h, log_not_h).sum(-1).mean()


def infonce_loss(anchors: Tensor, candidates: Tensor, temperature: float = 0.1) -> Tensor:
    """Symmetric InfoNCE (ours, an option): cross-entropy of finding the partner, in both directions."""
    if len(anchors) < 2:
        return anchors.sum() * 0.0
    similarity = _similarity(anchors, candidates, temperature)
    partner = torch.arange(len(anchors), device=anchors.device)
    return (F.cross_entropy(similarity, partner) + F.cross_entropy(similarity.T, partner)) / 2


def _similarity(anchors: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    return F.normalize(anchors.float(), dim=-1) @ F.normalize(candidates.float(), dim=-1).T / temperature


def contrastive_loss(descriptors: Tensor, present: Tensor, config: LossConfig) -> Tensor:
    """Eq. 3: 1/|M| times the sum over ordered pairs of modalities, absent modalities left out.

    Args:
        descriptors: `(U, M, d)`. present: bool `(U, M)`.
    """
    loss = {"nce": nce_loss, "infonce": infonce_loss}[config.contrastive_kind]
    count = descriptors.shape[1]
    total = descriptors.new_zeros(())
    for m in range(count):
        for n in range(count):
            if n != m:
                both = present[:, m] & present[:, n]
                total = total + loss(descriptors[both, m], descriptors[both, n], config.temperature)
    return total / count


def amuse_loss(
    output: "Output", labels: Tensor | None, config: LossConfig, class_weights: Tensor | None = None
) -> dict[str, Tensor]:
    """All terms of the loss and their weighted sum.

    Args:
        output: of the model.
        labels: int64 `(U,)` with -100 = unlabelled, float `(U,)` with NaN = unlabelled for regression, or None.
        config: weights and options.
        class_weights: `(C,)`, classes only.

    Returns:
        "loss" and its parts "final", "modality", "contrastive", unweighted scalars.
    """
    zero = output.logits.sum() * 0.0
    parts = {"final": zero, "modality": zero, "contrastive": zero}
    if labels is not None:
        count = output.present.shape[1]
        parts["final"] = _supervised(output.logits, labels, config, class_weights)
        heads = [
            _supervised(output.modality_logits[:, m], _only(labels, output.present[:, m]), config, class_weights)
            for m in range(count)
        ]
        parts["modality"] = torch.stack(heads).mean()
    if config.contrastive_kind != "none" and config.contrastive > 0 and output.present.shape[1] > 1:
        parts["contrastive"] = contrastive_loss(output.descriptors, output.present, config)
    loss = sum((getattr(config, name) * value for name, value in parts.items()), start=zero)
    return {"loss": loss, **parts}


def _supervised(logits: Tensor, labels: Tensor, config: LossConfig, class_weights: Tensor | None) -> Tensor:
    if labels.is_floating_point():
        labelled = ~labels.isnan()
        total = F.smooth_l1_loss(logits[labelled, 0].float(), labels[labelled], reduction="sum")
        return total / labelled.sum().clamp(min=1)
    return focal_loss(logits, labels, config.gamma, class_weights, config.label_smoothing)


def _only(labels: Tensor, present: Tensor) -> Tensor:
    """Labels of the utterances that have the modality; the others count as unlabelled."""
    return labels.masked_fill(~present, float("nan") if labels.is_floating_point() else UNLABELLED)
