"""Subtitles: SubRip and WebVTT as people write them, and what pysubs2 reads (ASS, SSA, TTML).

pysubs2 reads SubRip and WebVTT too, but mistakes a last line of digits for the number of the next subtitle, and
WebVTT's notes and cue names for words. Of SAMI and MPL2 it guesses ends or frame rates, so these are not read.
"""

import html
import re
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from amuse.data.delimited import read_text
from amuse.data.fields import TranscriptRow
from amuse.data.problems import Problem, ProblemHandler
from amuse.data.speakers import SpeakerLine, speaker_lines

SUBRIP, WEBVTT = ".srt", ".vtt"
OTHERS = {".ass": "ass", ".ssa": "ssa", ".ttml": "ttml"}
"""Suffix -> pysubs2's name of the format."""
SHORTEST_ROLL, ROLLING = 4, 0.8
"""Captions roll if there are at least so many, and this share of them begins with the line before."""
_TIME = r"((?:\d+:)?\d{1,2}:\d{1,2}(?:[.,]\d{1,6})?)"
_ARROW = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s(.*))?")
_SETTINGS = re.compile(r"\s*(?:\w+:\S+\s*)*")
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")
_MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>|<\d[\d:.]*>|\{\\[^}]*\}")
_BLOCK = re.compile(r"(NOTE|STYLE|REGION|WEBVTT)(?=\s|$)")
_HEADER = re.compile(r"[A-Za-z-]+\s*[:=].*")
_BRACES = re.compile(r"\{[^\\}][^}]*\}")
_FIELDS = re.compile(r"(layer|marked),start,end,style,(name|actor),marginl,marginr,marginv,effect,text")
_CELLS = (
    r"(marked=)?\d+,\s*\d+:\d\d:\d\d\.\d+,\s*\d+:\d\d:\d\d\.\d+,[^,]*,[^,]*,\s*\d+,\s*\d+,\s*\d+,"
    r"\s*(!effect|karaoke|(scroll up|scroll down|banner);[^,]*)?\s*,"
)
_EVENT = re.compile(rf"(Dialogue|Comment)\s*:\s*{_CELLS}|(Picture|Sound|Movie|Command)\s*:|;|!:|\[", re.IGNORECASE)


def read_subtitles(path: Path, report: ProblemHandler) -> Iterator[TranscriptRow]:
    """The subtitles of a file in their order, with a speaker and a label where the words name them.

    Raises:
        ValueError: No subtitle, neither UTF-8 nor UTF-16, or a format that needs pysubs2, which is not installed.
    """
    text = read_text(path)
    if path.suffix.lower() in OTHERS:
        yield from _foreign(path, text, report)
        return
    lines = text.splitlines()
    arrows = [number for number, line in enumerate(lines) if "-->" in line]
    if not any(_ARROW.fullmatch(lines[number]) for number in arrows):
        raise ValueError(f"{path}: expected subtitles with times such as 00:00:01,000 --> 00:00:02,500, got none")
    cues = _webvtt(lines, arrows, path, report) if path.suffix.lower() == WEBVTT else _subrip(lines, arrows)
    if path.suffix.lower() == SUBRIP:
        before = [line for line in lines[: arrows[0]] if line.strip() and not line.strip().isdecimal()]
        if before:
            report(Problem("unused", f"{path.name}, line 1", f"text before the first times: {' '.join(before)[:60]!r}"))
    for number, words in _unrolled(list(cues), path, report):
        match = _ARROW.fullmatch(lines[number])
        # a line that is not a time is reported where times are checked
        start, end = (match[1], match[2]) if match else (lines[number].strip()[:40], "")
        if match and not _SETTINGS.fullmatch(match[3] or ""):
            report(Problem("unused", f"{path.name}, line {number + 1}", f"text after the times: {match[3][:60]!r}"))
        for part in _cue_lines(words):
            yield TranscriptRow(number + 1, start, end, part.speaker, part.words, part.label)


def _subrip(lines: list[str], arrows: list[int]) -> Iterator[tuple[int, list[str]]]:
    """The line number of each cue's times and the lines of words below, without the number of the next cue."""
    numbered = any(line.strip().isdecimal() for line in lines[: arrows[0]])
    last = next((int(line) for line in lines[: arrows[0]] if line.strip().isdecimal() and len(line) < 10), 0)
    for number, following in zip(arrows, [*arrows[1:], None], strict=True):
        words = lines[number + 1 : following]
        filled = [i for i, line in enumerate(words) if line.strip()]
        if following is not None and numbered and filled:
            digits = words[filled[-1]].strip()
            apart = filled[-1] == 0 or not words[filled[-1] - 1].strip()
            if digits.isdecimal() and len(digits) < 10 and (apart or int(digits) == last + 1):
                last, words = int(digits), words[: filled[-1]]
        yield number, words


def _webvtt(lines: list[str], arrows: list[int], path: Path, report: ProblemHandler) -> Iterator[tuple[int, list[str]]]:
    """The line number of each cue's times and the lines of words up to the next empty line."""
    marked = set(arrows)
    place = 0
    while place < len(lines):
        stop = next((i for i in range(place, len(lines)) if _ends_block(lines, i, marked)), len(lines))
        block = range(place, stop)
        times = [i for i in block if i in marked]
        for begin, end in pairwise((*times, stop)):
            yield begin, lines[begin + 1 : end]
        unread = [lines[i] for i in range(place, times[0] if times else stop)]
        header = bool(unread) and unread[0].split(maxsplit=1)[:1] == ["WEBVTT"]
        if header:
            title = unread[0].partition("WEBVTT")[2].strip()
            if title and not title.startswith("-"):
                report(Problem("unused", f"{path.name}, line {place + 1}", f"text behind WEBVTT: {title[:60]!r}"))
            unread = [line for line in unread[1:] if not _HEADER.fullmatch(line)]
            for line in lines[place:stop]:
                if line.startswith("X-TIMESTAMP-MAP"):  # of a segment of a stream
                    report(Problem("unused", path.name, f"{line[:80]}; times count from the recording's beginning"))
        named = len(unread) == 1 and times and not _BLOCK.match(unread[0])  # the name of the cue
        if unread and not (named and not header):
            kind = "unused" if _BLOCK.match(unread[0]) else "bad_row"
            report(Problem(kind, f"{path.name}, line {place + 1}", f"text without times: {' '.join(unread)[:60]!r}"))
        place = stop + 1


def _ends_block(lines: list[str], place: int, marked: set[int]) -> bool:
    """Whether a line is empty; one of spaces before words is inside of a cue, as YouTube writes."""
    following = place + 1
    if lines[place].strip():
        return False
    if not lines[place] or following == len(lines) or not lines[following].strip():
        return True
    return not marked.isdisjoint((following, following + 1)) or bool(_BLOCK.match(lines[following]))


def _unrolled(cues: list[tuple[int, list[str]]], path: Path, report: ProblemHandler) -> list[tuple[int, list[str]]]:
    """Captions without the lines that they repeat from the one before, if nearly all of them do, as YouTube's."""
    filled = [[i for i, line in enumerate(words) if _plain(line)] for _, words in cues]
    shown = [[_plain(words[i]) for i in places] for (_, words), places in zip(cues, filled, strict=True)]
    again = [bool(a and b) and a[-1] == b[0] for a, b in pairwise(shown)]
    # the same words in every caption are said again and again; those that roll have new ones below
    rolls = any(repeats and len(lines) > 1 for repeats, lines in zip(again, shown[1:], strict=True))
    if len(cues) < SHORTEST_ROLL or not rolls or sum(again) < ROLLING * len(again):
        return cues
    report(Problem("repeated", path.name, f"{sum(again)} of {len(cues)} captions begin with the line before"))
    found = cues[:1]
    for (number, words), places, repeats in zip(cues[1:], filled[1:], again, strict=True):
        if not repeats:
            found.append((number, words))
        elif len(places) > 1:
            found.append((number, words[places[0] + 1 :]))
    return found


def _foreign(path: Path, text: str, report: ProblemHandler) -> Iterator[TranscriptRow]:
    try:
        import pysubs2
    except ImportError:
        raise ValueError(f"{path}: reading it needs pysubs2: pip install amuse-kernels[media]") from None
    form = OTHERS[path.suffix.lower()]
    try:
        with warnings.catch_warnings(action="ignore"):  # about margins and layers
            events = pysubs2.SSAFile.from_string(text, format_=form).events
    except Exception as error:  # errors of many kinds, by format
        raise ValueError(f"{path}: expected subtitles of the format {form}: {error!r}") from None
    if form in ("ass", "ssa"):
        _name_what_is_no_event(path, text, len(events), report)
    comments = sum(event.is_comment for event in events)
    if comments:
        report(Problem("unused", path.name, f"{comments} comments"))
    braces = sum(bool(_BRACES.search(event.text)) for event in events)
    if braces:
        report(Problem("unused", path.name, f"text in braces, which is a comment, in {braces} subtitles"))
    events = [event for event in events if not event.is_comment]
    if not events:
        raise ValueError(f"{path}: expected subtitles, got none")
    for number, event in enumerate(events, 1):
        for part in _named_lines(event.name, event.plaintext.splitlines()):
            yield TranscriptRow(number, event.start / 1000, event.end / 1000, part.speaker, part.words, part.label)


def _name_what_is_no_event(path: Path, text: str, count: int, report: ProblemHandler) -> None:
    """Report the lines of ASS that pysubs2 skips silently."""
    lines = text.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.strip().lower() == "[events]"), len(lines))
    events = [line for line in lines[begin:] if re.match(r"\s*(Dialogue|Comment)\s*:", line)]
    for number, line in enumerate(lines[begin + 1 :], begin + 2):
        if line.strip().lower().startswith("format"):
            fields = "".join(line.partition(":")[2].lower().split())
            if not _FIELDS.fullmatch(fields):  # which pysubs2 assumes
                expected = "Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text"
                raise ValueError(f"{path}, line {number}: expected Format: {expected}, got {line[:160]!r}")
        elif line.strip() and not _EVENT.match(line.strip()):
            report(Problem("bad_row", f"{path.name}, line {number}", f"expected Dialogue: ..., got {line[:60]!r}"))
    if len(events) != count:
        report(Problem("bad_row", path.name, f"{len(events)} lines of dialogue, of which {count} can be read"))


def _cue_lines(lines: list[str]) -> list[SpeakerLine]:
    """The words without markup; a WebVTT voice is a speaker."""
    text = "\n".join(lines)
    voices = list(_VOICE.finditer(text))
    if not voices:
        return speaker_lines([_plain(line) for line in lines])
    before = _plain(text[: voices[0].start()])
    parts = [SpeakerLine("", "", before)] if before else []
    for voice, stop in zip(voices, [*(v.start() for v in voices[1:]), len(text)], strict=True):
        parts += _named_lines(_plain(voice[1]), text[voice.end() : stop].splitlines())
    return parts


def _named_lines(name: str, lines: list[str]) -> list[SpeakerLine]:
    """The words of a speaker who is named apart from them, also as `Ann (angry)`; others only if several are named."""
    parts = speaker_lines([_plain(line) for line in lines])
    if not name.strip() or len(parts) > 1:
        return parts
    named = speaker_lines([f"{name}: -"])[0]
    speaker, label = (named.speaker, named.label) if named.words == "-" and named.speaker else (name, "")
    if parts[0].speaker not in ("", speaker):
        parts = [SpeakerLine("", "", " ".join(filter(None, map(_plain, lines))))]
    return [SpeakerLine(speaker, label or parts[0].label, parts[0].words)]


def _plain(text: str) -> str:
    return " ".join(html.unescape(_MARKUP.sub("", text)).split())
