"""Batches with something taken away or put behind a mask, and counts of what conversations lack."""

import torch

from amuse.data import Batch, Conversations


def without(batch: Batch, name: str, rows=slice(None)) -> Batch:
    """The batch without a modality's tokens in some rows."""
    gone = torch.zeros(len(batch), dtype=torch.bool)
    gone[rows] = True
    layout = batch.layouts[name]
    kept = batch.tokens[name][~gone[layout.row]]
    return batch.with_tokens({name: kept}, {name: layout.lengths.masked_fill(gone, 0)})


def repadded(batch: Batch, filling: float, extra: int = 2) -> Batch:
    """The batch made again of padded features that hold `filling` where they are padded."""
    features, masks = {}, {}
    for name in batch.tokens:
        padded, mask = batch.padded(name)
        masks[name] = torch.nn.functional.pad(mask, (0, extra))
        features[name] = torch.nn.functional.pad(padded, (0, 0, 0, extra))
        features[name][~masks[name]] = filling
    return Batch.of_padded(features, masks, batch.dialogues.lengths, batch.speaker, batch.labels, batch.ids)


def missing_counts(conversations: Conversations) -> dict[str, int]:
    """Modality -> number of utterances without a token of it."""
    utterances = [*conversations.utterances()]
    return {name: sum(u.num_tokens(name) == 0 for u in utterances) for name in conversations.modalities}
