"""Pretrained transformers encoders of text, sound and pictures that are trained with the model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from amuse.encoders.hub import encoder_folder, without_progress_bars
from amuse.layout import Layout

# utterances of similar length share a forward pass of about this many tokens, enough to fill the device
TOKENS_PER_CHUNK = {"cpu": 256, "cuda": 8192}
# options of wav2vec 2.0 and related models that `SignalEncoder` turns off
UNSUITED = {"apply_spec_augment": False, "layerdrop": 0.0}


class PretrainedEncoder(nn.Module):
    """A transformers model of which all layers, or only the top ones, are trained.

    Args:
        config: The transformers model's, as its `to_dict()` gives it.
        trained_layers: Number of top layers that are trained; None = the whole model.

    Raises:
        ValueError: More trained layers than there are, or an architecture without a list of layers.
    """

    width: int  # width of the tokens that it returns

    def __init__(self, config: dict[str, Any], trained_layers: int | None = None) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        self.config = config
        self.model = tower(AutoModel.from_config(AutoConfig.for_model(**config))).float()
        layers = self.blocks()
        if trained_layers is not None:
            if not layers or not 0 <= trained_layers <= len(layers):
                depth = f"{len(layers)} layers" if layers else "an encoder without a list of layers"
                raise ValueError(
                    f"encoder_layers: expected a number of layers to train of {depth}, got {trained_layers}"
                )
            self.model.requires_grad_(False)
            for layer in layers[len(layers) - trained_layers :]:
                layer.requires_grad_(True)

    @classmethod
    def from_pretrained(cls, encoder: str, *arguments: Any) -> Self:
        """With the weights of `encoder`, see `amuse.encoders.hub.encoder_folder`; `arguments`: those after `config`."""
        model, folder = pretrained_model(encoder)
        from transformers import AutoConfig

        self = cls(AutoConfig.from_pretrained(folder, local_files_only=True).to_dict(), *arguments)
        self.model.load_state_dict(model.state_dict())
        return self

    def blocks(self) -> list[nn.Module]:
        """The layers from the bottom up; empty for an architecture without a single list of them."""
        for holder in (getattr(self.model, "encoder", None), self.model):
            for name in ("layer", "layers"):
                layers = getattr(holder, name, None)
                if isinstance(layers, nn.ModuleList):
                    return list(layers)
        return []

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Trained parameters from the top layer down to the embeddings, for learning rates that decay with depth."""
        groups = [[p for p in layer.parameters() if p.requires_grad] for layer in reversed(self.blocks())]
        taken = {id(p) for group in groups for p in group}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in taken]
        return [group for group in [*groups, rest] if group]


class TextEncoder(PretrainedEncoder):
    """Token ids to token embeddings; utterances are grouped by length so that little padding is computed."""

    def __init__(self, config: dict[str, Any], trained_layers: int | None = None) -> None:
        super().__init__(config, trained_layers)
        self.width = self.model.config.hidden_size

    def forward(self, ids: Tensor, layout: Layout) -> Tensor:
        """int64 `(T,)` ids of the utterances' tokens to `(T, width)`."""
        if not layout.num_tokens:
            return next(self.parameters()).new_zeros(0, self.width)
        lengths, rows = torch.sort(layout.lengths)
        rows = rows.to(ids.device)
        limit = TOKENS_PER_CHUNK.get(ids.device.type, 8192)
        chunks = _chunks(lengths.tolist(), limit)
        outputs, used = [], 0
        starts = [torch.zeros(chunks[0][0], dtype=torch.int64, device=ids.device)]  # of each row in the outputs
        for first, last in chunks:
            length = int(lengths[last - 1])
            places = layout.cu_seq[rows[first:last], None] + torch.arange(length, device=ids.device)
            mask = places < layout.cu_seq[rows[first:last] + 1, None]
            padded = torch.where(mask, ids[places.clamp(max=layout.num_tokens - 1)], 0)
            outputs.append(self.model(input_ids=padded, attention_mask=mask.long()).last_hidden_state.flatten(0, 1))
            starts.append(used + length * torch.arange(last - first, device=ids.device))
            used += length * (last - first)
        start = torch.empty_like(rows).scatter(0, rows, torch.cat(starts))
        return torch.cat(outputs)[start[layout.row] + layout.position]


class SignalEncoder(PretrainedEncoder):
    """Encodes each window of sound or key frame on its own, as the mean over its time steps or patches.

    Args:
        config, trained_layers: See `PretrainedEncoder`. wav2vec 2.0's time masking and layer drop are off: a window is
            shorter than the masks, and processes that drop different layers could not average their gradients.
        shape: Shape of the model's input for one token, such as `(samples,)` or `(3, height, width)`.
    """

    def __init__(self, config: dict[str, Any], trained_layers: int | None, shape: Sequence[int]) -> None:
        super().__init__(config | {key: off for key, off in UNSUITED.items() if key in config}, trained_layers)
        self.shape = tuple(shape)
        training = self.training
        with torch.no_grad():
            self.width = self.eval()._encode(torch.zeros(1, *self.shape)).shape[-1]
        self.train(training)

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        """float32 `(T, raw)`, inputs of `shape` made flat, to `(T, width)`."""
        if not len(tokens):
            return tokens.new_zeros(0, self.width)
        return self._encode(tokens.unflatten(-1, self.shape))

    def _encode(self, inputs: Tensor) -> Tensor:
        return average_hidden(self.model(**{self.model.main_input_name: inputs}).last_hidden_state)


def average_hidden(hidden: Tensor) -> Tensor:
    """`(N, T, d)` of transformers or `(N, d, H, W)` of convolutional networks to `(N, d)`."""
    return hidden.mean(dim=1) if hidden.dim() == 3 else hidden.mean(dim=(2, 3))


def pretrained_model(encoder: str) -> tuple[Any, Path]:
    """The transformers model of that name, and its folder; pickled weights are never read.

    Raises:
        ImportError, FileNotFoundError: See `encoder_folder`.
        ValueError: Incomplete weights.
    """
    from transformers import AutoModel

    folder = encoder_folder(encoder)
    with without_progress_bars():
        model, info = AutoModel.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    # weights missing from a checkpoint would be random; a pooler is not used, and often missing
    absent = sorted(key for key in info["missing_keys"] if "pooler" not in key and "mask" not in key)
    if absent:
        raise ValueError(f"encoder: {encoder} lacks {len(absent)} weights of its architecture, such as {absent[0]}")
    return tower(model.float()), folder


def tower(model: Any) -> Any:
    """The part that encodes: the encoder of models such as Whisper, the vision tower of models such as CLIP."""
    if getattr(model.config, "is_encoder_decoder", False):
        return model.get_encoder()
    return getattr(model, "vision_model", model)


def _chunks(lengths: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Ranges of ascending lengths above 0 that, padded to their longest, have about `limit` tokens at most."""
    start = sum(length == 0 for length in lengths)
    chunks = []
    for end in range(start, len(lengths)):
        if end > start and (end - start + 1) * lengths[end] > limit:
            chunks.append((start, end))
            start = end
    return [*chunks, (start, len(lengths))]
