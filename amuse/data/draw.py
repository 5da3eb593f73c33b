"""Splits drawn by conversation, and one spelling for each class, for data without either."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from amuse.data.problems import Problem, ProblemHandler
from amuse.data.speakers import folded

DRAWS = 200
"""Random draws of the splits, of which the one with the most similar splits is used."""


def draw_splits(labels: Sequence[Counter[str]], shares: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """Random splits of whole conversations; of many draws, the one whose splits have the most similar labels.

    Args:
        labels: How often each class occurs in each conversation.
        shares: Split -> its share of the conversations, at least one; the rest is "train".
        seed: Chooses them.

    Returns:
        Split -> indices of conversations, "train" first.

    Raises:
        ValueError: A share that is not between 0 and 0.5.
    """
    for split, share in shares.items():
        if not 0 < share < 0.5:
            raise ValueError(f"{split}_fraction: expected a number between 0 and 0.5, got {share}")
    rng = random.Random(seed)
    sizes = {split: max(round(share * len(labels)), 1) for split, share in shares.items()}

    def cut(order: list[int]) -> dict[str, list[int]]:
        parts, begin = {}, 0
        for split, size in sizes.items():
            parts[split] = order[begin : begin + size]
            begin += size
        return {"train": order[begin:], **parts}

    def unlikeness(order: list[int]) -> float:
        """Distance of the splits' class frequencies from the overall ones; more if a split lacks labels or classes."""
        every = sum(labels, Counter[str]())
        total = 0.0
        for split, members in cut(order).items():
            counts = sum((labels[i] for i in members), Counter[str]())
            weight, size = 3.0 if split == "train" else 1.0, counts.total()
            if not size:
                total += 10 * weight
                continue
            total += sum(abs(counts[label] / size - every[label] / every.total()) for label in every)
            total += weight * sum(not counts[label] for label in every) / len(every)
        return total

    return cut(min((rng.sample(range(len(labels)), len(labels)) for _ in range(DRAWS)), key=unlikeness))


def merge_spellings(counts: Counter[str], report: ProblemHandler) -> dict[str, str]:
    """Label -> its class, the most frequent spelling of labels that differ only in case; reports `same_class`."""
    spellings: dict[str, list[str]] = {}
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        spellings.setdefault(folded(label), []).append(label)
    for first, *others in spellings.values():
        if others:
            report(Problem("same_class", first, f"also spelled {', '.join(others)}"))
    return {label: same[0] for same in spellings.values() for label in same}
