"""Augmentation of training batches: swap noise, modality dropout, mixup."""

import torch
from torch import Tensor

from amuse.config import ModelConfig
from amuse.data.batch import UNLABELLED, Batch, present_modalities
from amuse.data.mix import Mix
from amuse.layout import Layout


def augment(batch: Batch, config: ModelConfig, groups: dict[str, list[str]]) -> Batch:
    """Swap noise and modality dropout as `config` says, drawn from torch's generator for the host.

    Args:
        batch: On the host, where the number of tokens that are left is known.
        config: Of the model.
        groups: `Amuse.groups`.
    """
    if config.modality_swap:
        batch = _swap_modalities(batch, config.modality_swap, groups)
    if config.modality_dropout:
        batch = _drop_modalities(batch, config.modality_dropout, groups)
    return batch


def draw_mix(labels: Tensor | None, alpha: float) -> Mix | None:
    """Partners on the host and shares max(x, 1 - x), x ~ Beta(alpha, alpha); None if nothing is labelled.

    An utterance without a label, or whose partner has none, is not mixed. The larger share is its own, since
    the temporal stage sees its speaker and position.
    """
    if labels is None or alpha == 0:
        return None
    partner = torch.randperm(len(labels))
    share = torch.distributions.Beta(alpha, alpha).sample((len(labels),))
    share = torch.maximum(share, 1 - share)
    unlabelled = labels.isnan() if labels.is_floating_point() else labels == UNLABELLED
    return Mix(partner, share.masked_fill(unlabelled | unlabelled[partner], 1.0))


def _drop_modalities(batch: Batch, dropout: dict[str, float], groups: dict[str, list[str]]) -> Batch:
    """Drop each modality with its probability, but never all of an utterance."""
    present = present_modalities(batch, groups)
    chances = torch.tensor([dropout.get(name, 0.0) for name in groups])
    kept = present & (torch.rand(present.shape) >= chances)
    kept = torch.where(kept.any(-1, keepdim=True), kept, present)
    tokens, lengths = {}, {}
    for m, streams in enumerate(groups.values()):
        for name in streams:
            layout = batch.layouts[name]
            tokens[name] = batch.tokens[name][kept[layout.row, m]]
            lengths[name] = layout.lengths * kept[:, m]
    return batch.with_tokens(tokens, lengths)


def _swap_modalities(batch: Batch, swap: dict[str, float], groups: dict[str, list[str]]) -> Batch:
    """Replace a modality of some utterances by another utterance's, so that no modality is trusted blindly."""
    tokens, lengths = {}, {}
    count = len(batch)
    for name, chance in swap.items():
        other = torch.randint(count, (count,))
        source = torch.where(torch.rand(count) < chance, other, torch.arange(count))
        for stream in groups[name]:
            layout = batch.layouts[stream]
            swapped = Layout.of(layout.lengths[source])
            tokens[stream] = batch.tokens[stream][layout.cu_seq[source[swapped.row]] + swapped.position]
            lengths[stream] = swapped.lengths
    return batch.with_tokens(tokens, lengths)
