"""A pretrained transformers text encoder that is trained with the model."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from amuse.data.text import encoder_folder

# utterances of similar length share a forward pass of about this many tokens: enough to fill the device, no more
TOKENS_PER_CHUNK = {"cpu": 256, "cuda": 8192}


class TextEncoder(nn.Module):
    """Token ids to token embeddings, utterances grouped by length so that little padding is computed.

    Args:
        config: Of the transformers model, as its `to_dict()` gives it.
        trained_layers: Only this many layers at the top are trained; None = everything.

    Raises:
        ValueError: more trained layers than there are, or an architecture without `encoder.layer`.
    """

    def __init__(self, config: dict[str, Any], trained_layers: int | None = None) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        self.config = config
        self.model = AutoModel.from_config(AutoConfig.for_model(**config))
        self.width: int = self.model.config.hidden_size
        layers = getattr(getattr(self.model, "encoder", None), "layer", None)
        if trained_layers is not None:
            if layers is None or not 0 <= trained_layers <= len(layers):
                depth = "an encoder without a list of layers" if layers is None else f"{len(layers)} layers"
                raise ValueError(f"encoder_layers: {trained_layers} are to be trained of {depth}")
            self.model.requires_grad_(False)
            for layer in layers[len(layers) - trained_layers :]:
                layer.requires_grad_(True)

    @classmethod
    def from_pretrained(cls, encoder: str, trained_layers: int | None = None) -> Self:
        """With the weights of `encoder`, see `amuse.data.text.encoder_folder`."""
        from transformers import AutoConfig, AutoModel

        folder = encoder_folder(encoder)
        self = cls(AutoConfig.from_pretrained(folder).to_dict(), trained_layers)
        self.model.load_state_dict(AutoModel.from_pretrained(folder).state_dict())
        return self

    def blocks(self) -> list[nn.Module]:
        """Its layers, from the lowest; none for an architecture that lists them elsewhere than in `encoder.layer`."""
        return list(getattr(getattr(self.model, "encoder", None), "layer", []))

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Trained parameters from the top layer down to the embeddings, for learning rates that fall with depth."""
        groups = [[p for p in layer.parameters() if p.requires_grad] for layer in reversed(self.blocks())]
        taken = {id(p) for group in groups for p in group}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in taken]
        return [group for group in [*groups, rest] if group]

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """int64 `(U, L)` ids and their bool mask, a prefix of True, to `(U, L, width)`, 0 behind the mask."""
        lengths = mask.sum(-1)
        order = torch.argsort(lengths)
        out: Tensor | None = None
        limit = TOKENS_PER_CHUNK.get(ids.device.type, 8192)
        for rows in _chunks(order, lengths[order].tolist(), limit):
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


def _chunks(order: Tensor, lengths: list[int], limit: int) -> list[Tensor]:
    """Cut rows sorted by length so that a chunk, padded to its longest, has at most about `limit` tokens."""
    chunks, start = [], 0
    for end, length in enumerate(lengths):
        if end > start and (end - start + 1) * length > limit:
            chunks.append(order[start:end])
            start = end
    return [*chunks, order[start:]]
