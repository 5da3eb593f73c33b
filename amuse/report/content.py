"""The content of a report."""

from dataclasses import dataclass, field

import numpy as np

from amuse.data.conversation import Utterance
from amuse.evaluation.quality import Quality, RegressionQuality
from amuse.explain import Explanation


@dataclass(frozen=True)
class Region:
    """The part of a picture that a group of the explanation covers.

    Attributes:
        group: Its number.
        x, y, width, height: A rectangle around it, as shares of the picture.
        outline: Polygons `(corners, 2)` in shares of the picture, of which inner ones are holes; empty = the rectangle.
        number: Where its score is best written, in shares of the picture; None = in the rectangle's corner.
    """

    group: int
    x: float
    y: float
    width: float
    height: float
    outline: tuple[np.ndarray, ...] = ()
    number: tuple[float, float] | None = None


@dataclass
class KeyFrame:
    """A picture, uint8 `(H, W, 3)`, taken at `time` seconds of the recording."""

    image: np.ndarray
    time: float
    regions: list[Region] = field(default_factory=list)


@dataclass
class Media:
    """The recording of one utterance, where available.

    Attributes:
        waveform: Float `(samples,)` in [-1, 1], from the utterance's start to its end.
        mel: Float `(bands, frames)`, log power, lowest band first, over the same time.
        frames: Key frames.
    """

    waveform: np.ndarray | None = None
    mel: np.ndarray | None = None
    frames: list[KeyFrame] = field(default_factory=list)


@dataclass
class Turn:
    """One utterance of the report.

    Attributes:
        utterance, explanation, media: What was said, why the model says what it says, and the recording of it.
        expression: Another model's view of the face, see `amuse.inference.expressions`, where it was asked for.
    """

    utterance: Utterance
    explanation: Explanation
    media: Media = field(default_factory=Media)
    expression: dict[str, float] | None = None


@dataclass
class Content:
    """A report.

    Attributes:
        title: Title of the page.
        turns: The utterances of one dialogue, in their order.
        label_names: Emotions; None for regression.
        modalities: The model's, in the order of `Explanation.fusion`.
        card: Facts about the model and how the report was made.
        quality: The model's on labelled data, if there are any.
        caution: Why `quality` is optimistic for new data, if it is.
        origin: Where words and speakers come from, if not from a transcript.
    """

    title: str
    turns: list[Turn]
    label_names: list[str] | None
    modalities: list[str]
    card: dict[str, str]
    quality: Quality | RegressionQuality | None = None
    caution: str = ""
    origin: str = ""
