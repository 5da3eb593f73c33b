"""Grouped cross-validation: a data set's dialogues divided into training, validation and test parts by groups.

Groups (dialogues, speakers, actors, ...) are never split, or the model would be tested on groups it was trained on.
The validation part is drawn from outside the test fold, so that no choice depends on it.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from amuse.data.conversation import Conversations


@dataclass
class Fold:
    """Ids of the dialogues of each part; every dialogue is in exactly one."""

    train: list[str]
    valid: list[str]
    test: list[str]


def cut_fold(groups: Mapping[str, str], folds: int, fold: int, grouping: int, valid_fraction: float) -> Fold:
    """One fold of a grouped cross-validation.

    Args:
        groups: Dialogue id -> its group.
        folds: Number of folds K, among which the groups are divided as evenly as possible.
        fold: The test fold, from 0 to K - 1.
        grouping: Seed of the order in which groups are assigned to folds.
        valid_fraction: Share of the other groups that is held out for validation, at least one group.

    Raises:
        ValueError: Fewer groups than folds, or no group left to train on.
    """
    names = sorted(set(groups.values()))
    if not 2 <= folds <= len(names) or not 0 <= fold < folds:
        raise ValueError(
            f"data.folds, data.fold: expected 2 to {len(names)} folds, as many as there are groups, and a fold below "
            f"that number, got {folds} and {fold}"
        )
    order = random.Random(grouping).sample(names, len(names))
    tested = set(order[fold::folds])
    rest = [name for name in order if name not in tested]
    # a draw per fold, so that the validation parts of different folds differ
    rest = random.Random(grouping * 1_000_003 + fold).sample(rest, len(rest))
    held_out = max(round(valid_fraction * len(rest)), 1)
    if held_out >= len(rest):
        raise ValueError(f"data.folds: expected at least two groups outside the test fold, got {len(rest)}")
    validated = set(rest[:held_out])
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for dialogue, group in groups.items():
        parts["test" if group in tested else "valid" if group in validated else "train"].append(dialogue)
    return Fold(**parts)


def cut_inner_fold(
    groups: Mapping[str, str], outer: Fold, folds: int, fold: int, grouping: int, valid_fraction: float
) -> Fold:
    """A fold of what is outside the test part of `outer`, which no inner fold has: for choices within that fold.

    Args:
        groups, grouping, valid_fraction: As for `cut_fold`, which cut `outer`.
        outer: A fold.
        folds, fold: Number of inner folds, and which of them is the inner test part.

    Raises:
        ValueError: As `cut_fold`.
    """
    tested = set(outer.test)
    return cut_fold({d: g for d, g in groups.items() if d not in tested}, folds, fold, grouping, valid_fraction)


def groups_of(columns: Mapping[str, Mapping[str, set[str]]], name: str) -> dict[str, str]:
    """Dialogue id -> group.

    Args:
        columns: Column -> dialogue id -> values of its utterances.
        name: A column.

    Raises:
        ValueError: No such column, or a dialogue with several values, which would have to be split.
    """
    if name not in columns:
        raise ValueError(f"data.groups: expected one of {', '.join(columns)}, got {name!r}")
    groups = {}
    for dialogue, values in columns[name].items():
        if len(values) > 1:
            several = ", ".join(sorted(values)[:3])
            raise ValueError(f"data.groups: {name!r} has several values in dialogue {dialogue!r} ({several})")
        groups[dialogue] = next(iter(values))
    return groups


def columns_of(conversations: Conversations) -> dict[str, dict[str, set[str]]]:
    """The columns that all conversations have: "dialogue" and "speaker"."""
    return {
        "dialogue": {dialogue.id: {dialogue.id} for dialogue in conversations.dialogues},
        "speaker": {dialogue.id: {u.speaker for u in dialogue.utterances} for dialogue in conversations.dialogues},
    }
