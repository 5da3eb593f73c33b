"""`amuse predict`: the emotions of every utterance of a recording, by a trained run."""

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from amuse.data.clock import clock
from amuse.data.conversation import Dialogue, Utterance
from amuse.data.problems import Problem, ProblemHandler
from amuse.data.spec import DataSpec
from amuse.inference.expressions import strongest
from amuse.inference.outcome import Prediction
from amuse.inference.recording import Recognizer

logger = logging.getLogger(__name__)


@dataclass
class PredictedUtterance:
    """An utterance of a recording with its prediction.

    Attributes:
        start, end: Seconds.
        speaker, text: From the transcript.
        emotion, probability: The most probable class; None for regression.
        probabilities: Those of all classes, calibrated by the run's temperature.
        value: The regression output; None for classes.
        modalities: Those that the utterance has.
        expression: Another model's view of the face, see `amuse.inference.expressions`; None = not asked, or no face.
        absent: The modalities that the model reads and the utterance lacks, such as sound outside of the file.
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
    expression: dict[str, float] | None = None
    absent: list[str] = field(default_factory=list)


def log_problem(problem: Problem) -> None:
    """Write a problem to the log."""
    logger.warning("%s: %s: %s", problem.place, problem.kind, problem.message)


def predict_recording(
    run: str | Path, media: str | Path, transcript: str | Path | None = None, report: ProblemHandler = log_problem
) -> list[PredictedUtterance]:
    """One row per utterance of a recording, by the best model of a run; see `Recognizer.utterances`."""
    recognizer = Recognizer(Path(run))
    chosen = None if transcript is None else Path(transcript)
    plain, utterances = recognizer.utterances(Path(media), chosen, report)
    dialogue = Dialogue(plain.id, [utterance for utterance, _ in utterances])
    return rows(dialogue, recognizer.predict(dialogue), recognizer.model.spec, recognizer.temperature)


def table(rows: list[PredictedUtterance]) -> str:
    """One line per utterance, with the modalities that it lacks; those that all lack are in a line at the end."""
    nowhere, absent = lacking(rows)
    speakers = max(len(row.speaker) for row in rows)
    emotions = max(len(row.emotion or "") for row in rows)
    times = max(len(clock(row.end, decimals=2)) for row in rows)
    lines = []
    for row, missing in zip(rows, absent, strict=True):
        result = f"{row.emotion:<{emotions}}  {row.probability:5.2f}" if row.emotion else f"{row.value:6.2f}"
        start, end = (f"{clock(seconds, decimals=2):>{times}}" for seconds in (row.start, row.end))
        face = f"  ({strongest(row.expression)})" if row.expression else ""
        mark = f"  [without {', '.join(missing)}]" if missing else ""
        lines.append(f"{start} - {end}  {row.speaker:<{speakers}}  {result}  {row.text or '-'}{face}{mark}")
    if nowhere:
        lines.append(f"all of them without {', '.join(nowhere)}, which the model reads too")
    return "\n".join(lines)


def lacking(rows: list[PredictedUtterance]) -> tuple[list[str], list[list[str]]]:
    """The model's modalities that no utterance has, and for each utterance the others that it lacks."""
    nowhere = [name for name in rows[0].absent if all(name in row.absent for row in rows)]
    return nowhere, [[name for name in row.absent if name not in nowhere] for row in rows]


def to_json(rows: list[PredictedUtterance]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False)


def rows(dialogue: Dialogue, logits: Tensor, spec: DataSpec, temperature: float) -> list[PredictedUtterance]:
    """The utterances of a dialogue with the predictions that follow from their logits `(N, C)`.

    Args:
        dialogue: Its utterances have the features that were read.
        logits: The model's.
        spec: Its inputs and outputs.
        temperature: Divides the logits.
    """
    found = []
    for utterance, row in zip(dialogue.utterances, logits, strict=True):
        prediction = Prediction.of(row, spec.label_names, temperature)
        assert utterance.start is not None
        assert utterance.end is not None
        found.append(
            PredictedUtterance(
                start=utterance.start,
                end=utterance.end,
                speaker=utterance.speaker,
                text=utterance.text,
                emotion=prediction.label,
                probability=prediction.confidence,
                probabilities=prediction.probabilities,
                value=prediction.value,
                modalities=list(utterance.features),
                absent=[name for name in spec.modalities if not _has(utterance, name)],
            )
        )
    return found


def _has(utterance: Utterance, modality: str) -> bool:
    # a streaming session encodes the words itself
    return utterance.num_tokens(modality) > 0 or (modality == "text" and bool(utterance.text))
