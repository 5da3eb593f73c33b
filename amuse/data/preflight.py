"""A summary of a data set by split, and what looks wrong with it, before hours are spent on it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from amuse.data.conversation import Conversations
from amuse.data.speakers import folded
from amuse.data.transcript import UNKNOWN_SPEAKER

PERCENTILES = (10, 50, 90, 99)
RARE = 10
"""Classes with fewer training labels than this are hardly learned."""
SMALL = 300
"""A model of the default size memorises fewer labels than this; configs/small.yaml is for such data."""

EMPTY = {"nan", "none", "null", "n/a", "na", "-", "?", "unlabeled", "unlabelled"}
"""Labels that programs and annotators write for no label."""


@dataclass
class SplitSummary:
    """One split.

    Attributes:
        dialogues, utterances: Their numbers.
        labels: Class -> utterances; None for regression.
        labelled: Utterances with a label.
        speakers: Names, sorted; unknown ones left out.
        seconds: Percentile -> length of an utterance, where times are known.
        words: Percentile -> words of an utterance, where there are some.
    """

    dialogues: int
    utterances: int
    labels: dict[str, int] | None
    labelled: int
    speakers: list[str]
    seconds: dict[int, float]
    words: dict[int, float]

    @classmethod
    def of(cls, split: Conversations) -> Self:
        utterances = list(split.utterances())
        times = [u.end - u.start for u in utterances if u.start is not None and u.end is not None and u.end > u.start]
        names = split.label_names
        labels = None if names is None else dict(zip(names, split.class_counts().tolist(), strict=True))
        return cls(
            len(split),
            len(utterances),
            labels,
            sum(u.label is not None for u in utterances),
            sorted({u.speaker for u in utterances} - {UNKNOWN_SPEAKER}),
            _percentiles(times),
            _percentiles([len(u.text.split()) for u in utterances if u.text]),
        )


@dataclass
class Preflight:
    """All splits.

    Attributes:
        splits: Split -> what it holds.
        oddities: What to think about before training, in words.
    """

    splits: dict[str, SplitSummary]
    oddities: list[str]

    @classmethod
    def of(cls, splits: Mapping[str, Conversations], max_seconds: float | None = None) -> Self:
        """The summary of all splits of a data set.

        Args:
            splits: Those of "train", "valid" and "test" that exist.
            max_seconds: How much of an utterance is read; None = all of it.
        """
        summaries = {name: SplitSummary.of(split) for name, split in splits.items()}
        turns = Counter(u.speaker for split in splits.values() for u in split.utterances())
        del turns[UNKNOWN_SPEAKER]
        return cls(summaries, [*_oddities(summaries, max_seconds), *_odd_names(turns, summaries)])

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> str:
        """One line per number, one column per split; then the oddities."""
        parts = list(self.splits.values())
        rows = [["", *self.splits]]
        rows += [[name, *(str(getattr(part, name)) for part in parts)] for name in ("dialogues", "utterances")]
        classes = dict.fromkeys(label for part in parts for label in part.labels or ())
        rows += [[f"  {label}", *(str((part.labels or {}).get(label, 0)) for part in parts)] for label in classes]
        rows.append(["  without label", *(str(part.utterances - part.labelled) for part in parts)])
        rows.append(["speakers", *(str(len(part.speakers)) for part in parts)])
        title = "/".join(map(str, PERCENTILES)) + " %"
        for name in ("seconds", "words"):
            if any(getattr(part, name) for part in parts):
                values = ("/".join(f"{v:.3g}" for v in getattr(part, name).values()) or "-" for part in parts)
                rows.append([f"{name}, {title}", *values])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        return "\n".join([*lines, *(f"! {oddity}" for oddity in self.oddities)])


def check_scorable(splits: Mapping[str, Conversations]) -> None:
    """Refuse splits that could not be scored.

    Raises:
        ValueError: A split without a label.
    """
    for name, split in splits.items():
        if not any(utterance.label is not None for utterance in split.utterances()):
            raise ValueError(
                f"{name}: expected labelled utterances to train on and to score, got {split.num_utterances} without one"
            )


def _oddities(splits: dict[str, SplitSummary], max_seconds: float | None) -> list[str]:
    missing = [name for name in ("train", "valid", "test") if name not in splits]
    found = [f"no {name} split, which training and evaluation need" for name in missing]
    for name, part in splits.items():
        if not part.labelled:
            found.append(f"{name}: no labels; it cannot be {'learned from' if name == 'train' else 'scored'}")
        elif part.labelled < part.utterances / 2:
            found.append(f"{name}: {part.utterances - part.labelled} of {part.utterances} utterances have no label")
        if max_seconds is not None and part.seconds.get(90, 0) > max_seconds:
            found.append(f"{name}: a tenth of the utterances last longer than the {max_seconds:g} s that are read")
        if part.seconds and part.seconds[50] < 0.3:
            found.append(f"{name}: half of the utterances last under {part.seconds[50]:.2g} s; are the times right?")
    train = splits.get("train")
    if train is None:
        return found
    for label, count in (train.labels or {}).items():
        elsewhere = [name for name, part in splits.items() if name != "train" and (part.labels or {}).get(label)]
        if not count and elsewhere:
            found.append(f"class {label!r} is in {' and '.join(elsewhere)} and never in train")
        elif 0 < count < RARE:
            found.append(f"class {label!r} has {count} labels to learn from")
    if train.labels is not None and sum(count > 0 for count in train.labels.values()) == 1:
        found.append("train: a single class, so that there is nothing to tell apart")
    if 0 < train.labelled < SMALL:
        found.append(f"train: {train.labelled} labels are few: amuse train --config small has a model of that size")
    owners = Counter(speaker for part in splits.values() for speaker in part.speakers)
    shared = sorted(speaker for speaker, count in owners.items() if count > 1)
    if shared:
        who = f"{len(shared)} of {len(owners)} speakers"
        found.append(f"{who} are in several splits: {_some(shared)}; scores are of known voices")
    return found


def _odd_names(turns: Counter[str], splits: Mapping[str, SplitSummary]) -> list[str]:
    """Names that may be no name, or the same one."""
    found = []
    spellings: dict[str, list[str]] = {}
    for speaker in sorted(turns):
        spellings.setdefault(folded(speaker), []).append(speaker)
    same = [" and ".join(names) for names in spellings.values() if len(names) > 1]
    if same:
        found.append(f"speakers that differ in case only count as several: {_some(same)}")
    once = sorted(speaker for speaker, count in turns.items() if count == 1)
    if 0 < len(once) < len(turns) / 2:
        found.append(f"{len(once)} of {len(turns)} speakers have one utterance: {_some(once)}; are these names?")
    used = {label for part in splits.values() for label, count in (part.labels or {}).items() if count}
    empty = sorted(label for label in used if folded(label) in EMPTY)
    if empty:
        found.append(f"a class named {' or '.join(empty)}; utterances without a label have an empty cell")
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _percentiles(values: list[Any]) -> dict[int, float]:
    if not values:
        return {}
    return {p: float(v) for p, v in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)}
