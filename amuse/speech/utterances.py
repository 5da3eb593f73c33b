"""Combines turns of speakers and recognised words into utterances."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from amuse.media.segments import LONGEST, PAUSE
from amuse.speech.speakers import SpeakerTurn
from amuse.speech.words import Word

WINDOW = 28.0
"""Seconds of sound that are recognised together; Whisper reads 30."""
LONGEST_STRETCH = 25.0
"""Seconds of one speaker's speech without a pause, so that it fits into a window."""
LONGEST_SILENCE = 2.0
"""Longer silences, in seconds, are not recognised: Whisper invents words there."""
STRAY = 0.5
"""Words further than this from any speech, in seconds, are taken as invented."""
LEAST_CONFIDENCE = 0.3
"""Turns whose words are less probable than this on average were invented by the recogniser, as it does for music."""
SENTENCE_END = (".", "?", "!", "…", "。", "？", "！")
SENTENCE_BONUS = 0.3
"""Seconds by which a change of speaker may be further away after a sentence than within one."""


@dataclass(frozen=True)
class SpokenUtterance:
    """The speech of one speaker between two pauses or changes of speaker.

    Attributes:
        start, end: Seconds.
        speaker: `"speaker 1"` for the first to speak, and so on.
        words: With their times in the recording.
    """

    start: float
    end: float
    speaker: str
    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        return "".join(word.text for word in self.words).strip()

    @property
    def confidence(self) -> float | None:
        """Mean probability of the words; None if the model does not give it."""
        return _confidence(self.words)


def join(turns: list[SpeakerTurn]) -> list[SpeakerTurn]:
    """Merge turns of one speaker that are less than `PAUSE` apart, up to `LONGEST_STRETCH`."""
    joined: list[SpeakerTurn] = []
    for turn in turns:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.speaker == turn.speaker
            and turn.start - last.end < PAUSE
            and turn.end - last.start <= LONGEST_STRETCH
        ):
            joined[-1] = last._replace(end=turn.end)
        else:
            joined.append(turn)
    return joined


def windows(turns: list[SpeakerTurn]) -> list[list[SpeakerTurn]]:
    """Groups of neighbouring turns that are recognised together: at most `WINDOW` long, without a long silence."""
    groups: list[list[SpeakerTurn]] = []
    for turn in turns:
        if groups and turn.end - groups[-1][0].start <= WINDOW and turn.start - groups[-1][-1].end <= LONGEST_SILENCE:
            groups[-1].append(turn)
        else:
            groups.append([turn])
    return groups


def assign(words: list[Word], turns: list[SpeakerTurn]) -> list[list[Word]]:
    """The words of each turn; the list is cut where times and sentences best match the change of turn.

    Made-up words are left out, see `STRAY` and `LEAST_CONFIDENCE`. Times of recognised words are off by a few tenths of
    a second, those of turns are not.
    """
    words = [word for word in words if _distance(word, turns) <= STRAY]
    cuts = [0]
    for before, after in pairwise(turns):
        change = (before.end + after.start) / 2
        places = range(cuts[-1], len(words) + 1)
        cuts.append(min(places, key=lambda place: _cost(words, place, change), default=len(words)))
    cuts.append(len(words))
    parts = [words[begin:end] for begin, end in pairwise(cuts)]
    return [part if _believable(part) else [] for part in parts]


def utterances(turns: list[SpeakerTurn], words: list[list[Word]]) -> list[SpokenUtterance]:
    """One utterance per turn, or several for a turn longer than `LONGEST`; turns without words are left out."""
    found = []
    for turn, said in zip(turns, words, strict=True):
        if said:
            found += _split(SpokenUtterance(turn.start, turn.end, f"speaker {turn.speaker + 1}", tuple(said)))
    return found


def _split(utterance: SpokenUtterance) -> list[SpokenUtterance]:
    """Split at the longest pauses, preferably after sentences, until no part is longer than `LONGEST`."""
    words = utterance.words
    if utterance.end - utterance.start <= LONGEST or len(words) < 2:
        return [utterance]

    def suitability(place: int) -> float:
        """Seconds of the pause, plus a bonus after a sentence, minus a penalty for distance from the middle."""
        middle = (utterance.start + utterance.end) / 2
        pause = words[place].start - words[place - 1].end
        off = abs(words[place].start - middle) / (utterance.end - utterance.start)
        return pause + SENTENCE_BONUS * _ends_sentence(words[place - 1]) - SENTENCE_BONUS * off

    place = max(range(1, len(words)), key=suitability)
    change = (words[place - 1].end + words[place].start) / 2
    change = min(max(change, utterance.start), utterance.end)
    first = SpokenUtterance(utterance.start, change, utterance.speaker, words[:place])
    second = SpokenUtterance(change, utterance.end, utterance.speaker, words[place:])
    return [*_split(first), *_split(second)]


def _cost(words: list[Word], place: int, change: float) -> float:
    """Distance in seconds of a cut before word number `place` from a change of speaker."""
    if not words:
        return 0.0
    before = words[place - 1].end if place else words[0].start
    after = words[place].start if place < len(words) else words[-1].end
    bonus = SENTENCE_BONUS if place and _ends_sentence(words[place - 1]) else 0.0
    return abs((before + after) / 2 - change) - bonus


def _confidence(words: Sequence[Word]) -> float | None:
    known = [word.probability for word in words if word.probability is not None]
    return float(np.mean(known)) if known else None


def _believable(words: Sequence[Word]) -> bool:
    confidence = _confidence(words)
    return confidence is None or confidence >= LEAST_CONFIDENCE


def _ends_sentence(word: Word) -> bool:
    return word.text.rstrip("\"'”’)").endswith(SENTENCE_END)


def _distance(word: Word, turns: list[SpeakerTurn]) -> float:
    """Seconds from a word to the nearest speech."""
    return min(max(turn.start - word.end, word.start - turn.end, 0.0) for turn in turns)
