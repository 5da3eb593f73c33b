"""`amuse predict`: the emotions of every utterance of a recording, by a trained run."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from amuse.calibration import load_temperature
from amuse.config import DataConfig
from amuse.data.conversation import Conversations
from amuse.data.folder import Recording, conversations, find_transcript
from amuse.data.load import add_text
from amuse.data.problems import Problem, Report
from amuse.data.transcript import UNKNOWN_SPEAKER, Line, read_transcript
from amuse.evaluation import load_best, predict
from amuse.files import BEST, MEDIA_FILE, read_json
from amuse.media.decode import MediaError, media_seconds, read_audio
from amuse.media.extract import Extractor
from amuse.media.segments import speech_segments
from amuse.media.sources import Span, recording_clip
from amuse.model import Amuse


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


def predict_recording(run: Path, media: Path, transcript: Path | None, report: Report) -> list[Row]:
    """One row an utterance, by the best model of a run.

    Args:
        run: Folder of a run that was trained on prepared data, or on text alone.
        media: A video or audio file.
        transcript: CSV or SRT; None takes the one of the same name beside `media`, or else cuts at pauses of the sound:
            then there are no words and all utterances count as one speaker's.
        report: Takes what is wrong with the recording or the transcript.

    Raises:
        FileNotFoundError: no run, no recording or no transcript.
        ValueError: the run's features cannot be computed from a recording; a recording without utterances.
        ImportError: an encoder of the run is not installed.
    """
    if not media.is_file():
        raise FileNotFoundError(f"{media}: no such file; expected a video or audio file")
    model, standardizer, config = load_best(run)
    lines = _lines(media, transcript or find_transcript(media), report)
    talk = conversations([Recording(media, lines)], model.config.label_names)
    talk = _with_features(talk, config.data, model.config.modalities, run, media, report)
    if not any(utterance.features for utterance in talk.utterances()):
        raise ValueError(f"{media}: no utterance has any modality of the model ({', '.join(talk.modalities)})")
    if standardizer is not None:
        talk = standardizer.apply(talk)
    return _rows(talk, model, load_temperature(run))


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


def _lines(media: Path, transcript: Path | None, report: Report) -> list[Line]:
    if transcript is None:
        segments = _segments(media, report)
        return [Line(f"{media.stem}_{i}", *times, UNKNOWN_SPEAKER, None, None) for i, times in enumerate(segments)]
    lines = read_transcript(transcript, report)
    if not lines:
        raise ValueError(f"{transcript}: expected at least one utterance, got none")
    return lines


def _segments(media: Path, report: Report) -> list[tuple[float, float]]:
    """Utterances between pauses; the whole video where nothing is heard."""
    try:
        segments = speech_segments(read_audio(Span(media), float("inf"), lambda kind, message: None))
    except MediaError:  # the extractor will find it again and report it
        segments = []
    if segments:
        report(Problem("no_transcript", media.name, f"{len(segments)} utterances between pauses"))
        return segments
    try:
        length = media_seconds(media)
    except MediaError as error:
        raise ValueError(f"{media}: neither sound nor picture can be read: {error}") from None
    report(Problem("no_transcript", media.name, "nothing is heard; the whole video is one utterance"))
    return [(0.0, length)]


def _with_features(
    talk: Conversations, data: DataConfig, modalities: dict[str, int], run: Path, media: Path, report: Report
) -> Conversations:
    """The modalities of the model, made as they were made for training."""
    wanted = [modality for modality in modalities if modality != "text"]
    if data.dataset not in ("prepared", "meld") or (data.dataset == "meld" and wanted):
        raise ValueError(
            f"{run}: was trained on features of {data.dataset} that cannot be computed from a recording "
            f"({', '.join(modalities)}); train on data made by `amuse data prepare`"
        )
    if wanted:
        manifest = read_json(run / BEST / MEDIA_FILE)
        features = _extract(talk, manifest, wanted, media, report)
        for modality in wanted:
            talk = talk.with_features(modality, modalities[modality], features.get(modality, {}))
    if "text" in modalities:
        talk = add_text(data, talk, progress=False)
    return talk.select(list(modalities))


def _extract(
    talk: Conversations, manifest: dict[str, Any], wanted: list[str], media: Path, report: Report
) -> dict[str, dict[str, torch.Tensor]]:
    extractor = Extractor.from_manifest(manifest)
    features: dict[str, dict[str, torch.Tensor]] = {modality: {} for modality in wanted}
    for utterance in talk.utterances():
        found = extractor(recording_clip(media, utterance), utterance.id, report)
        for modality in wanted:
            if modality in found:
                features[modality][utterance.id] = found[modality]
    return features


def _rows(talk: Conversations, model: Amuse, temperature: float) -> list[Row]:
    predictions = predict(model, talk)
    names = model.config.label_names or []
    chances = predictions.probabilities(temperature).tolist() if names else [[]] * len(predictions.ids)
    rows = []
    for utterance, logits, row in zip(talk.utterances(), predictions.logits.tolist(), chances, strict=True):
        probabilities = dict(zip(names, row, strict=True))
        emotion = max(names, key=lambda name: probabilities[name], default=None)
        assert utterance.start is not None
        assert utterance.end is not None
        rows.append(
            Row(
                start=utterance.start,
                end=utterance.end,
                speaker=utterance.speaker,
                text=utterance.text,
                emotion=emotion,
                probability=None if emotion is None else probabilities[emotion],
                probabilities=probabilities,
                value=None if names else logits[0],
                modalities=list(utterance.features),
            )
        )
    return rows


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes):02d}:{rest:05.2f}"
