"""Focal loss (Eq. 5) and its gradient at the logits, which Eq. 6 needs."""

import torch
from torch import Tensor

from amuse.data.batch import UNLABELLED
from amuse.model.precision import at_least_fp32


def focal_loss(logits: Tensor, labels: Tensor, gamma: float = 1.0, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - p_c)^gamma log p_c of each row (Eq. 5, whose print lost the -log).

    Args:
        logits: `(..., C)`. labels: int64 `(...)`, -100 = unlabelled.
        gamma: 0 is the cross-entropy.
        label_smoothing: Share of the target spread over all classes.

    Returns:
        fp32 or wider `(...)`, 0 where unlabelled.
    """
    labelled = (labels != UNLABELLED).unsqueeze(-1)
    # nothing is selected: how many rows are labelled is known to the device alone
    log_p = at_least_fp32(logits).masked_fill(~labelled, 0.0).log_softmax(-1)
    # the bound keeps the slope of q^gamma finite at p = 1 for gamma < 1
    q = (1 - log_p.exp()).clamp(min=torch.finfo(log_p.dtype).eps)
    focal = -(q if gamma == 1 else q**gamma) * log_p * labelled  # (..., C)
    loss = focal.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    if label_smoothing > 0:
        loss = (1 - label_smoothing) * loss + label_smoothing * focal.mean(-1)
    return loss


def focal_logit_gradient(logits: Tensor, labels: Tensor, gamma: float = 1.0) -> Tensor:
    """Gradient of each row's focal loss with respect to its logits, in closed form, `(N, C)`.

    With q = 1 - p_c: dL/dp_c = gamma q^(gamma - 1) log p_c - q^gamma / p_c and dp_c/dz = p_c (onehot - p).
    """
    log_p = logits.log_softmax(-1)
    log_c = log_p.gather(1, labels[:, None])
    p_c = log_c.exp()
    q = (1 - p_c).clamp(min=torch.finfo(p_c.dtype).eps)
    slope = gamma * q ** (gamma - 1) * p_c * log_c - q**gamma  # dL/dp_c times p_c
    # not F.one_hot, which looks into the labels
    one_hot = labels[:, None] == torch.arange(logits.shape[-1], device=labels.device)
    return slope * (one_hot.to(log_p.dtype) - log_p.exp())
