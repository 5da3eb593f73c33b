"""A pretrained transformers text encoder that is trained with the model."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from amuse.data.text import encoder_folder

TOKENS_PER_CHUNK = 2048  # utterances of similar length share a forward pass of about this many tokens


class TextEncoder(nn.Module):
    """Token ids to token embeddings, utterances grouped by length so that little padding is computed.

    Args:
        config: Of the transformers model, as its `to_dict()` gives it.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        self.config = config
        self.model = AutoModel.from_config(AutoConfig.for_model(**config))
        self.width: int = self.model.config.hidden_size

    @classmethod
    def from_pretrained(cls, encoder: str) -> Self:
        """With the weights of `encoder`, see `amuse.data.text.encoder_folder`."""
        from transformers import AutoConfig, AutoModel

        folder = encoder_folder(encoder)
        self = cls(AutoConfig.from_pretrained(folder).to_dict())
        self.model.load_state_dict(AutoModel.from_pretrained(folder).state_dict())
        return self

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """int64 `(U, L)` ids and their bool mask, a prefix of True, to `(U, L, width)`, 0 behind the mask."""
        lengths = mask.sum(-1)
        order = torch.argsort(lengths)
        out: Tensor | None = None
        for rows in _chunks(order, lengths[order].tolist()):
            length = int(lengths[rows].max())
            if length == 0:
                continue
            hidden = self.model(
                input_ids=ids[rows, :length], attention_mask=mask[rows, :length].long()
            ).last_hidden_state
            if out is None:
                out = hidden.new_zeros(*ids.shape, self.width)
            out[rows, :length] = hidden
        if out is None:
            return next(self.parameters()).new_zeros(*ids.shape, self.width)
        return out.masked_fill(~mask[..., None], 0.0)


def _chunks(order: Tensor, lengths: list[int]) -> list[Tensor]:
    """Cut rows sorted by length so that a chunk, padded to its longest, has at most about TOKENS_PER_CHUNK tokens."""
    chunks, start = [], 0
    for end, length in enumerate(lengths):
        if end > start and (end - start + 1) * length > TOKENS_PER_CHUNK:
            chunks.append(order[start:end])
            start = end
    return [*chunks, order[start:]]
