"""The losses of III-E: noise contrastive estimation between modalities (Eq. 3-4) and focal loss (Eq. 5)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from amuse.config import LossConfig
from amuse.data.batch import UNLABELLED, Batch
from amuse.data.mix import Mix
from amuse.model.focal import focal_loss
from amuse.model.output import Output
from amuse.model.precision import at_least_fp32
from amuse.training.auxiliary import gate_loss, present_pairs, speaker_loss, speaker_pairs
from amuse.training.contrastive import GatherRows, contrastive_loss, contrasts


@dataclass
class LossDenominators:
    """Divisors of the sums over a batch, so that its parts can be summed.

    Attributes:
        final: Sum of label weights, a scalar.
        modality: The same over the utterances that have each modality, `(M,)`.
        gate: Number of ordered pairs of present modalities, a scalar.
        speaker: Number of utterances whose speaker has another one in the dialogue, a scalar.
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
        utterance_weights: Tensor | None = None,
    ) -> "LossDenominators":
        """The denominators of one batch, arguments as for `amuse_loss`; those of several parts are their sum."""
        weight = _label_weights(labels, class_weights, present)
        if utterance_weights is not None:
            weight = weight * utterance_weights
        mixed = weight if mix is None else mix.share * weight + (1 - mix.share) * weight[mix.partner]
        fellows = present.new_zeros((), dtype=torch.float)
        if batch is not None:
            fellows = speaker_pairs(batch, present)[1].any(-1).sum().float()
        return cls(mixed.sum(), (weight[:, None] * present).sum(0), present_pairs(present).sum().float(), fellows)

    def to_vector(self) -> Tensor:
        return torch.cat([self.final[None], self.gate[None], self.speaker[None], self.modality])

    @classmethod
    def from_vector(cls, vector: Tensor) -> "LossDenominators":
        return cls(vector[0], vector[3:], vector[1], vector[2])


def _label_weights(labels: Tensor | None, class_weights: Tensor | None, present: Tensor) -> Tensor:
    """float32 `(U,)`, the weight of each label; 0 for unlabelled utterances."""
    if labels is None:
        return present.new_zeros(len(present), dtype=torch.float)
    if labels.is_floating_point():
        return (~labels.isnan()).float()
    labelled = labels != UNLABELLED
    return labelled.float() if class_weights is None else class_weights[labels.clamp(min=0)] * labelled


def amuse_loss(
    output: Output,
    labels: Tensor | None,
    config: LossConfig,
    class_weights: Tensor | None = None,
    *,
    batch: Batch | None = None,
    mix: Mix | None = None,
    utterance_weights: Tensor | None = None,
    denominators: LossDenominators | None = None,
    gather: GatherRows | None = None,
) -> dict[str, Tensor]:
    """All terms of the loss and their weighted sum.

    Args:
        output: The model's.
        labels: int64 `(U,)` with -100 = unlabelled; for regression float `(U,)` with NaN = unlabelled; or None.
        config: Weights and options.
        class_weights: `(C,)`, for classes only.
        batch: The model's input; needed for models with `speaker_head` only.
        mix: The model's mixup.
        utterance_weights: `(U,)`, weight of each utterance in the losses of its label; None = all equal.
        denominators: Those of the whole batch, if this is a part of it; the losses of all parts then add up.
        gather: See `contrastive_loss`.

    Returns:
        "loss" and its parts "final", "modality", "contrastive", "gate", "speaker", unweighted scalars; the last two
        only if the model provides their inputs.
    """
    present = output.present
    if denominators is None:
        denominators = LossDenominators.of(labels, present, class_weights, mix, batch, utterance_weights)
    # every output takes part, since DistributedDataParallel expects a gradient for every parameter
    zero = output.logits.sum() * 0.0 + output.modality_logits.sum() * 0.0
    parts = {"final": zero, "modality": zero, "contrastive": zero}
    if labels is not None:
        weights = class_weights, utterance_weights
        parts["final"] = _final_loss(output.logits, labels, config, *weights, mix, denominators.final)
        parts["modality"] = _modality_loss(output, labels, config, *weights, denominators.modality)
    if contrasts(config) and present.shape[1] > 1:
        parts["contrastive"] = contrastive_loss(output.descriptors, present, config, gather)
    if output.teacher is not None and output.alpha is not None:
        parts["gate"] = gate_loss(output.alpha, output.teacher, present, denominators.gate)
    if output.voices is not None and batch is not None:
        parts["speaker"] = speaker_loss(output.voices, batch, present, config.temperature, denominators.speaker)
    loss = sum((getattr(config, name) * value for name, value in parts.items()), start=zero)
    return {"loss": loss, **parts}


def _final_loss(
    logits: Tensor,
    labels: Tensor,
    config: LossConfig,
    class_weights: Tensor | None,
    utterance_weights: Tensor | None,
    mix: Mix | None,
    total: Tensor,
) -> Tensor:
    if mix is None:
        return _supervised(logits, labels, config, class_weights, utterance_weights, total)
    own, partners = mix.share, 1 - mix.share
    if utterance_weights is not None:
        own, partners = own * utterance_weights, partners * utterance_weights[mix.partner]
    loss = _supervised(logits, labels, config, class_weights, own, total)
    return loss + _supervised(logits, labels[mix.partner], config, class_weights, partners, total)


def _modality_loss(
    output: Output,
    labels: Tensor,
    config: LossConfig,
    class_weights: Tensor | None,
    utterance_weights: Tensor | None,
    totals: Tensor,
) -> Tensor:
    """The loss averaged over the modalities' heads, each over the utterances that have the modality."""
    logits = output.modality_logits
    losses = _losses(logits, labels[:, None].expand(logits.shape[:2]), config, class_weights)  # (U, M)
    losses = losses.masked_fill(~output.present, 0.0)
    if utterance_weights is not None:
        losses = losses * utterance_weights[:, None]
    return (losses.sum(0) / totals.clamp(min=1e-12)).mean()


def _supervised(
    logits: Tensor,
    labels: Tensor,
    config: LossConfig,
    class_weights: Tensor | None,
    row_weights: Tensor | None,
    total: Tensor,
) -> Tensor:
    losses = _losses(logits, labels, config, class_weights)
    return (losses if row_weights is None else losses * row_weights).sum() / total.clamp(min=1e-12)


def _losses(logits: Tensor, labels: Tensor, config: LossConfig, class_weights: Tensor | None) -> Tensor:
    """The loss of each row times the weight of its class, 0 where unlabelled: `(...)` for `(..., C)` logits."""
    if labels.is_floating_point():
        unlabelled = labels.isnan()
        values, targets = at_least_fp32(logits[..., 0]), labels.masked_fill(unlabelled, 0.0)
        return F.smooth_l1_loss(values, targets, reduction="none").masked_fill(unlabelled, 0.0)
    losses = focal_loss(logits, labels, config.gamma, config.label_smoothing)
    return losses if class_weights is None else losses * class_weights[labels.clamp(min=0)]
