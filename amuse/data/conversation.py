"""Conversations as the rest of the package sees them: dialogues of utterances with token features per modality."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from amuse.encoders.stored import Features, StoredTokens

TOKEN_IDS = 0
"""The width that marks a modality as token ids for a trainable encoder instead of features."""


@dataclass(slots=True)
class Utterance:
    """One turn of one speaker.

    Attributes:
        id: Unique in its split, for example `"dia3_utt7"`.
        speaker: Name of the speaker, compared only inside a dialogue.
        features: Modality -> `(L, d)` float32 token features, or `(L,)` int64 token ids. An absent modality has no key.
            `amuse.encoders.stored.Features` leaves them in their files until they are looked up.
        label: Class index, regression target, or None for unlabelled.
        text: What was said, where known.
        start, end: Seconds, where known.
        evidence: Modality -> indices of the tokens that carry planted evidence (generated conversations only).
    """

    id: str
    speaker: str
    features: Mapping[str, Tensor]
    label: int | float | None = None
    text: str | None = None
    start: float | None = None
    end: float | None = None
    evidence: dict[str, list[int]] = field(default_factory=dict)

    @property
    def entries(self) -> Mapping[str, Tensor | StoredTokens]:
        """The features, where they are: nothing is read."""
        return self.features.entries if isinstance(self.features, Features) else self.features

    def num_tokens(self, modality: str) -> int:
        """Tokens of one modality; 0 where it is absent."""
        entry = self.entries.get(modality)
        return 0 if entry is None else len(entry)


@dataclass
class Dialogue:
    """Utterances in the order in which they were said."""

    id: str
    utterances: list[Utterance]

    def __len__(self) -> int:
        return len(self.utterances)


def as_features(entries: Mapping[str, Tensor | StoredTokens]) -> Mapping[str, Tensor]:
    """Tokens in memory as they are; with others among them, all as `Features`."""
    tensors = {modality: entry for modality, entry in entries.items() if isinstance(entry, Tensor)}
    return tensors if len(tensors) == len(entries) else Features(entries)


class Conversations(Dataset[Dialogue]):
    """The dialogues of one split, checked once, so that later code need not check them again.

    Args:
        dialogues: At least one dialogue, none of them empty.
        label_names: Class names in the order of the label indices; None means regression.
        modalities: Modality -> feature width; width 0 (`TOKEN_IDS`) means int64 token ids.

    Raises:
        ValueError: An empty dialogue, a repeated id, a label out of range or not finite, or features of the wrong rank,
            width or dtype or with NaN or infinity. The message names the dialogue and the utterance.
    """

    def __init__(
        self,
        dialogues: Sequence[Dialogue],
        label_names: Sequence[str] | None,
        modalities: Mapping[str, int],
    ) -> None:
        self.dialogues = list(dialogues)
        self.label_names = None if label_names is None else list(label_names)
        self.modalities = dict(modalities)
        self._check()

    def __len__(self) -> int:
        return len(self.dialogues)

    def __getitem__(self, index: int) -> Dialogue:
        return self.dialogues[index]

    def utterances(self) -> Iterator[Utterance]:
        """All utterances, dialogue after dialogue."""
        for dialogue in self.dialogues:
            yield from dialogue.utterances

    @property
    def regression(self) -> bool:
        return self.label_names is None

    @property
    def num_utterances(self) -> int:
        return sum(map(len, self.dialogues))

    def class_counts(self) -> Tensor:
        """Number of utterances of each class, int64 `(C,)`; unlabelled ones are left out.

        Raises:
            ValueError: Regression labels, which have no classes.
        """
        if self.label_names is None:
            raise ValueError("class_counts: expected class labels, got regression targets (label_names is None)")
        labels = [utterance.label for utterance in self.utterances() if utterance.label is not None]
        return torch.bincount(torch.tensor(labels, dtype=torch.int64), minlength=len(self.label_names))

    def select(self, modalities: Sequence[str]) -> Conversations:
        """The same dialogues with these modalities only, in this order; feature tensors are shared.

        Raises:
            ValueError: A modality that these conversations do not have.
        """
        for modality in modalities:
            if modality not in self.modalities:
                known = ", ".join(sorted(self.modalities))
                raise ValueError(f"modalities: expected names out of {known}, got {modality!r}")
        kept = {modality: self.modalities[modality] for modality in modalities}
        return self._map(kept, lambda utterance: {m: x for m, x in utterance.entries.items() if m in kept})

    def with_features(self, modality: str, width: int, features: Mapping[str, Tensor | StoredTokens]) -> Conversations:
        """The same dialogues with one modality added or replaced.

        Args:
            modality: Its name.
            width: Feature width, or `TOKEN_IDS`.
            features: Utterance id -> `(L, width)` float32 or `(L,)` int64, or where they are; an utterance without an
                entry, or with an empty one, lacks this modality.
        """
        return self.with_modalities({modality: width}, {modality: features})

    def with_modalities(
        self, widths: Mapping[str, int], features: Mapping[str, Mapping[str, Tensor | StoredTokens]]
    ) -> Conversations:
        """`with_features` for several modalities at once: modality -> width, modality -> utterance id -> tokens."""

        def merged(utterance: Utterance) -> dict[str, Tensor | StoredTokens]:
            found = {m: tokens for m, own in features.items() if (tokens := own.get(utterance.id)) is not None}
            others = {m: x for m, x in utterance.entries.items() if m not in features}
            return others | {m: tokens for m, tokens in found.items() if len(tokens)}

        return self._map({**self.modalities, **widths}, merged)

    def subset(self, indices: Sequence[int]) -> Conversations:
        """The dialogues at these indices."""
        return Conversations([self.dialogues[i] for i in indices], self.label_names, self.modalities)

    def _map(
        self, modalities: dict[str, int], entries: Callable[[Utterance], dict[str, Tensor | StoredTokens]]
    ) -> Conversations:
        dialogues = [
            Dialogue(dialogue.id, [replace(u, features=as_features(entries(u))) for u in dialogue.utterances])
            for dialogue in self.dialogues
        ]
        return Conversations(dialogues, self.label_names, modalities)

    def _check(self) -> None:
        if not self.dialogues:
            raise ValueError("dialogues: expected at least one dialogue, got none")
        names = self.label_names
        if names is not None and (not names or len(set(names)) < len(names)):
            raise ValueError(f"label_names: expected distinct names, at least one, got {', '.join(names) or 'none'}")
        for modality, width in self.modalities.items():
            if width < 0:
                raise ValueError(f"modalities[{modality!r}]: expected a width >= 0, got {width}")
        dialogue_ids: set[str] = set()
        owners: dict[str, str] = {}
        for dialogue in self.dialogues:
            if dialogue.id in dialogue_ids:
                raise ValueError(f"dialogue {dialogue.id!r}: expected distinct dialogue ids, got this one twice")
            dialogue_ids.add(dialogue.id)
            if not dialogue.utterances:
                raise ValueError(f"dialogue {dialogue.id!r}: expected at least one utterance, got none")
            for utterance in dialogue.utterances:
                where = f"dialogue {dialogue.id!r}, utterance {utterance.id!r}"
                if utterance.id in owners:
                    other = owners[utterance.id]
                    raise ValueError(f"{where}: expected distinct utterance ids, got one of dialogue {other!r}")
                owners[utterance.id] = dialogue.id
                self._check_label(utterance.label, where)
                for modality, tokens in utterance.entries.items():
                    self._check_features(modality, tokens, f"{where}, features[{modality!r}]")

    def _check_label(self, label: object, where: str) -> None:
        if label is None:
            return
        number = isinstance(label, Real) and not isinstance(label, bool)
        if self.label_names is None:
            if not (number and math.isfinite(cast(float, label))):
                raise ValueError(f"{where}, label: expected a finite number or None, got {label!r}")
        elif not (number and isinstance(label, Integral) and int(label) in range(len(self.label_names))):
            expected = f"an integer from 0 to {len(self.label_names) - 1} or None"
            raise ValueError(f"{where}, label: expected {expected}, got {label!r}")

    def _check_features(self, modality: str, tokens: Tensor | StoredTokens, where: str) -> None:
        if modality not in self.modalities:
            known = ", ".join(sorted(self.modalities)) or "none"
            raise ValueError(f"{where}: expected a modality out of {known}, got {modality!r}")
        width = self.modalities[modality]
        if isinstance(tokens, StoredTokens):  # its numbers are checked when they are read
            if tokens.width != width:
                raise ValueError(f"{where}: expected torch.float32 (L, {width}), got a width of {tokens.width}")
            return
        got = f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        if width == TOKEN_IDS:
            if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64 or tokens.dim() != 1:
                raise ValueError(f"{where}: expected token ids, torch.int64 (L,), got {got}")
            if len(tokens) and int(tokens.min()) < 0:
                raise ValueError(f"{where}: expected token ids >= 0, got {int(tokens.min())}")
            return
        if (
            not isinstance(tokens, Tensor)
            or tokens.dtype != torch.float32
            or tokens.dim() != 2
            or tokens.shape[1] != width
        ):
            raise ValueError(f"{where}: expected torch.float32 (L, {width}), got {got}")
        finite = torch.isfinite(tokens)
        if not finite.all():
            token = int((~finite).any(dim=1).nonzero()[0])
            raise ValueError(f"{where}: expected finite numbers, got NaN or infinity in token {token}")
