"""Optional losses that are not in the paper: telling speakers apart, and a gate that follows Eq. 6."""

import torch
from torch import Tensor

from amuse.data.batch import Batch


def speaker_loss(voices: Tensor, batch: Batch, present: Tensor, temperature: float, total: Tensor) -> Tensor:
    """Every utterance finds its speaker's other utterances among all others of its dialogue (ours).

    The mean of -log P over the speaker's other utterances, P the softmax over the dialogue's; the sum over utterances
    is divided by `total`.

    Args:
        voices: `(U, d)` of length 1, `Output.voices`.
        present: bool `(U, M)`; an utterance without any modality takes no part.
    """
    others, same = speaker_pairs(batch, present)
    # an utterance without another one of its dialogue looks at all of them, so that its softmax exists, and has no loss
    shown = others | ~others.any(-1, keepdim=True)
    log_p = (voices @ voices.T / temperature).masked_fill(~shown, float("-inf")).log_softmax(-1)
    found = -log_p.masked_fill(~same, 0.0).sum(-1) / same.sum(-1).clamp(min=1)
    return found.sum() / total.clamp(min=1)


def speaker_pairs(batch: Batch, present: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of different utterances of one dialogue, both with some modality, bool `(U, U)`; those by one speaker."""
    here = present.any(-1)
    others = (batch.dialogue[:, None] == batch.dialogue) & here[:, None] & here
    others = others & ~torch.eye(len(others), dtype=torch.bool, device=others.device)
    return others, others & (batch.speaker[:, None] == batch.speaker)


def gate_loss(alpha: Tensor, teacher: Tensor, present: Tensor, total: Tensor) -> Tensor:
    """Squared distance of the learned coefficients from Eq. 6, over ordered pairs of present modalities (ours).

    Args:
        alpha: `(U, M, M)`. teacher: `(U, M, M, d)`, of which a scalar coefficient can follow the average over d only.
    """
    error = (alpha - teacher.float().mean(-1)).masked_fill(~present_pairs(present), 0.0)
    return error.square().sum() / total.clamp(min=1)


def present_pairs(present: Tensor) -> Tensor:
    different = ~torch.eye(present.shape[1], dtype=torch.bool, device=present.device)
    return present[:, :, None] & present[:, None] & different
