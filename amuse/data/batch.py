"""Batches of whole dialogues: utterances side by side, padded over tokens only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from amuse.data.conversation import TOKEN_IDS, Conversations, Dialogue

UNLABELLED = -100
"""The class index of an utterance without a label, which every loss and metric leaves out."""

POOL = 16  # batches that are drawn and sorted by length together


@dataclass
class Batch:
    """The utterances of several dialogues, flattened; U counts all of them, L_m is the longest stream (at least 1).

    Attributes:
        features: Modality -> `(U, L_m, d_m)` float32, or `(U, L_m)` int64 token ids; 0 where padded.
        masks: Modality -> bool `(U, L_m)`, True = token; all False = this utterance lacks the modality.
        dialogue: int64 `(U,)`, which dialogue of the batch, non-decreasing from 0.
        position: int64 `(U,)`, index of the utterance in its dialogue.
        speaker: int64 `(U,)`, speaker index inside the dialogue, by order of appearance.
        labels: int64 `(U,)` with -100 = unlabelled, or for regression float32 with NaN = unlabelled; None when no
            utterance of the batch has a label.
        ids: (dialogue id, utterance id) of every utterance.
    """

    features: dict[str, Tensor]
    masks: dict[str, Tensor]
    dialogue: Tensor
    position: Tensor
    speaker: Tensor
    labels: Tensor | None
    ids: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_dialogues(self) -> int:
        return int(self.dialogue[-1]) + 1

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """This batch with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """This batch in page-locked memory; the data loader calls it when asked to pin."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, convert: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            features={m: convert(x) for m, x in self.features.items()},
            masks={m: convert(x) for m, x in self.masks.items()},
            dialogue=convert(self.dialogue),
            position=convert(self.position),
            speaker=convert(self.speaker),
            labels=None if self.labels is None else convert(self.labels),
        )


def collate(dialogues: Sequence[Dialogue], modalities: dict[str, int], regression: bool = False) -> Batch:
    """Puts whole dialogues into one batch.

    Args:
        dialogues: At least one.
        modalities: Modality -> feature width (0 = token ids); modalities of the dialogues that are not named here
            are left out.
        regression: Whether labels are numbers instead of classes.

    Raises:
        ValueError: Without a dialogue, or for one without an utterance.
    """
    if not dialogues:
        raise ValueError("dialogues: expected at least one dialogue, got none")
    for dialogue in dialogues:
        if not dialogue.utterances:
            raise ValueError(f"dialogue {dialogue.id!r}: expected at least one utterance, got none")
    members = [(d, p, u) for d, dialogue in enumerate(dialogues) for p, u in enumerate(dialogue.utterances)]

    features, masks = {}, {}
    for modality, width in modalities.items():
        streams = [utterance.features.get(modality) for _, _, utterance in members]
        length = max([1, *(len(tokens) for tokens in streams if tokens is not None)])
        if width == TOKEN_IDS:
            padded = torch.zeros(len(members), length, dtype=torch.int64)
        else:
            padded = torch.zeros(len(members), length, width, dtype=torch.float32)
        mask = torch.zeros(len(members), length, dtype=torch.bool)
        for row, tokens in enumerate(streams):
            if tokens is not None:
                padded[row, : len(tokens)] = tokens
                mask[row, : len(tokens)] = True
        features[modality], masks[modality] = padded, mask

    speakers: list[int] = []
    for dialogue in dialogues:
        order = {name: i for i, name in enumerate(dict.fromkeys(u.speaker for u in dialogue.utterances))}
        speakers.extend(order[utterance.speaker] for utterance in dialogue.utterances)

    return Batch(
        features=features,
        masks=masks,
        dialogue=torch.tensor([d for d, _, _ in members], dtype=torch.int64),
        position=torch.tensor([p for _, p, _ in members], dtype=torch.int64),
        speaker=torch.tensor(speakers, dtype=torch.int64),
        labels=_labels([utterance.label for _, _, utterance in members], regression),
        ids=[(dialogues[d].id, utterance.id) for d, _, utterance in members],
    )


def _labels(labels: list[int | float | None], regression: bool) -> Tensor | None:
    if all(label is None for label in labels):
        return None
    if regression:
        return torch.tensor([float("nan") if label is None else label for label in labels], dtype=torch.float32)
    return torch.tensor([UNLABELLED if label is None else label for label in labels], dtype=torch.int64)


class DialogueBatches(Sampler[list[int]]):
    """Draws batches of dialogues of similar length, the same ones for the same (seed, epoch).

    A shuffled epoch cuts a permutation of the dialogues into pools of `POOL` batches, sorts each pool by number of
    utterances, cuts it into batches and shuffles these: little padding, and still different batches every epoch.

    Args:
        lengths: Utterances per dialogue.
        batch_size: Dialogues per batch, at most.
        shuffle: False keeps the order of the dialogues.
        seed: Together with the epoch it decides everything.
        max_utterances: Upper bound on the utterances of a batch, so that memory is bounded; a single dialogue longer
            than that is a batch of its own.
        weights: Per dialogue; a shuffled epoch then draws as many dialogues as there are, with replacement.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        max_utterances: int | None = None,
        weights: Tensor | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_utterances", max_utterances)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.max_utterances = max_utterances
        self.weights = weights
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose batches the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._batches())

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches())

    def _batches(self) -> list[list[int]]:
        order = list(range(len(self.lengths)))
        if self.shuffle:
            # a multiplier larger than any epoch number keeps (seed, epoch) pairs apart
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
            if self.weights is None:
                order = torch.randperm(len(order), generator=generator).tolist()
            else:
                order = torch.multinomial(self.weights, len(order), replacement=True, generator=generator).tolist()
            size = self.batch_size * POOL
            pools = [order[i : i + size] for i in range(0, len(order), size)]
            batches = [b for p in pools for b in self._cut(sorted(p, key=lambda i: self.lengths[i]))]
            return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        return self._cut(order)

    def _cut(self, order: Sequence[int]) -> list[list[int]]:
        batches: list[list[int]] = []
        used = 0
        for index in order:
            full = not batches or len(batches[-1]) == self.batch_size
            if full or (self.max_utterances is not None and used + self.lengths[index] > self.max_utterances):
                batches.append([])
                used = 0
            batches[-1].append(index)
            used += self.lengths[index]
        return batches


class ConversationLoader(DataLoader[Dialogue]):
    """A `DataLoader` that yields `Batch`es and whose epoch can be set."""

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch; call it before each training epoch, and again when training resumes."""
        cast(DialogueBatches, self.batch_sampler).set_epoch(epoch)


def make_loader(
    conversations: Conversations, batch_size: int, shuffle: bool, seed: int = 0, *, max_utterances: int | None = None
) -> ConversationLoader:
    """A loader of `Batch`es of whole dialogues, deterministic by (seed, epoch).

    Args:
        conversations: Loaded whole dialogue by whole dialogue.
        batch_size: Dialogues per batch.
        shuffle: Length-aware shuffling (see `DialogueBatches`); False keeps the order.
        seed: Seed of the shuffling.
        max_utterances: Upper bound on the utterances of a batch.
    """
    batches = DialogueBatches(
        [len(dialogue) for dialogue in conversations.dialogues],
        batch_size,
        shuffle=shuffle,
        seed=seed,
        max_utterances=max_utterances,
    )
    return ConversationLoader(
        conversations,
        batch_sampler=batches,
        collate_fn=partial(collate, modalities=conversations.modalities, regression=conversations.regression),
        # its own generator: a loader otherwise draws from torch's global one at every epoch, and evaluation
        # between epochs would change the training that follows
        generator=torch.Generator().manual_seed(seed),
    )


def present_modalities(batch: Batch, groups: dict[str, list[str]]) -> Tensor:
    """bool `(U, M)`, which modalities each utterance has: those with a token in any of their streams."""
    return torch.stack([torch.cat([batch.masks[s] for s in streams], 1).any(-1) for streams in groups.values()], -1)
