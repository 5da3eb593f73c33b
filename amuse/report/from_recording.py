"""Explanations of a recording, with its sound and its key frames, as the content of a report."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from amuse.data.batch import UNLABELLED
from amuse.data.conversation import Dialogue, Utterance
from amuse.data.problems import Problem, ProblemHandler
from amuse.encoders.builtin import LogMel
from amuse.evaluation.quality import Quality
from amuse.explain import ExplainOptions, Explanation, Pictures, Regions, explain
from amuse.explain.explanation import DEFAULTS
from amuse.explain.pictures import cell_box
from amuse.inference.recording import Recognizer
from amuse.media.extract import Perception
from amuse.media.faces import Picture
from amuse.media.mesh import FACE_PARTS, FaceMesh, FaceParts
from amuse.progress import progress_bar
from amuse.report.content import Content, KeyFrame, Media, Region, Turn
from amuse.report.from_run import model_card, word_pieces
from amuse.report.sentences import sentences

GRID = 4  # regions per side of each picture


def explain_recording(
    run: Path,
    media: Path,
    transcript: Path | None,
    report: ProblemHandler,
    options: ExplainOptions = DEFAULTS,
    *,
    progress: bool = True,
) -> Content:
    """The content of a recording's report: its words, sound and pictures, and what influenced each prediction.

    Args:
        run: Folder of the run, see `Recognizer`.
        media, transcript, report: See `Recognizer.utterances`; both say what is raised.
        options: Method, number of samples and seed.
        progress: Show a progress bar, on a terminal only.
    """
    recognizer = Recognizer(run)
    origin = ""

    def heard(problem: Problem) -> None:
        nonlocal origin
        if problem.kind == "transcribed":
            origin = f"Words and speakers were recognised by programs and not checked by a person: {problem.message}."
        elif problem.kind == "no_transcript":
            origin = f"There was no transcript: {problem.message}."
        report(problem)

    plain, utterances = recognizer.utterances(media, transcript, heard)
    count = len(plain)
    pairs = list(
        progress_bar(f"reading {count} utterances", count, "utt", over=utterances, shown=progress, leave=False)
    )
    dialogue = Dialogue(plain.id, [utterance for utterance, _ in pairs])
    seen = [perception for _, perception in pairs]
    work = progress_bar(f"explaining {count} utterances", count, "utt", over=seen, shown=progress, leave=False)
    turns = [explain_turn(recognizer, dialogue, i, perception, options) for i, perception in enumerate(work)]
    return replace(recording_content(recognizer, media.name, turns, options), origin=origin)


def explain_turn(
    recognizer: Recognizer,
    dialogue: Dialogue,
    position: int,
    seen: Perception,
    options: ExplainOptions = DEFAULTS,
) -> Turn:
    """Explain one utterance of a recording by words, segments of its sound and regions of its pictures together."""
    utterance = _as_read(recognizer, dialogue.utterances[position])
    parts = face_parts(seen)
    explanation = explain(
        recognizer.model,
        Dialogue(dialogue.id, [utterance if i == position else u for i, u in enumerate(dialogue.utterances)]),
        position,
        options,
        pieces=word_pieces(utterance, recognizer.model, recognizer.config.data),
        temperature=recognizer.temperature,
        pictures={
            stream: _pictures(recognizer, stream, seen, parts if stream == "face" else None)
            for stream in seen.pictures
            if stream in utterance.features
        },
        sentences=sentences(
            dialogue, position, recognizer.config.data, recognizer.standardizer, lambda: recognizer.word_reader
        ),
    )
    mel = None if seen.samples is None else LogMel(1.0).spectrogram(seen.samples).T.numpy()
    return Turn(utterance, explanation, Media(seen.samples, mel, key_frames(utterance, explanation, seen, parts)))


def recording_content(recognizer: Recognizer, name: str, turns: list[Turn], options: ExplainOptions) -> Content:
    """The content of a recording's report from its explained utterances."""
    model, names = recognizer.model, recognizer.model.spec.label_names
    quality = None
    labels = [turn.utterance.label for turn in turns]
    if names is not None and any(label is not None for label in labels):
        probabilities = torch.stack([turn.explanation.probabilities for turn in turns])
        quality = Quality.measure(
            probabilities, torch.tensor([UNLABELLED if label is None else int(label) for label in labels]), names
        )
    card = model_card(model, recognizer.temperature, name, options)
    return Content(f"Conversation {name}", turns, names, model.modalities, card, quality)


def _as_read(recognizer: Recognizer, utterance: Utterance) -> Utterance:
    """The utterance with the end of the part that was read, so that segments get the right times."""
    if recognizer.extractor is None or utterance.start is None or utterance.end is None:
        return utterance
    return replace(utterance, end=min(utterance.end, utterance.start + recognizer.extractor.options.max_seconds))


def face_parts(seen: Perception) -> FaceParts | None:
    """The parts of the utterance's faces; None if it has no face, or one whose landmarks are not found."""
    return FaceParts.find(seen.pictures["face"], seen.frames, _face_mesh()) if seen.pictures.get("face") else None


_face_mesh = cache(FaceMesh)


def _pictures(recognizer: Recognizer, stream: str, seen: Perception, parts: FaceParts | None) -> Pictures:
    extractor, standardizer = recognizer.extractor, recognizer.standardizer
    assert extractor is not None

    def encode(images: Sequence[np.ndarray]) -> Tensor:
        tokens = extractor.encoders[stream](images)
        return standardizer.transform(stream, tokens) if standardizer is not None else tokens

    regions = None if parts is None else Regions(FACE_PARTS, parts.maps)
    return Pictures([picture.pixels for picture in seen.pictures[stream]], encode, GRID, regions=regions)


def key_frames(
    utterance: Utterance, explanation: Explanation, seen: Perception, parts: FaceParts | None = None
) -> list[KeyFrame]:
    """The key frames of an utterance with the position of every group that they show.

    Args:
        utterance, explanation, seen: What was said, why the model says what it says, and what it saw.
        parts: The regions of the stream "face"; None = cells of a grid, as in the other streams.
    """
    if not seen.frames:
        return []
    assert utterance.start is not None
    assert utterance.end is not None
    step = (utterance.end - utterance.start) / len(seen.frames)
    frames = [KeyFrame(image, utterance.start + (i + 0.5) * step) for i, image in enumerate(seen.frames)]
    for number, group in enumerate(explanation.groups):
        for token in group.tokens if group.stream in seen.pictures else ():
            picture = seen.pictures[group.stream][token]
            frame = frames[picture.frame]
            if group.stream == "face" and parts is not None and group.cell is not None:
                frame.regions.append(_part(number, parts.outlines[token][group.cell], picture, frame.image.shape))
                continue
            x, y, w, h = (0.0, 0.0, 1.0, 1.0) if group.cell is None else cell_box(group.cell, GRID)
            corners = _in_frame(np.array([(x, y), (x + w, y + h)]), picture, frame.image.shape)
            (x, y), (w, h) = corners[0].tolist(), (corners[1] - corners[0]).tolist()
            frame.regions.append(Region(number, x, y, w, h))
    return frames


def _part(number: int, outline: Sequence[np.ndarray], picture: Picture, shape: tuple[int, ...]) -> Region:
    """The region of a part of the face, by its polygons as shares of the face's picture."""
    polygons = [_in_frame(polygon, picture, shape) for polygon in outline]
    holes = any(_encloses(polygons[0], polygon) for polygon in polygons[1:])
    around = np.concatenate(polygons[:1] if holes else polygons)
    low, high = around.min(axis=0), around.max(axis=0)
    # a part with holes has its number above them, the others have it in their middle
    x, y = (low + high) / 2
    if holes:
        y = low[1] + 0.08 * (high[1] - low[1])
    width, height = high - low
    return Region(
        number,
        float(low[0]),
        float(low[1]),
        float(width),
        float(height),
        tuple(polygons),
        (float(x), float(y)),
    )


def _encloses(outer: np.ndarray, inner: np.ndarray) -> bool:
    return bool((inner.min(axis=0) >= outer.min(axis=0)).all() and (inner.max(axis=0) <= outer.max(axis=0)).all())


def _in_frame(points: np.ndarray, picture: Picture, shape: tuple[int, ...]) -> np.ndarray:
    """Shares of a picture as shares of the frame, of that shape, that it was cut out of."""
    left, top, right, bottom = picture.box
    return (np.array([left, top]) + points * np.array([right - left, bottom - top])) / np.array([shape[1], shape[0]])
