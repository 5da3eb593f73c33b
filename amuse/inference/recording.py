"""Applies a trained run to recordings: from a media file to utterances with features, and to logits."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from amuse.data.conversation import Conversations, Dialogue, Utterance
from amuse.data.folder import Recording, conversations, find_transcript
from amuse.data.load import add_text
from amuse.data.problems import Problem, ProblemHandler
from amuse.data.transcript import UNKNOWN_SPEAKER, Line, read_transcript
from amuse.encoders.text import WordReader
from amuse.encoders.words import check_text_weights
from amuse.evaluation.calibration import load_temperature
from amuse.evaluation.load import load_best
from amuse.evaluation.predict import predict
from amuse.files import BEST, MEDIA_FILE, check_recording, read_json
from amuse.media.decode import media_seconds, read_audio
from amuse.media.extract import Extractor, Perception
from amuse.media.segments import Segments, speech_segments
from amuse.media.sources import Span, recording_clip
from amuse.media.tracks import MediaError
from amuse.speech import Transcriber
from amuse.speech.automatic import recognize


class Recognizer:
    """The best model of a run, with everything that makes its features from a recording.

    Args:
        run: Folder of a run that was trained on prepared data, or on text alone.

    Raises:
        FileNotFoundError: No run.
        ValueError: The run's features cannot be computed from a recording.
        ImportError: An encoder of the run is not installed.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.model, self.standardizer, self.config = load_best(run)
        self.temperature = load_temperature(run)
        modalities = self.model.spec.modalities
        self.wanted = [modality for modality in modalities if modality != "text"]
        dataset = self.config.data.dataset
        if dataset not in ("prepared", "meld") or (dataset == "meld" and self.wanted):
            raise ValueError(
                f"{run}: was trained on features of {dataset} that cannot be computed from a recording "
                f"({', '.join(modalities)}); train on data made by `amuse data prepare`"
            )
        self.extractor: Extractor | None = None
        if "text" in modalities:
            check_text_weights(run, self.config.data)
        if self.wanted:
            manifest = read_json(run / BEST / MEDIA_FILE)
            self.extractor = Extractor.from_manifest(manifest, str(next(self.model.parameters()).device))

    def utterances(
        self, media: Path, transcript: Path | None, report: ProblemHandler
    ) -> tuple[Dialogue, Iterator[tuple[Utterance, Perception]]]:
        """The utterances of a recording without features, and an iterator over the same ones with features.

        Args:
            media: A video or audio file.
            transcript: Any file that `read_transcript` takes. None takes the one of the same name next to `media`;
                without one, words and speakers are recognised, which is reported. If that is not installed, or no word
                is found, the sound is cut at pauses, and the utterances have no words and one speaker.
            report: Takes the problems of the recording and the transcript.

        Raises:
            FileNotFoundError: No such recording or transcript.
            ValueError: A folder, or a recording or transcript without utterances; at the end of the iterator, a
                recording in which no utterance has any modality of the model.
        """
        check_recording(media)
        lines = self._lines(media, transcript or find_transcript(media), report)
        talk = conversations([Recording(media, lines)], self.model.spec.label_names)
        return talk[0], self._with_features(talk, media, report)

    def _with_features(
        self, talk: Conversations, media: Path, report: ProblemHandler
    ) -> Iterator[tuple[Utterance, Perception]]:
        if "text" in self.model.spec.modalities:
            talk = add_text(self.config.data, talk, progress=False, device=next(self.model.parameters()).device)
        empty = True
        for utterance in talk.utterances():
            features, seen = dict(utterance.features), Perception()
            if self.extractor is not None:
                seen = self.extractor.perceive(recording_clip(media, utterance), utterance.id, report)
                features |= self.extractor.encode(seen, utterance.id, report)
            features = {m: features[m] for m in self.model.spec.modalities if m in features}
            if self.standardizer is not None:
                features = {m: self.standardizer.transform(m, x) for m, x in features.items()}
            empty = empty and not features
            yield replace(utterance, features=features), seen
        if empty:
            wanted = ", ".join(self.model.spec.modalities)
            raise ValueError(f"{media}: no utterance has any modality of the model ({wanted})")

    def _lines(self, media: Path, transcript: Path | None, report: ProblemHandler) -> list[Line]:
        if transcript is None:
            try:
                if lines := recognize(media, self._transcriber, report):
                    return lines
                advice = ""
            except ImportError as error:
                advice = f"; for words and speakers, {error}, then: amuse transcribe {media.name}"
            segments = _segments(media, report, advice)
            return [Line(f"{media.stem}_{i}", *times, UNKNOWN_SPEAKER, None, None) for i, times in enumerate(segments)]
        lines = read_transcript(transcript, report)
        if not lines:
            raise ValueError(f"{transcript}: expected at least one utterance, got none")
        return lines

    @cached_property
    def word_reader(self) -> WordReader:
        """The text encoder of the run, for words that are not those of a recording."""
        return WordReader(self.config.data, next(self.model.parameters()).device)

    @cached_property
    def _transcriber(self) -> Transcriber:
        return Transcriber()

    def predict(self, dialogue: Dialogue) -> Tensor:
        """Logits `(N, C)`, or values `(N, 1)` of regression, of utterances with features."""
        spec = self.model.spec
        return predict(self.model, Conversations([dialogue], spec.label_names, spec.modalities)).logits


def _segments(media: Path, report: ProblemHandler, advice: str) -> list[tuple[float, float]]:
    """Utterances between pauses; the whole video if there is no sound."""
    unheard: MediaError | None = None
    try:
        segments = speech_segments(read_audio(Span(media), float("inf"), lambda kind, message: None))
    except MediaError as error:  # the extractor will report it
        segments, unheard = Segments([], ""), error
    if segments.times:
        report(
            Problem(
                "no_transcript", media.name, f"{len(segments.times)} utterances between pauses, {segments.how}{advice}"
            )
        )
        return segments.times
    try:
        length = media_seconds(media)
    except MediaError as error:
        sound = "no speech is heard, and no picture" if unheard is None else "neither sound nor picture"
        raise ValueError(f"{sound} can be read: {error}") from None  # which names the file
    report(Problem("no_transcript", media.name, "nothing is heard; the whole video is one utterance"))
    return [(0.0, length)]
