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
    logits = torch.cat([output.logits[:, None], output.modality_logits], dim=1)  # (U, 1 + M, C)
    if labels is None:
        final = modality = logits.sum() * 0.0
    else:
        weights = class_weights, utterance_weights
        final, modality = _label_losses(logits, labels, present, config, *weights, mix, denominators)
    parts = {"final": final, "modality": modality, "contrastive": final.new_zeros(())}
    if contrasts(config) and present.shape[1] > 1:
        parts["contrastive"] = contrastive_loss(output.descriptors, present, config, gather)
    if output.teacher is not None and output.alpha is not None:
        parts["gate"] = gate_loss(output.alpha, output.teacher, present, denominators.gate)
    if output.voices is not None and batch is not None:
        parts["speaker"] = speaker_loss(output.voices, batch, present, config.temperature, denominators.speaker)
    weighted = [_times(getattr(config, name), value) for name, value in parts.items()]
    return {"loss": sum(weighted[1:], start=weighted[0]), **parts}


def _label_losses(
    logits: Tensor,
    labels: Tensor,
    present: Tensor,
    config: LossConfig,
    class_weights: Tensor | None,
    utterance_weights: Tensor | None,
    mix: Mix | None,
    denominators: LossDenominators,
) -> tuple[Tensor, Tensor]:
    """The final classifier's loss, and the one averaged over the heads, each over the utterances with its modality.

    Args:
        logits: `(U, 1 + M, C)`, the final ones before those of the modalities: one call for all of them.
    """
    losses = _losses(logits, labels[:, None].expand(logits.shape[:2]), config, class_weights)
    if utterance_weights is not None:
        losses = losses * utterance_weights[:, None]
    final, modality = losses.split([1, logits.shape[1] - 1], dim=1)
    if mix is not None:
        partners = _losses(logits[:, :1], labels[mix.partner, None], config, class_weights)
        if utterance_weights is not None:
            partners = partners * utterance_weights[mix.partner, None]
        share = mix.share[:, None]
        final = share * final + (1 - share) * partners
    modality = modality.masked_fill(~present, 0.0).sum(0) / denominators.modality.clamp(min=1e-12)
    return final.sum() / denominators.final.clamp(min=1e-12), modality.mean()


def _times(weight: float, value: Tensor) -> Tensor:
    return value if weight == 1 else weight * value


def _losses(logits: Tensor, labels: Tensor, config: LossConfig, class_weights: Tensor | None) -> Tensor:
    """The loss of each row times the weight of its class, 0 where unlabelled: `(...)` for `(..., C)` logits."""
    if labels.is_floating_point():
        unlabelled = labels.isnan()
        values, targets = at_least_fp32(logits[..., 0]), labels.masked_fill(unlabelled, 0.0)
        return F.smooth_l1_loss(values, targets, reduction="none").masked_fill(unlabelled, 0.0)
    losses = focal_loss(logits, labels, config.gamma, config.label_smoothing)
    return losses if class_weights is None else losses * class_weights[labels.clamp(min=0)]
