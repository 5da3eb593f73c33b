"""A recording on the page: its utterances so far, and their explanations on request."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from amuse.data.conversation import Dialogue
from amuse.data.problems import Problem
from amuse.explain.explanation import DEFAULTS
from amuse.inference.prediction import PredictedUtterance, rows
from amuse.inference.recording import Recognizer
from amuse.media.extract import Perception
from amuse.report import Content, Turn, render
from amuse.report.from_recording import explain_turn, recording_content


@dataclass(frozen=True)
class Talk:
    """The part of a recording that has been processed so far.

    Attributes:
        name: Name of the file.
        dialogue: The utterances so far, with features.
        seen: The decoded sound and pictures of each.
        rows: The prediction of each, given the others so far.
        count: Number of utterances of the whole recording.
        problems: Those found so far.
        label_names: Emotions; None for regression.
        turns: Position -> explanation, for utterances whose explanation was requested.
    """

    name: str
    dialogue: Dialogue
    seen: list[Perception]
    rows: list[PredictedUtterance]
    count: int
    problems: list[Problem]
    label_names: list[str] | None
    turns: dict[int, Turn] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return len(self.rows) == self.count


def recognize(recognizer: Recognizer, media: Path, transcript: Path | None) -> Iterator[Talk]:
    """The recording after its first utterance, after its second, and so on, up to all of it.

    Raises:
        FileNotFoundError, ValueError: See `Recognizer.utterances`.
    """
    problems: list[Problem] = []
    plain, utterances = recognizer.utterances(media, transcript, problems.append)
    spec = recognizer.model.spec
    dialogue = Dialogue(plain.id, [])
    seen: list[Perception] = []
    for utterance, perception in utterances:
        dialogue = Dialogue(plain.id, [*dialogue.utterances, utterance])
        seen = [*seen, perception]
        predicted = rows(dialogue, recognizer.predict(dialogue), spec, recognizer.temperature)
        yield Talk(media.name, dialogue, seen, predicted, len(plain), list(problems), spec.label_names)


def explained(recognizer: Recognizer, talk: Talk, position: int) -> Turn:
    """The explanation of one utterance; computed once."""
    if position not in talk.turns:
        talk.turns[position] = explain_turn(recognizer, talk.dialogue, position, talk.seen[position], DEFAULTS)
    return talk.turns[position]


def explanation_page(recognizer: Recognizer, talk: Talk, position: int) -> str:
    """HTML of one utterance's explanation, a part of the report."""
    turn = explained(recognizer, talk, position)
    turns = []
    for utterance, row in zip(talk.dialogue.utterances, talk.rows, strict=True):
        predicted = row_prediction(row)
        # other turns are context; their explanations are not shown
        turns.append(Turn(utterance, replace(turn.explanation, probabilities=predicted)))
    turns[position] = turn
    return render(report_content(recognizer, talk, turns), only=position)


def report_content(recognizer: Recognizer, talk: Talk, turns: list[Turn]) -> Content:
    """The report of the whole recording."""
    return recording_content(recognizer, talk.name, turns, DEFAULTS)


def row_prediction(row: PredictedUtterance) -> torch.Tensor:
    """Probabilities `(C,)`, or the value `(1,)` of a regression."""
    return torch.tensor(list(row.probabilities.values()) or [row.value])
