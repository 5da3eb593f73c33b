"""Augmentation of training batches: swap noise, modality dropout, mixup."""

from dataclasses import replace

import torch
from torch import Tensor

from amuse.config import ModelConfig
from amuse.data.batch import UNLABELLED, Batch, present_modalities
from amuse.data.mix import Mix


def augment(batch: Batch, config: ModelConfig, groups: dict[str, list[str]]) -> Batch:
    """Swap noise and modality dropout as `config` says, drawn from torch's generator; `groups` as in `Amuse.groups`."""
    if config.modality_swap:
        batch = _swap_modalities(batch, config.modality_swap, groups)
    if config.modality_dropout:
        batch = _drop_modalities(batch, config.modality_dropout, groups)
    return batch


def draw_mix(labels: Tensor | None, alpha: float) -> Mix | None:
    """Partners within a batch and shares max(x, 1 - x), x ~ Beta(alpha, alpha); None if nothing is labelled.

    An utterance without a label, or whose partner has none, is not mixed. The larger share is its own, since
    the temporal stage sees its speaker and position.
    """
    if labels is None or alpha == 0:
        return None
    partner = torch.randperm(len(labels), device=labels.device)
    share = torch.distributions.Beta(alpha, alpha).sample((len(labels),)).to(labels.device)
    share = torch.maximum(share, 1 - share)
    unlabelled = labels.isnan() if labels.is_floating_point() else labels == UNLABELLED
    return Mix(partner, share.masked_fill(unlabelled | unlabelled[partner], 1.0))


def _drop_modalities(batch: Batch, dropout: dict[str, float], groups: dict[str, list[str]]) -> Batch:
    """Drop each modality with its probability, but never all of an utterance."""
    present = present_modalities(batch, groups)
    chances = [dropout.get(name, 0.0) for name in groups]
    kept = present & (torch.rand(present.shape, device=present.device) >= torch.tensor(chances, device=present.device))
    kept = torch.where(kept.any(-1, keepdim=True), kept, present)
    masks = {s: batch.masks[s] & kept[:, m, None] for m, names in enumerate(groups.values()) for s in names}
    return replace(batch, masks=masks)


def _swap_modalities(batch: Batch, swap: dict[str, float], groups: dict[str, list[str]]) -> Batch:
    """Replace a modality of some utterances by another utterance's, so that no modality is trusted blindly."""
    features, masks = dict(batch.features), dict(batch.masks)
    for name, chance in swap.items():
        count, device = len(batch), batch.dialogue.device
        other = torch.randint(count, (count,), device=device)
        source = torch.where(torch.rand(count, device=device) < chance, other, torch.arange(count, device=device))
        for stream in groups[name]:
            features[stream], masks[stream] = features[stream][source], masks[stream][source]
    return replace(batch, features=features, masks=masks)
