"""Standardisation of token features with statistics of the training part only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from amuse.data.conversation import TOKEN_IDS, Conversations
from amuse.encoders.stored import StoredTokens, Transform

PART = 1_000_000  # numbers whose moments are computed at once


class Standardizer:
    """Scales every feature to mean 0 and standard deviation 1 over the tokens it was fitted on, and clips outliers.

    A feature that is constant in the training part is only shifted: its deviation counts as 1.

    Args:
        mean: Modality -> float32 `(d,)`.
        std: Modality -> float32 `(d,)`, without zeros.
        clip: Outliers are clipped at this many deviations; None keeps them.
    """

    def __init__(self, mean: dict[str, Tensor], std: dict[str, Tensor], clip: float | None = 5.0) -> None:
        if mean.keys() != std.keys():
            raise ValueError(
                f"std: expected the modalities of mean, {', '.join(sorted(mean))}, got {', '.join(sorted(std))}"
            )
        if clip is not None and not clip > 0:
            raise ValueError(f"clip: expected a positive number of deviations or None, got {clip}")
        self.mean = mean
        self.std = std
        self.clip = clip

    @classmethod
    def fit(
        cls, conversations: Conversations, *, modalities: Sequence[str] | None = None, clip: float | None = 5.0
    ) -> Standardizer:
        """From the statistics of the given modalities; by default all but token ids.

        Raises:
            ValueError: A modality that is unknown, is token ids, or has no token.
        """
        if modalities is None:
            modalities = [m for m, width in conversations.modalities.items() if width != TOKEN_IDS]
        mean, std = {}, {}
        for modality in modalities:
            if conversations.modalities.get(modality, TOKEN_IDS) == TOKEN_IDS:
                raise ValueError(f"modalities: expected names of feature modalities, got {modality!r}")
            centre, deviation = _moments(conversations, modality)
            # rounding gives a constant column a tiny deviation; dividing by it would amplify noise
            constant = deviation <= 1e-6 * centre.abs().clamp(min=1e-6)
            mean[modality] = centre.float()
            std[modality] = torch.where(constant, torch.ones_like(deviation), deviation).float()
        return cls(mean, std, clip)

    def apply(self, conversations: Conversations) -> Conversations:
        """The same conversations with standardised features; modalities it was not fitted on are unchanged.

        Raises:
            ValueError: A fitted modality is missing or has another width.
        """
        standardised: dict[str, dict[str, Tensor | StoredTokens]] = {}
        for modality, centre in self.mean.items():
            width = conversations.modalities.get(modality)
            if width != len(centre):
                raise ValueError(f"modality {modality!r}: expected width {len(centre)}, as fitted, got {width}")
            transform = partial(self.transform, modality)
            chains: dict[tuple[Transform, ...], tuple[Transform, ...]] = {}  # shared, since a million are large
            standardised[modality] = {
                u.id: replace(entry, transforms=chains.setdefault(entry.transforms, (*entry.transforms, transform)))
                if isinstance(entry, StoredTokens)
                else transform(entry)
                for u in conversations.utterances()
                if (entry := u.entries.get(modality)) is not None
            }
        return conversations.with_modalities({m: len(centre) for m, centre in self.mean.items()}, standardised)

    def transform(self, modality: str, tokens: Tensor) -> Tensor:
        """One stream, float32 `(..., d)`, standardised; unchanged if the modality was not fitted."""
        if modality not in self.mean:
            return tokens
        scaled = (tokens - self.mean[modality]) / self.std[modality]
        return scaled if self.clip is None else scaled.clamp(-self.clip, self.clip)

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors, to be saved with a checkpoint."""
        state = {f"mean.{m}": x for m, x in self.mean.items()} | {f"std.{m}": x for m, x in self.std.items()}
        return {**state, "clip": torch.tensor(float("inf") if self.clip is None else self.clip, dtype=torch.float64)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> Standardizer:
        """The inverse of `state_dict`.

        Raises:
            ValueError: Entries that `state_dict` does not write.
        """
        parts: dict[str, dict[str, Tensor]] = {"mean": {}, "std": {}}
        for key, tensor in state.items():
            part, _, modality = key.partition(".")
            if key != "clip" and (part not in parts or not modality):
                raise ValueError(f"state: expected keys 'mean.*', 'std.*' and 'clip', got {key!r}")
            if key != "clip":
                parts[part][modality] = tensor
        if "clip" not in state:
            raise ValueError("state: expected a key 'clip', got none")
        if state["clip"].numel() != 1:
            raise ValueError(f"state: expected one number 'clip', got {tuple(state['clip'].shape)}")
        clip = float(state["clip"])
        return cls(parts["mean"], parts["std"], None if clip == float("inf") else clip)


def _moments(conversations: Conversations, modality: str) -> tuple[Tensor, Tensor]:
    """Mean and population deviation of a modality's tokens, float64 `(d,)`.

    They are merged part by part (Chan, Golub and LeVeque 1979), so that no more than a part is in memory.
    """
    width = conversations.modalities[modality]
    count, mean, squares = 0, torch.zeros(width).double(), torch.zeros(width).double()
    for part in _parts(conversations, modality, max(PART // width, 1)):
        total = count + len(part)
        centre = part.mean(0)
        squares += ((part - centre) ** 2).sum(0) + (centre - mean) ** 2 * (count * len(part) / total)
        mean += (centre - mean) * (len(part) / total)
        count = total
    if not count:
        raise ValueError(f"modality {modality!r}: expected at least one token to fit on, got none")
    return mean, (squares / count).sqrt()


def _parts(conversations: Conversations, modality: str, tokens: int) -> Iterator[Tensor]:
    """The tokens of a modality in float64, about so many at a time."""
    streams: list[Tensor] = []
    waiting = 0
    for utterance in conversations.utterances():
        if utterance.num_tokens(modality):
            streams.append(utterance.features[modality])
            waiting += len(streams[-1])
        if waiting >= tokens:
            yield torch.cat(streams).double()
            streams, waiting = [], 0
    if streams:
        yield torch.cat(streams).double()
