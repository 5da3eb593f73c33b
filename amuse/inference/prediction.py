"""`amuse predict`: the emotions of every utterance of a recording, by a trained run."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from amuse.data.conversation import Dialogue
from amuse.data.problems import Problem, Report
from amuse.inference.recording import Recognizer

logger = logging.getLogger(__name__)


@dataclass
class Row:
    """One utterance.

    Attributes:
        start, end: Seconds.
        speaker, text: By the transcript.
        emotion, probability: The most probable class; None for regression.
        probabilities: Of all classes, with the run's calibration.
        value: Of regression.
        modalities: Which were there.
    """

    start: float
    end: float
    speaker: str
    text: str | None
    emotion: str | None
    probability: float | None
    probabilities: dict[str, float]
    value: float | None
    modalities: list[str]


def log_problem(problem: Problem) -> None:
    """A report that goes to the log."""
    logger.warning("%s: %s: %s", problem.place, problem.kind, problem.message)


def predict_recording(
    run: str | Path, media: str | Path, transcript: str | Path | None = None, report: Report = log_problem
) -> list[Row]:
    """One row per utterance of a recording, by the best model of a run; see `Recognizer` and its `listen`."""
    recognizer = Recognizer(Path(run))
    chosen = None if transcript is None else Path(transcript)
    plain, utterances = recognizer.listen(Path(media), chosen, report)
    dialogue = Dialogue(plain.id, [utterance for utterance, _ in utterances])
    return rows(dialogue, recognizer.predict(dialogue), recognizer.model.spec.label_names, recognizer.temperature)


def table(rows: list[Row]) -> str:
    """One line an utterance."""
    width = max(len(row.speaker) for row in rows)
    names = max(len(row.emotion or "") for row in rows)
    lines = []
    for row in rows:
        result = f"{row.emotion:<{names}}  {row.probability:5.2f}" if row.emotion else f"{row.value:6.2f}"
        lines.append(f"{_clock(row.start)} - {_clock(row.end)}  {row.speaker:<{width}}  {result}  {row.text or '-'}")
    return "\n".join(lines)


def to_json(rows: list[Row]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False)


def rows(dialogue: Dialogue, logits: Tensor, label_names: list[str] | None, temperature: float) -> list[Row]:
    """What the logits `(N, C)` say of the utterances."""
    names = label_names or []
    found = []
    for utterance, row in zip(dialogue.utterances, logits, strict=True):
        probabilities = dict(zip(names, (row / temperature).softmax(-1).tolist(), strict=True)) if names else {}
        emotion = max(names, key=lambda name: probabilities[name], default=None)
        assert utterance.start is not None
        assert utterance.end is not None
        found.append(
            Row(
                start=utterance.start,
                end=utterance.end,
                speaker=utterance.speaker,
                text=utterance.text,
                emotion=emotion,
                probability=None if emotion is None else probabilities[emotion],
                probabilities=probabilities,
                value=None if names else row.item(),
                modalities=list(utterance.features),
            )
        )
    return found


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes):02d}:{rest:05.2f}"
