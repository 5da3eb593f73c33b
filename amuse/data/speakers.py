"""Who speaks a line of subtitles: `Ann: words`, `[Ann]: words`, `- Ann: words`, `Ann (angry): words`, `Ann : mots`."""

import re
import unicodedata
from itertools import pairwise
from typing import NamedTuple

LONGEST_NAME = 4
"""The most words before a colon that count as a name; with more, they are part of the utterance."""
_QUOTES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "\u00a0": " ", "\u202f": " "})
# letters with their combining marks, which \w lacks: Devanagari, Tamil, Bengali, Thai
_NAME = r"[^\W\d_][^:\uff1a()\[\]!?;,\u201c\u201d\"<>{}]{0,40}?"
_NAMED = re.compile(
    rf"(?:\[(?P<bracketed>{_NAME})\]|(?P<name>{_NAME}))"
    r"(?P<remarks>(?:\s*(?:\([^()]{1,40}\)|\[[^\[\]]{1,40}\]))*)\s*(?::(?=\s|$)|\uff1a)\s*(?P<words>.*)",
    re.DOTALL,
)
_DIARIZED = re.compile(r"\[?(?P<name>SPEAKER_\d+)\]?\s*[:\uff1a]?\s+(?P<words>.*)", re.DOTALL)
_REMARK = re.compile(r"[(\[]([^()\[\]]*)[)\]]")
# voice over, off screen, off camera, continued: about the picture, not about the speaker
_STAGE = re.compile(
    r"v\.?\s*o\.?|o\.?\s*[sc]\.?|cont(['\u2019]?d|inued)\.?|off([- ]?(screen|camera))?|voice[- ]?over", re.I
)
_DASH = re.compile(r"^\s*(?:[-\u2010-\u2015]|>>+)\s*")


class SpeakerLine(NamedTuple):
    """Words and, where given, their speaker and label; empty otherwise."""

    speaker: str
    label: str
    words: str


def speaker_name(name: str) -> str:
    """One spelling of a name: composed characters, straight apostrophes, single spaces."""
    return " ".join(unicodedata.normalize("NFC", name).translate(_QUOTES).split())


def folded(name: str) -> str:
    """A name to compare by, without regard to case and to how accents are composed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def speaker_lines(lines: list[str]) -> list[SpeakerLine]:
    """The speakers and words of one subtitle.

    It has several speakers if its lines begin with dashes and one of them with a name behind it, or if the first line
    begins with a name and others with a capitalised one.
    """
    lines = [line.strip() for line in lines if line.strip()]
    parts = [_speaker_line(_DASH.sub("", line)) for line in lines]
    dashes = [i for i, line in enumerate(lines) if _DASH.match(line)]
    begins = [0]
    if len(dashes) > 1 and dashes[0] == 0:
        begins = dashes if any(parts[i].speaker for i in dashes) else []
    elif parts and parts[0].speaker:
        begins = [i for i, part in enumerate(parts) if i == 0 or _capitalised(part.speaker)]
    if not begins:
        return [_speaker_line(" ".join(lines))]
    return [_speaker_line(_DASH.sub("", " ".join(lines[a:b]))) for a, b in pairwise((*begins, len(lines)))]


def _capitalised(name: str) -> bool:
    """Whether no word of a name begins with a small letter; there are none in many scripts."""
    return bool(name) and not any(word[0].islower() for word in name.split())


def _speaker_line(words: str) -> SpeakerLine:
    match = _NAMED.fullmatch(words)
    if match is not None:
        name = match["bracketed"] or match["name"]
        if len(name.split()) <= LONGEST_NAME:
            remarks = (remark.strip() for remark in _REMARK.findall(match["remarks"]))
            labels = [remark for remark in remarks if remark and not _STAGE.fullmatch(remark)]
            # several remarks are not a single label; they stay with the words
            kept = "".join(f"({label}) " for label in labels) if len(labels) > 1 else ""
            return SpeakerLine(name.strip(), labels[0] if len(labels) == 1 else "", kept + match["words"].strip())
    match = _DIARIZED.fullmatch(words)
    return SpeakerLine("", "", words) if match is None else SpeakerLine(match["name"], "", match["words"].strip())
