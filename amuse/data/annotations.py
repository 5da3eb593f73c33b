"""Annotations of recordings: ELAN (.eaf), Praat TextGrid, and RTTM, which says who speaks when without words."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from amuse.data.delimited import read_text
from amuse.data.fields import TranscriptRow, is_label
from amuse.data.problems import Problem, ProblemHandler


@dataclass
class Tier:
    """A row of annotations, each `(place, start, end, text)` in seconds."""

    name: str
    speaker: str
    marks: list[tuple[int, float, float, str]] = field(default_factory=list)


def read_rttm(path: Path, report: ProblemHandler) -> Iterator[TranscriptRow]:
    """Turns without words: `SPEAKER file 1 0.00 2.40 <NA> <NA> Ann <NA> <NA>`.

    Of several recordings in a file, only those lines are used that name the file itself.
    """
    lines = read_text(path).splitlines()
    recordings = {cells[1] for line in lines if (cells := line.split())[:1] == ["SPEAKER"] and len(cells) > 1}
    others = sorted(recordings - {path.stem}) if len(recordings) > 1 else []
    if others:
        report(Problem("unused", path.name, f"turns of other recordings: {', '.join(others)[:200]}"))
    for number, line in enumerate(lines, 1):
        cells = line.split()
        if not cells or line.startswith(";;"):
            continue
        place = f"{path.name}, line {number}"
        if cells[0] != "SPEAKER":
            report(Problem("unused", place, f"a line of the type {cells[0][:20]!r}"))
            continue
        if len(cells) < 8:
            report(Problem("bad_row", place, f"expected at least 8 cells, got {len(cells)}: {line[:60]!r}"))
            continue
        if cells[1] in others:
            continue
        try:
            start, duration = float(cells[3]), float(cells[4])
        except ValueError:
            report(Problem("bad_row", place, f"expected begin and duration in seconds, got {cells[3]!r}, {cells[4]!r}"))
            continue
        yield TranscriptRow(number, start, start + duration, "" if cells[7] == "<NA>" else cells[7])


def read_textgrid(path: Path, report: ProblemHandler) -> Iterator[TranscriptRow]:
    """Praat's text format, long or short: a tier is a speaker, or holds labels if named `emotion` or `label`.

    Raises:
        ValueError: Not a TextGrid.
    """
    text = read_text(path)
    if "TextGrid" not in text[:200]:
        raise ValueError(f"{path}: expected a Praat TextGrid as text (ooTextFile), got something else")
    try:
        tiers = _textgrid_tiers(path, text, report)
    except (StopIteration, ValueError, OverflowError):
        raise ValueError(
            f"{path}: the TextGrid ends early or has something else where a number or text belongs"
        ) from None
    return _labelled(tiers, path, report)


# free-standing numbers and quoted text count, as in Praat itself; everything else is a comment
_TOKEN = re.compile(r'"((?:[^"]|"")*)"|(?<!\S)([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)(?!\S)')


def _textgrid_tiers(path: Path, text: str, report: ProblemHandler) -> list[Tier]:
    tokens = iter(_TOKEN.findall(text))

    def number() -> float:
        return float(next(tokens)[1])

    def words() -> str:
        quoted, free = next(tokens)
        if free:
            raise ValueError(free)
        return str(quoted).replace('""', '"').strip()

    words(), words(), number(), number()
    tiers = []
    for _ in range(int(number())):
        kind, name = words(), words()
        number(), number()
        tier = Tier(name, name)
        for place in range(1, int(number()) + 1):
            if kind == "IntervalTier":
                start, end, mark = number(), number(), words()
                if mark:
                    tier.marks.append((place, start, end, mark))
            else:
                number(), words()
        if kind == "IntervalTier":
            tiers.append(tier)
        else:
            report(Problem("unused", path.name, f"tier {name!r} has points, not intervals"))
    rest = [quoted or free for quoted, free in tokens]
    if rest:
        report(Problem("unused", path.name, f"text behind the last tier: {' '.join(rest)[:60]!r}"))
    return tiers


def read_elan(path: Path, report: ProblemHandler) -> Iterator[TranscriptRow]:
    """ELAN's XML: a top-level tier is a speaker, named by its PARTICIPANT or its id.

    Tiers named `emotion` or `label`, at the top level or dependent, label the utterances at their times; other
    dependent tiers are not used.

    Raises:
        ValueError: Not ELAN's XML.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path}: expected ELAN's XML: {error}") from None
    if root.tag != "ANNOTATION_DOCUMENT":
        raise ValueError(f"{path}: expected ELAN's ANNOTATION_DOCUMENT, got {root.tag[:40]!r}")
    slots: dict[str, float] = {}
    for slot in root.iter("TIME_SLOT"):
        value = slot.get("TIME_VALUE") or ""
        if value.isdecimal() and len(value) < 12:
            slots[slot.get("TIME_SLOT_ID") or ""] = int(value) / 1000
    annotations = {each.get("ANNOTATION_ID"): each for each in root.iterfind("TIER/ANNOTATION/*")}
    tiers = []
    for element in root.iter("TIER"):
        name = element.get("TIER_ID") or ""
        tier = Tier(name, element.get("PARTICIPANT") or name)
        labels = is_label(name) or is_label(element.get("LINGUISTIC_TYPE_REF") or "")
        for place, annotation in enumerate(element.iterfind("ANNOTATION/*"), 1):
            text = " ".join((annotation.findtext("ANNOTATION_VALUE") or "").split())
            timed = _timed(annotation, annotations)
            start, end = (slots.get(timed.get(f"TIME_SLOT_REF{i}") or "") for i in (1, 2))
            if start is None or end is None:
                report(
                    Problem("bad_row", f"{path.name}, tier {name}", f"annotation {place} has no times: {text[:40]!r}")
                )
                continue
            tier.marks.append((place, start, end, text))
        if element.get("PARENT_REF") and not labels:
            report(Problem("unused", path.name, f"tier {name!r} depends on {element.get('PARENT_REF')!r}"))
        elif tier.marks:
            tiers.append(Tier(f"label {name}" if labels else name, tier.speaker, tier.marks))
    return _labelled(tiers, path, report)


def _timed(annotation: ElementTree.Element, annotations: dict[str | None, ElementTree.Element]) -> ElementTree.Element:
    """The annotation that has the times of this one: the one that it refers to in the end, in whichever tier."""
    for _ in range(len(annotations)):  # at most, also where they refer to each other in a circle
        reference = annotation.get("ANNOTATION_REF")
        if reference is None or reference not in annotations:
            break
        annotation = annotations[reference]
    return annotation


def _labelled(tiers: list[Tier], path: Path, report: ProblemHandler) -> Iterator[TranscriptRow]:
    """The annotations of all speakers, each with the label that covers most of it; unmatched labels are reported."""
    labels = [tier for tier in tiers if is_label(tier.name)]
    spoken = [tier for tier in tiers if not is_label(tier.name)]
    used: set[tuple[int, int]] = set()
    number = 0
    for tier in spoken:
        # a tier of labels belongs to the speaker that it names, or to all
        own = [i for i, other in enumerate(labels) if tier.speaker in (other.speaker, _rest(other.name))]
        shared = [i for i, other in enumerate(labels) if not any(_names(other, each) for each in spoken)]
        for _, start, end, text in tier.marks:
            number += 1
            best = (0.0, "")
            for i in own or shared:
                for j, (_, begin, stop, label) in enumerate(labels[i].marks):
                    common = min(end, stop) - max(start, begin)
                    if common > 0:
                        used.add((i, j))
                        best = max(best, (common, label), key=lambda pair: pair[0])
            yield TranscriptRow(number, start, end, tier.speaker, text, best[1])
    for i, tier in enumerate(labels):
        for j, (place, _, _, label) in enumerate(tier.marks):
            if (i, j) not in used and label:
                message = f"label {label[:40]!r} ({place}) overlaps no utterance"
                report(Problem("unused", f"{path.name}, tier {tier.name.removeprefix('label ')}", message))


def _rest(name: str) -> str:
    """ "Ann" of "emotion_Ann", "Ann_emotion" or "label emotion@Ann"."""
    return "".join(part for part in re.split(r"[\W_]+", name) if not is_label(part))


def _names(labels: Tier, other: Tier) -> bool:
    return other.speaker in (labels.speaker, _rest(labels.name))
