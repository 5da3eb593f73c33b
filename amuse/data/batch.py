"""Packed batches of whole dialogues: utterances, and their tokens, follow each other without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from amuse.data.conversation import TOKEN_IDS, Conversations, Dialogue
from amuse.layout import Layout, Merge, Steps, grouped_steps, map_steps

UNLABELLED = -100
"""The class index of an utterance without a label, which every loss and metric leaves out."""

POOL = 16  # batches that are drawn and sorted by length together
T = TypeVar("T")
WINDOW = 16  # blocks of neighbouring dialogues among which `DialogueBatches` shuffles


@dataclass
class Batch:
    """The utterances of several dialogues, one after the other, and their tokens, packed: nothing is padded.

    U counts the utterances of all dialogues, T_m the tokens of modality m. Everything that follows from dialogues,
    speakers and lengths is computed here, once and on the host, so that later code never waits for a device.

    Attributes:
        tokens: Modality -> `(T_m, d_m)` float32 features, or `(T_m,)` int64 token ids, of all utterances in order.
        layouts: Modality -> the tokens of each utterance; an utterance without a token lacks the modality.
        dialogues: The utterances of each dialogue.
        speaker: int64 `(U,)`, speaker index inside the dialogue, by order of appearance.
        turns: The utterances of each speaker of each dialogue, as the steps of an LSTM.
        labels: int64 `(U,)` with -100 = unlabelled, or for regression float32 with NaN = unlabelled; None when no
            utterance of the batch has a label.
        ids: (dialogue id, utterance id) of every utterance.
        merges: Streams -> how they become the tokens of one modality; see `merge`.
    """

    tokens: dict[str, Tensor]
    layouts: dict[str, Layout]
    dialogues: Layout
    speaker: Tensor
    turns: Steps
    labels: Tensor | None
    ids: list[tuple[str, str]]
    merges: dict[tuple[str, ...], Merge] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        tokens: dict[str, Tensor],
        lengths: dict[str, Tensor],
        dialogue_lengths: Tensor | Sequence[int],
        speaker: Tensor,
        labels: Tensor | None = None,
        ids: list[tuple[str, str]] | None = None,
    ) -> Batch:
        """A batch of packed tokens on the host.

        Args:
            tokens, speaker, labels, ids: As for `Batch`.
            lengths: Modality -> int64 `(U,)`, tokens of each utterance.
            dialogue_lengths: Utterances of each dialogue.
        """
        dialogues = Layout.of(dialogue_lengths)
        turns = grouped_steps(dialogues.row * (speaker.max() + 1) + speaker)
        layouts = {name: Layout.of(each) for name, each in lengths.items()}
        return cls(tokens, layouts, dialogues, speaker, turns, labels, ids or [])

    @classmethod
    def of_padded(
        cls,
        features: dict[str, Tensor],
        masks: dict[str, Tensor],
        dialogue_lengths: Tensor | Sequence[int],
        speaker: Tensor,
        labels: Tensor | None = None,
        ids: list[tuple[str, str]] | None = None,
    ) -> Batch:
        """A batch of padded utterances, on their device, where the lengths are read back once.

        Args:
            features: Modality -> `(U, L_m, d_m)` or `(U, L_m)`; what is in the padding does not matter.
            masks: Modality -> bool `(U, L_m)`, True = token.
            dialogue_lengths, speaker, labels, ids: As for `of`.
        """
        tokens = {name: padded[masks[name]] for name, padded in features.items()}
        lengths = {name: mask.sum(1).cpu() for name, mask in masks.items()}
        batch = cls.of(tokens, lengths, dialogue_lengths, speaker.cpu(), labels, ids)
        return batch.to(speaker.device)

    def __len__(self) -> int:
        return self.dialogues.num_tokens

    @property
    def num_dialogues(self) -> int:
        return len(self.dialogues.lengths)

    @property
    def dialogue(self) -> Tensor:
        """int64 `(U,)`, which dialogue of the batch, non-decreasing from 0."""
        return self.dialogues.row

    @property
    def position(self) -> Tensor:
        """int64 `(U,)`, index of the utterance in its dialogue."""
        return self.dialogues.position

    def padded(self, name: str) -> tuple[Tensor, Tensor]:
        """A modality's tokens as `(U, L, ...)`, 0 where padded, and their bool mask `(U, L)`; L is at least 1."""
        tokens, layout = self.tokens[name], self.layouts[name]
        shape = len(self), max(layout.max_len, 1)
        mask = torch.zeros(shape, dtype=torch.bool, device=tokens.device)
        mask[layout.row, layout.position] = True
        padded = tokens.new_zeros(*shape, *tokens.shape[1:])
        padded[layout.row, layout.position] = tokens
        return padded, mask

    def with_tokens(self, tokens: dict[str, Tensor], lengths: dict[str, Tensor]) -> Batch:
        """This batch, on the host, with other tokens in some modalities, arguments as for `of`."""
        layouts = {name: Layout.of(each) for name, each in lengths.items()}
        return replace(self, tokens={**self.tokens, **tokens}, layouts={**self.layouts, **layouts}, merges={})

    def merge(self, streams: Sequence[str]) -> Merge:
        """The merge of several streams into the tokens of one modality; computed on first use, best on the host."""
        key = tuple(streams)
        if key not in self.merges:
            device = self.layouts[key[0]].row.device
            self.merges[key] = Merge.of([self.layouts[name] for name in key]).map(lambda tensor: tensor.to(device))
        return self.merges[key]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """This batch on `device`, except for tensors that are needed on the host."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """This batch in page-locked memory; the data loader calls it when asked to pin."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, convert: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            tokens={m: convert(x) for m, x in self.tokens.items()},
            layouts={m: layout.map(convert) for m, layout in self.layouts.items()},
            dialogues=self.dialogues.map(convert),
            speaker=convert(self.speaker),
            turns=map_steps(self.turns, convert),
            labels=None if self.labels is None else convert(self.labels),
            merges={streams: merge.map(convert) for streams, merge in self.merges.items()},
        )


def collate(dialogues: Sequence[Dialogue], modalities: dict[str, int], regression: bool = False) -> Batch:
    """Puts whole dialogues into one batch.

    Args:
        dialogues: At least one.
        modalities: Modality -> feature width (0 = token ids); modalities of the dialogues that are not named here
            are left out.
        regression: Whether labels are numbers instead of classes.

    Raises:
        ValueError: No dialogue, or one without an utterance.
    """
    if not dialogues:
        raise ValueError("dialogues: expected at least one dialogue, got none")
    for dialogue in dialogues:
        if not dialogue.utterances:
            raise ValueError(f"dialogue {dialogue.id!r}: expected at least one utterance, got none")
    utterances = [utterance for dialogue in dialogues for utterance in dialogue.utterances]

    tokens, lengths = {}, {}
    for modality, width in modalities.items():
        ids = width == TOKEN_IDS
        nothing = torch.zeros((0,) if ids else (0, width), dtype=torch.int64 if ids else torch.float32)
        streams = [utterance.features.get(modality, nothing) for utterance in utterances]
        tokens[modality] = torch.cat([nothing, *streams]).to(nothing.dtype)
        lengths[modality] = torch.tensor([len(stream) for stream in streams], dtype=torch.int64)

    speakers: list[int] = []
    for dialogue in dialogues:
        order = {name: i for i, name in enumerate(dict.fromkeys(u.speaker for u in dialogue.utterances))}
        speakers.extend(order[utterance.speaker] for utterance in dialogue.utterances)

    return Batch.of(
        tokens,
        lengths,
        [len(dialogue) for dialogue in dialogues],
        torch.tensor(speakers, dtype=torch.int64),
        label_tensor([utterance.label for utterance in utterances], regression),
        [(dialogue.id, utterance.id) for dialogue in dialogues for utterance in dialogue.utterances],
    )


def label_tensor(labels: list[int | float | None], regression: bool) -> Tensor | None:
    """Labels of utterances as in `Batch`, those of unlabelled ones NaN or `UNLABELLED`; None if none has a label."""
    if all(label is None for label in labels):
        return None
    if regression:
        return torch.tensor([float("nan") if label is None else label for label in labels], dtype=torch.float32)
    return torch.tensor([UNLABELLED if label is None else label for label in labels], dtype=torch.int64)


class DialogueBatches(Sampler[list[int]]):
    """Draws batches of dialogues of similar length, the same ones for the same (seed, epoch).

    A shuffled epoch divides a permutation of the dialogues into pools of `POOL` batches, sorts each pool by number of
    utterances, divides it into batches and shuffles these: processes and micro-batches that share a batch get about
    equal parts, and batches still differ in every epoch.

    Args:
        lengths: Utterances per dialogue.
        batch_size: Dialogues per batch, at most.
        shuffle: False keeps the order of the dialogues.
        seed: Seed, together with the epoch.
        max_utterances: Upper bound on the utterances of a batch, so that memory is bounded; a single dialogue longer
            than that is a batch of its own.
        tokens: Tokens of all modalities per dialogue.
        max_tokens: The same bound on the tokens of a batch, on which memory and time depend; needs `tokens`.
        weights: Per dialogue; a shuffled epoch then draws as many dialogues as there are, with replacement.
        block: 0 shuffles all dialogues. Above 0, for stores where reading in order is much faster: blocks of this many
            neighbours are drawn, `WINDOW` of them at a time, and only the dialogues of these are shuffled together.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        max_utterances: int | None = None,
        tokens: Sequence[int] | None = None,
        max_tokens: int | None = None,
        weights: Tensor | None = None,
        block: int = 0,
    ) -> None:
        if block < 0 or (block and weights is not None):
            raise ValueError(f"block: expected 0, or above 0 without weights, got {block}")
        limits = {"batch_size": batch_size, "max_utterances": max_utterances, "max_tokens": max_tokens}
        for name, value in limits.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if max_tokens is not None and tokens is None:
            raise ValueError("tokens: expected the tokens of each dialogue, which max_tokens bounds, got None")
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.budgets = [
            (limit, sizes)
            for limit, sizes in ((max_utterances, self.lengths), (max_tokens, tokens))
            if limit is not None and sizes is not None
        ]
        self.weights = weights
        self.block = block
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose batches the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._batches())

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches())

    def shares(self, rank: int, size: int) -> list[list[int]]:
        """The dialogues of every batch that are those of process `rank` out of `size`."""
        # a batch is sorted by length, so strides of it have about the same number of utterances
        return [batch[rank::size] for batch in self._batches()]

    def _batches(self) -> list[list[int]]:
        order = list(range(len(self.lengths)))
        if self.shuffle:
            generator = self._generator()
            if self.weights is not None:
                drawn = torch.multinomial(self.weights, len(order), replacement=True, generator=generator).tolist()
                return self._shuffled(drawn, generator)
            windows = [order] if not self.block else self._windows(generator)
            return [batch for window in windows for batch in self._shuffled(permuted(window, generator), generator)]
        return self._cut(order)

    def _generator(self) -> torch.Generator:
        # a multiplier larger than any epoch number keeps (seed, epoch) pairs apart
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)

    def _blocks(self) -> list[list[int]]:
        count = len(self.lengths)
        return [list(range(i, min(i + self.block, count))) for i in range(0, count, self.block)]

    def _windows(self, generator: torch.Generator) -> list[list[int]]:
        """Dialogues that are shuffled together: blocks in a random order, `WINDOW` at a time."""
        blocks = permuted(self._blocks(), generator)
        return [[i for block in blocks[w : w + WINDOW] for i in block] for w in range(0, len(blocks), WINDOW)]

    def _shuffled(self, order: list[int], generator: torch.Generator) -> list[list[int]]:
        """Batches of similar lengths from dialogues in a random order."""
        size = self.batch_size * POOL
        pools = [order[i : i + size] for i in range(0, len(order), size)]
        return permuted([b for p in pools for b in self._cut(sorted(p, key=lambda i: self.lengths[i]))], generator)

    def _cut(self, order: Sequence[int]) -> list[list[int]]:
        batches: list[list[int]] = []
        used = [0] * len(self.budgets)
        for index in order:
            sizes = [each[index] for _, each in self.budgets]
            over = any(
                before + size > limit for before, size, (limit, _) in zip(used, sizes, self.budgets, strict=True)
            )
            if over or not batches or len(batches[-1]) == self.batch_size:
                batches.append([])
                used = [0] * len(self.budgets)
            batches[-1].append(index)
            used = [before + size for before, size in zip(used, sizes, strict=True)]
        return batches


def permuted(items: list[T], generator: torch.Generator) -> list[T]:
    """The items in an order that the generator draws."""
    return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]


class ConversationLoader(DataLoader[Dialogue]):
    """A `DataLoader` that yields `Batch`es and whose epoch can be set."""

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch; call it before each training epoch, and again when training resumes."""
        cast(DialogueBatches, self.batch_sampler).set_epoch(epoch)


def make_loader(conversations: Conversations, batch_size: int, shuffle: bool, seed: int = 0) -> ConversationLoader:
    """A loader of `Batch`es of whole dialogues, deterministic by (seed, epoch).

    Args:
        conversations: Loaded whole dialogue by whole dialogue.
        batch_size: Dialogues per batch.
        shuffle: Length-aware shuffling (see `DialogueBatches`); False keeps the order.
        seed: Seed of the shuffling.
    """
    lengths = [len(dialogue) for dialogue in conversations.dialogues]
    batches = DialogueBatches(lengths, batch_size, shuffle=shuffle, seed=seed)
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
    groups_of = [[batch.layouts[s].present for s in streams] for streams in groups.values()]
    columns = [own[0] if len(own) == 1 else torch.stack(own).any(0) for own in groups_of]
    return torch.stack(columns, -1)
