"""Adaptive fusion (III-C): every way to the coefficients alpha of Eq. 2.

"learned" (the paper's Test-3), "closed_form" (Eq. 6), "chain" (III-E2), and for ablations "equal" (Test-2), "random"
(Test-1) and "concat", which fuses nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from amuse.config import ModelConfig
from amuse.data.batch import UNLABELLED
from amuse.model.focal import focal_logit_gradient
from amuse_kernels import adaptive_fusion, interpolation_coefficients
from amuse_kernels.nn import AdaptiveFusion


def fuse(
    descriptors: Tensor,
    present: Tensor,
    heads: Sequence[nn.Linear],
    learned: AdaptiveFusion | None,
    config: ModelConfig,
) -> tuple[Tensor, Tensor | None]:
    """A(u) of Eq. 2 and the interpolation coefficients.

    Args:
        descriptors: `(U, M, d)`. present: bool `(U, M)`.
        heads: The classifier of each modality, for Eq. 6.
        learned: The layer of fusion "learned".
        config: Of the model.

    Returns:
        `(U, M * d)`, or `(U, d)` of a chain; alpha `(U, M, M)` or `(U, M, M, d)`, None with "concat" and "chain".
    """
    if config.fusion == "concat":
        return descriptors.flatten(1), None
    if config.fusion == "chain":
        return chain(descriptors, present, heads, config), None
    if learned is not None:
        fused, alpha = learned(descriptors, present=present)
        return fused.flatten(1), alpha
    utterances, count, _ = descriptors.shape
    if config.fusion == "equal":
        alpha = descriptors.new_full((utterances, count, count), 0.5)
    elif config.fusion == "random":
        alpha = torch.rand(utterances, count, count, device=descriptors.device, dtype=descriptors.dtype)
    else:
        alpha = closed_form(descriptors, heads, config)
    fused, alpha = adaptive_fusion(descriptors, alpha, present=present, backend=config.backend)
    return fused.flatten(1), alpha


def closed_form(
    descriptors: Tensor, heads: Sequence[nn.Linear], config: ModelConfig, labels: Tensor | None = None
) -> Tensor:
    """Eq. 6, `(U, M, M, d)`: alpha[m, n] pulls f_m towards f_n, against the loss of modality m."""
    f = descriptors.detach()
    count = f.shape[1]
    gradients = torch.stack([_loss_gradient(head, f[:, m], labels) for m, head in enumerate(heads)], dim=1)
    shape = (*f.shape[:2], count, f.shape[-1])
    f_m, f_n, grad_m = (x.expand(shape) for x in (f[:, :, None], f[:, None], gradients[:, :, None]))
    return interpolation_coefficients(f_n, f_m, grad_m, config.epsilon, backend=config.backend)


def chain(descriptors: Tensor, present: Tensor, heads: Sequence[nn.Linear], config: ModelConfig) -> Tensor:
    """u_1 = f_1, u_k = a_k u_(k-1) + (1 - a_k) f_k over the present modalities, a_k in closed form (III-E2)."""
    mixed, started = descriptors[:, 0], present[:, :1]
    for m in range(1, descriptors.shape[1]):
        f, here = descriptors[:, m], present[:, m, None]
        gradient = _loss_gradient(heads[m], f.detach())
        alpha = interpolation_coefficients(mixed.detach(), f.detach(), gradient, config.epsilon, backend=config.backend)
        step = torch.where(started, alpha * mixed + (1 - alpha) * f, f)
        mixed, started = torch.where(here, step, mixed), started | here
    return mixed


def flipped(descriptors: Tensor, present: Tensor, heads: Sequence[nn.Linear], config: ModelConfig) -> Tensor:
    """The informative utterances of III-E2, bool `(U,)`: mixing by Eq. 6 changes what some modality predicts.

    That is, for an ordered pair of present modalities, classifier m decides otherwise for alpha f_n + (1 - alpha) f_m
    than for f_m.

    Args: as for `fuse`.
    """
    f = descriptors.detach().to(heads[0].weight.dtype)
    alpha = closed_form(f, heads, config)
    mixed = alpha * f[:, None] + (1 - alpha) * f[:, :, None]  # (U, m, n, d)
    changed = [head(mixed[:, m]).argmax(-1) != head(f[:, m]).argmax(-1)[:, None] for m, head in enumerate(heads)]
    pairs = present[:, :, None] & present[:, None] & ~torch.eye(f.shape[1], dtype=torch.bool, device=f.device)
    return (torch.stack(changed, dim=1) & pairs).flatten(1).any(-1)


def _loss_gradient(head: nn.Linear, descriptor: Tensor, labels: Tensor | None = None) -> Tensor:
    """Gradient of a modality's own focal loss at its descriptor, for the label that the modality itself predicts.

    The true label would leak at inference (Eq. 6 as printed); only the gate's teacher is given it, in training.
    """
    logits = head(descriptor).float()
    chosen = logits.argmax(-1)
    if labels is not None:
        chosen = torch.where(labels == UNLABELLED, chosen, labels)
    gradient = focal_logit_gradient(logits, chosen) @ head.weight.float()
    return gradient.detach().to(descriptor.dtype)
