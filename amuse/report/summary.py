"""The summary at the top of a report: each speaker's main emotions, their changes, and the model's confidence."""

from dataclasses import dataclass
from statistics import fmean

from amuse.data.clock import clock
from amuse.report.content import Turn
from amuse.report.outcome import Outcome, number

SURE, UNSURE = 70, 50  # per cent, of the predicted class
SHOWN_CHANGES = 8


@dataclass(frozen=True)
class Share:
    """Part of a speaker's utterances that were predicted to be one emotion: a number of them and a share of all."""

    emotion: str
    fill: str
    count: int
    share: float


@dataclass(frozen=True)
class SpeakerSummary:
    """One speaker: number of utterances, seconds of speech (None without times), and shares, the largest first."""

    name: str
    utterances: int
    seconds: float | None
    shares: list[Share]
    sentence: str


@dataclass(frozen=True)
class Change:
    """The number of an utterance whose emotion differs from that of the speaker's previous one."""

    number: int
    when: str
    speaker: str
    before: str
    after: str


@dataclass(frozen=True)
class Summary:
    """The content of the summary; `changes` are the most confident ones, in their order."""

    speakers: list[SpeakerSummary]
    changes: list[Change]
    more_changes: int
    sureness: str


def summarize(turns: list[Turn], outcome: Outcome) -> Summary:
    """The summary of a conversation; each turn counts with its predicted class."""
    names = list(dict.fromkeys(turn.utterance.speaker for turn in turns))
    changes = _changes(turns, outcome)
    surest = sorted(changes, key=lambda c: -float(turns[c.number - 1].explanation.probabilities.max()))
    shown = sorted(surest[:SHOWN_CHANGES], key=lambda c: c.number)
    return Summary(
        speakers=[_speaker(name, [t for t in turns if t.utterance.speaker == name], outcome) for name in names],
        changes=shown,
        more_changes=len(changes) - len(shown),
        sureness=_sureness(turns, outcome),
    )


def _speaker(name: str, turns: list[Turn], outcome: Outcome) -> SpeakerSummary:
    spans = [(turn.utterance.start, turn.utterance.end) for turn in turns]
    lengths = [end - start for start, end in spans if start is not None and end is not None]
    seconds = sum(lengths) if len(lengths) == len(turns) else None
    if outcome.names is None:
        values = [float(turn.explanation.probabilities[0]) for turn in turns]
        sentence = f"{number(fmean(values))} on average, from {number(min(values))} to {number(max(values))}"
        return SpeakerSummary(name, len(turns), seconds, [], sentence)
    predicted = [outcome.name(turn.explanation.probabilities) for turn in turns]
    counts = {emotion: predicted.count(emotion) for emotion in dict.fromkeys(predicted)}
    ranked = sorted(counts, key=lambda emotion: -counts[emotion])
    shares = [Share(e, outcome.colours[outcome.names.index(e)], counts[e], counts[e] / len(turns)) for e in ranked]
    first = shares[0]
    if len(shares) > 1 and shares[1].count == first.count:
        tied = [share.emotion for share in shares if share.count == first.count]
        sentence = f"{', '.join(tied[:-1])} and {tied[-1]} equally often"
    elif len(shares) == 1:
        sentence = f"{first.emotion} throughout"
    else:
        sentence = f"mostly {first.emotion} ({first.count} of {len(turns)})"
    return SpeakerSummary(name, len(turns), seconds, shares, sentence)


def _changes(turns: list[Turn], outcome: Outcome) -> list[Change]:
    if outcome.names is None:
        return []
    last: dict[str, str] = {}
    changes = []
    for position, turn in enumerate(turns, start=1):
        speaker, emotion = turn.utterance.speaker, outcome.name(turn.explanation.probabilities)
        before = last.get(speaker, emotion)
        if before != emotion:
            start = turn.utterance.start
            when = f"utterance {position}" if start is None else clock(start)
            changes.append(Change(position, when, speaker, before, emotion))
        last[speaker] = emotion
    return changes


def _sureness(turns: list[Turn], outcome: Outcome) -> str:
    if outcome.names is None:
        return ""
    confidences = [round(100 * float(turn.explanation.probabilities.max())) for turn in turns]
    sure, unsure = sum(c >= SURE for c in confidences), sum(c < UNSURE for c in confidences)
    least = min(range(len(turns)), key=confidences.__getitem__)
    return (
        f"The model is at least {SURE} % sure of {sure} of {len(turns)} utterances and less than "
        f"{UNSURE} % sure of {unsure}; it is least sure of utterance {least + 1} "
        f"({confidences[least]} %)."
    )
