"""The expressions of the faces in a recording by another model, the small network of the package fer."""

from collections.abc import Sequence
from pathlib import Path

from amuse.data.problems import ProblemHandler
from amuse.encoders.builtin import Fer
from amuse.media.extract import Extractor, Options
from amuse.media.sources import Clip, Span


def face_expressions(
    times: Sequence[tuple[float, float]], media: Path, report: ProblemHandler
) -> list[dict[str, float] | None]:
    """The mean expression of the speaker's face in the key frames of each utterance; None where there is no face.

    Args:
        times: Begin and end of each utterance, in seconds.
        media: A video file.
        report: Takes what is wrong with the video.

    Raises:
        ImportError: The detector or the network is not installed; says how to install it.
    """
    extractor = Extractor(Options(audio=None, vision="hog", face="fer", faces=True, speaker_face=True))
    found: list[dict[str, float] | None] = []
    for number, (begin, end) in enumerate(times, 1):
        place = f"{media.stem}, utterance {number}"
        span = Span(media, begin, end)
        seen = extractor.perceive(Clip(place, span, span), place, report)
        faces = seen.pictures.get("face", [])
        if not faces:
            found.append(None)
            continue
        mean = extractor.encoders["face"]([face.pixels for face in faces]).mean(dim=0)
        found.append(dict(zip(Fer.classes, mean.tolist(), strict=True)))
    return found


def installed() -> bool:
    """Whether everything that `face_expressions` needs is there."""
    try:
        Extractor(Options(audio=None, vision="hog", face="fer", faces=True, speaker_face=True))
    except ImportError:
        return False
    return True


def strongest(expression: dict[str, float]) -> str:
    """The most probable expression in words, such as `face, by fer: happy 0.62`."""
    name = max(expression, key=expression.__getitem__)
    return f"face, by fer: {name} {expression[name]:.2f}"
