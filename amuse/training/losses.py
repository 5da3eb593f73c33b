"""The losses of III-E: noise contrastive estimation between modalities (Eq. 3-4) and focal loss (Eq. 5)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from amuse.config import LossConfig
from amuse.data.batch import UNLABELLED, Batch
from amuse.training.augmentation import Mix

if TYPE_CHECKING:
    from amuse.model.amuse import Output


def focal_loss(
    logits: Tensor,
    labels: Tensor,
    gamma: float = 1.0,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    *,
    row_weights: Tensor | None = None,
    total: Tensor | None = None,
) -> Tensor:
    """-(1 - p_c)^gamma log p_c (Eq. 5, whose print lost the -log), averaged over labelled rows.

    Args:
        logits: `(N, C)`. labels: int64 `(N,)`, -100 = unlabelled.
        gamma: 0 is the cross-entropy.
        class_weights: `(C,)`; the average is weighted by them.
        label_smoothing: share of the target spread over all classes.
        row_weights: `(N,)`, further weights; the average is weighted by them too.
        total: what the weighted sum is divided by, where these are not all rows; default: the sum of the weights.

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
    weight = torch.ones_like(loss) if class_weights is None else class_weights.to(loss)[labels]
    if row_weights is not None:
        weight = weight * row_weights[labelled]
    return (weight * loss).sum() / (weight.sum() if total is None else total).clamp(min=1e-12)


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


def nce_loss(anchors: Tensor, candidates: Tensor, temperature: float = 0.1, partners: Tensor | None = None) -> Tensor:
    """-log h(pos) - sum_k log(1 - h(neg_k)), averaged over anchors (Eq. 4, mended).

    h = P / (P + |N_j| / |N|), P the softmax over the |N| candidates of their similarity to the anchor, the positive
    being the same utterance in the other modality and the negatives all others of the batch.

    Args:
        anchors: `(A, d)`. candidates: `(N, d)`, one for each anchor of the batch.
        temperature: of the cosine similarity.
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
    """InfoNCE (ours, an option): cross-entropy of finding the partner, arguments as of `nce_loss`.

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
        gather: turns rows into those of all processes, which are the candidates, and says where its own begin. The
            losses of all processes then add up to that of the whole batch.
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


def speaker_loss(voices: Tensor, batch: Batch, present: Tensor, temperature: float, total: Tensor) -> Tensor:
    """Every utterance finds the other utterances of its speaker among all others of its dialogue (ours).

    The mean of -log P over the speaker's other utterances, P the softmax over the dialogue's; the sum over utterances
    is divided by `total`.

    Args:
        voices: `(U, d)` of length 1, `Output.voices`.
        present: bool `(U, M)`; an utterance without any modality takes no part.
    """
    others, same = speaker_pairs(batch, present)
    rows = same.any(-1)
    others, same = others[rows], same[rows]
    log_p = (voices[rows] @ voices.T / temperature).masked_fill(~others, float("-inf")).log_softmax(-1)
    found = -log_p.masked_fill(~same, 0.0).sum(-1) / same.sum(-1)
    return found.sum() / total.clamp(min=1)


def speaker_pairs(batch: Batch, present: Tensor) -> tuple[Tensor, Tensor]:
    """bool `(U, U)`: another utterance of the same dialogue, both with some modality; one by the same speaker."""
    here = present.any(-1)
    others = (batch.dialogue[:, None] == batch.dialogue) & here[:, None] & here
    others = others & ~torch.eye(len(others), dtype=torch.bool, device=others.device)
    return others, others & (batch.speaker[:, None] == batch.speaker)


def gate_loss(alpha: Tensor, teacher: Tensor, present: Tensor, total: Tensor) -> Tensor:
    """Squared distance of the learned coefficients from Eq. 6, over ordered pairs of present modalities (ours).

    Args:
        alpha: `(U, M, M)`. teacher: `(U, M, M, d)`, of which a scalar coefficient can follow the average over d only.
    """
    error = (alpha - teacher.float().mean(-1)).square()
    return error[_present_pairs(present)].sum() / total.clamp(min=1)


def _present_pairs(present: Tensor) -> Tensor:
    different = ~torch.eye(present.shape[1], dtype=torch.bool, device=present.device)
    return present[:, :, None] & present[:, None] & different


@dataclass
class Totals:
    """What the sums over a batch are divided by: weights of labels, pairs of modalities, utterances with a fellow.

    Attributes:
        final: scalar. modality: `(M,)`. gate: scalar. speaker: scalar.
    """

    final: Tensor
    modality: Tensor
    gate: Tensor
    speaker: Tensor

    @classmethod
    def of(
        cls,
        labels: Tensor | None,
        present: Tensor,
        class_weights: Tensor | None = None,
        mix: Mix | None = None,
        batch: Batch | None = None,
    ) -> "Totals":
        """Of one batch, arguments as of `amuse_loss`; a batch in parts has the sum over the parts."""
        weight = _label_weights(labels, class_weights, present)
        mixed = weight if mix is None else mix.share * weight + (1 - mix.share) * weight[mix.partner]
        fellows = present.new_zeros((), dtype=torch.float)
        if batch is not None:
            fellows = speaker_pairs(batch, present)[1].any(-1).sum().float()
        return cls(mixed.sum(), (weight[:, None] * present).sum(0), _present_pairs(present).sum().float(), fellows)

    def to_vector(self) -> Tensor:
        return torch.cat([self.final[None], self.gate[None], self.speaker[None], self.modality])

    @classmethod
    def from_vector(cls, vector: Tensor) -> "Totals":
        return cls(vector[0], vector[3:], vector[1], vector[2])


def _label_weights(labels: Tensor | None, class_weights: Tensor | None, present: Tensor) -> Tensor:
    """float32 `(U,)`: the weight of each label, 0 where there is none."""
    if labels is None:
        return present.new_zeros(len(present), dtype=torch.float)
    if labels.is_floating_point():
        return (~labels.isnan()).float()
    labelled = labels != UNLABELLED
    return labelled.float() if class_weights is None else class_weights[labels.clamp(min=0)] * labelled


def amuse_loss(
    output: "Output",
    labels: Tensor | None,
    config: LossConfig,
    class_weights: Tensor | None = None,
    *,
    batch: Batch | None = None,
    mix: Mix | None = None,
    totals: Totals | None = None,
    gather: GatherRows | None = None,
) -> dict[str, Tensor]:
    """All terms of the loss and their weighted sum.

    Args:
        output: of the model.
        labels: int64 `(U,)` with -100 = unlabelled, float `(U,)` with NaN = unlabelled for regression, or None.
        config: weights and options.
        class_weights: `(C,)`, classes only.
        batch: that the model was given; for models with `speaker_head` only.
        mix: the mixup that the model was given.
        totals: of the whole batch, where this is a part of it; the losses of all parts then add up.
        gather: see `contrastive_loss`.

    Returns:
        "loss" and its parts "final", "modality", "contrastive", "gate", "speaker", unweighted scalars; the last two
        only where the model supplies what they need.
    """
    present = output.present
    totals = Totals.of(labels, present, class_weights, mix, batch) if totals is None else totals
    # every output takes part, or DistributedDataParallel waits for gradients that never come
    zero = output.logits.sum() * 0.0 + output.modality_logits.sum() * 0.0
    parts = {"final": zero, "modality": zero, "contrastive": zero}
    if labels is not None:
        parts["final"] = _final_loss(output.logits, labels, config, class_weights, mix, totals.final)
        heads = [
            _supervised(output.modality_logits[:, m], _only(labels, present[:, m]), config, class_weights, None, total)
            for m, total in enumerate(totals.modality)
        ]
        parts["modality"] = torch.stack(heads).mean()
    if contrasts(config) and present.shape[1] > 1:
        parts["contrastive"] = contrastive_loss(output.descriptors, present, config, gather)
    if output.teacher is not None and output.alpha is not None:
        parts["gate"] = gate_loss(output.alpha, output.teacher, present, totals.gate)
    if output.voices is not None and batch is not None:
        parts["speaker"] = speaker_loss(output.voices, batch, present, config.temperature, totals.speaker)
    loss = sum((getattr(config, name) * value for name, value in parts.items()), start=zero)
    return {"loss": loss, **parts}


def contrasts(config: LossConfig) -> bool:
    """Whether the loss between modalities is on."""
    return config.contrastive_kind != "none" and config.contrastive > 0


def _final_loss(
    logits: Tensor,
    labels: Tensor,
    config: LossConfig,
    class_weights: Tensor | None,
    mix: Mix | None,
    total: Tensor,
) -> Tensor:
    if mix is None:
        return _supervised(logits, labels, config, class_weights, None, total)
    own = _supervised(logits, labels, config, class_weights, mix.share, total)
    return own + _supervised(logits, labels[mix.partner], config, class_weights, 1 - mix.share, total)


def _supervised(
    logits: Tensor,
    labels: Tensor,
    config: LossConfig,
    class_weights: Tensor | None,
    row_weights: Tensor | None,
    total: Tensor,
) -> Tensor:
    if labels.is_floating_point():
        labelled = ~labels.isnan()
        loss = F.smooth_l1_loss(logits[labelled, 0].float(), labels[labelled], reduction="none")
        return (loss if row_weights is None else loss * row_weights[labelled]).sum() / total.clamp(min=1e-12)
    return focal_loss(
        logits,
        labels,
        config.gamma,
        class_weights,
        config.label_smoothing,
        row_weights=row_weights,
        total=total,
    )


def _only(labels: Tensor, present: Tensor) -> Tensor:
    """Labels of the utterances that have the modality; the others count as unlabelled."""
    return labels.masked_fill(~present, float("nan") if labels.is_floating_point() else UNLABELLED)
