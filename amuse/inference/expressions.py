"""The expressions of the faces in a recording by another model, the small network of the package fer."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from amuse.data.problems import ProblemHandler
from amuse.encoders.builtin import Fer
from amuse.inference.prediction import PredictedUtterance
from amuse.media.extract import Extractor, Options
from amuse.media.sources import Clip, Span


def with_expressions(
    rows: Sequence[PredictedUtterance], media: Path, report: ProblemHandler
) -> list[PredictedUtterance]:
    """The rows with the mean expression of the face in the key frames of each, where there is a face.

    Raises:
        ImportError: The detector or the network is not installed; says how to install it.
    """
    extractor = Extractor(Options(audio=None, vision="hog", face="fer", faces=True, speaker_face=True))
    found = []
    for number, row in enumerate(rows, 1):
        place = f"{media.stem}, utterance {number}"
        span = Span(media, row.start, row.end)
        seen = extractor.perceive(Clip(place, span, span), place, report)
        faces = seen.pictures.get("face", [])
        if faces:
            mean = extractor.encoders["face"]([face.pixels for face in faces]).mean(dim=0)
            row = replace(row, expression=dict(zip(Fer.classes, mean.tolist(), strict=True)))
        found.append(row)
    return found
