"""Explanations of a recording, with its sound and its key frames, as the content of a report."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from amuse.data.batch import UNLABELLED
from amuse.data.conversation import Dialogue, Utterance
from amuse.data.problems import ProblemHandler
from amuse.encoders.builtin import LogMel
from amuse.evaluation.quality import Quality
from amuse.explain import ExplainOptions, Explanation, Pictures, explain
from amuse.explain.explanation import DEFAULTS
from amuse.explain.pictures import cell_box
from amuse.inference.recording import Recognizer
from amuse.media.extract import Perception
from amuse.report.content import Content, KeyFrame, Media, Region, Turn
from amuse.report.from_run import model_card, word_pieces

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
    plain, utterances = recognizer.utterances(media, transcript, report)
    pairs = list(tqdm(utterances, "reading", len(plain), disable=None if progress else True, leave=False))
    dialogue = Dialogue(plain.id, [utterance for utterance, _ in pairs])
    seen = [perception for _, perception in pairs]
    turns = [
        explain_turn(recognizer, dialogue, position, seen[position], options)
        for position in tqdm(range(len(dialogue)), "explaining", disable=None if progress else True, leave=False)
    ]
    return recording_content(recognizer, media.name, turns, options)


def explain_turn(
    recognizer: Recognizer,
    dialogue: Dialogue,
    position: int,
    seen: Perception,
    options: ExplainOptions = DEFAULTS,
) -> Turn:
    """Explain one utterance of a recording by words, segments of its sound and regions of its pictures together."""
    utterance = _as_read(recognizer, dialogue.utterances[position])
    explanation = explain(
        recognizer.model,
        Dialogue(dialogue.id, [utterance if i == position else u for i, u in enumerate(dialogue.utterances)]),
        position,
        options,
        pieces=word_pieces(utterance, recognizer.model, recognizer.config.data),
        temperature=recognizer.temperature,
        pictures={
            stream: _pictures(recognizer, stream, seen) for stream in seen.pictures if stream in utterance.features
        },
    )
    mel = None if seen.samples is None else LogMel(1.0).spectrogram(seen.samples).T.numpy()
    return Turn(utterance, explanation, Media(seen.samples, mel, key_frames(utterance, explanation, seen)))


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


def _pictures(recognizer: Recognizer, stream: str, seen: Perception) -> Pictures:
    extractor, standardizer = recognizer.extractor, recognizer.standardizer
    assert extractor is not None

    def encode(images: Sequence[np.ndarray]) -> Tensor:
        tokens = extractor.encoders[stream](images)
        return standardizer.transform(stream, tokens) if standardizer is not None else tokens

    return Pictures([picture.pixels for picture in seen.pictures[stream]], encode, GRID)


def key_frames(utterance: Utterance, explanation: Explanation, seen: Perception) -> list[KeyFrame]:
    """The key frames of an utterance with the position of every group that they show."""
    if not seen.frames:
        return []
    assert utterance.start is not None
    assert utterance.end is not None
    step = (utterance.end - utterance.start) / len(seen.frames)
    frames = [KeyFrame(image, utterance.start + (i + 0.5) * step) for i, image in enumerate(seen.frames)]
    for number, group in enumerate(explanation.groups):
        for picture in [seen.pictures[group.stream][token] for token in group.tokens if group.stream in seen.pictures]:
            frame = frames[picture.frame]
            height, width = frame.image.shape[:2]
            left, top, right, bottom = picture.box
            x, y, w, h = (0.0, 0.0, 1.0, 1.0) if group.cell is None else cell_box(group.cell, GRID)
            frame.regions.append(
                Region(
                    number,
                    (left + x * (right - left)) / width,
                    (top + y * (bottom - top)) / height,
                    w * (right - left) / width,
                    h * (bottom - top) / height,
                )
            )
    return frames
