"""From a stretch of speech in memory to its utterances with words, speakers and predictions."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from amuse.data.conversation import Dialogue, Utterance
from amuse.data.problems import ProblemHandler
from amuse.encoders.signal import SAMPLE_RATE
from amuse.inference.prediction import PredictedUtterance, rows
from amuse.inference.recording import Recognizer
from amuse.inference.rereading import open_session
from amuse.live.memory import RecentPictures, RecentSound
from amuse.live.voice import Stretch
from amuse.media.extract import MediaReader
from amuse.media.sources import Clip, Span
from amuse.speech import SpokenUtterance, Transcriber, Transcription
from amuse.speech.speakers import SpeakersSoFar
from amuse.speech.transcription import MARGIN
from amuse.speech.utterances import join, utterances, windows
from amuse.speech.writing import lines

ENOUGH = 6.0
"""Seconds of speech after which the language that was found stays."""


class Understood(NamedTuple):
    """An utterance with its prediction, and the mean probability of its words if the model gives it."""

    row: PredictedUtterance
    confidence: float | None


class Understanding:
    """One conversation, stretch by stretch; everything that the models need is loaded at once.

    Args:
        recognizer: The model and the encoders of its features.
        sound, pictures: What is remembered of the conversation.
        transcriber: Speech to text and voices.
        report: Takes what is wrong with the media.

    Raises:
        ImportError, FileNotFoundError: A package or weights are missing; says how to install them.
        ValueError: The speech model does not know the language, or the run's model draws random coefficients.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        sound: RecentSound,
        pictures: RecentPictures,
        transcriber: Transcriber,
        report: ProblemHandler,
    ) -> None:
        self.model, self.temperature = recognizer.model, recognizer.temperature
        self.session = open_session(
            recognizer.model, recognizer.standardizer, recognizer.temperature, recognizer.config.data
        )
        self.transcriber = transcriber
        self.description = self.transcriber.description  # loads the models
        self.speakers = SpeakersSoFar(self.transcriber.voices, transcriber.options.speakers)
        self.language = transcriber.options.language
        self.sound, self.report = sound, report
        self.extractor = None
        if recognizer.extractor is not None:
            self.extractor = recognizer.extractor.reading(MediaReader(sound.read_audio, pictures.read_frames))
        self._count = 0
        self._speech_heard = 0.0

    @property
    def looks(self) -> bool:
        """Whether the model reads pictures."""
        return self.extractor is not None and self.extractor.options.vision is not None

    def __call__(self, stretch: Stretch) -> Iterator[Understood]:
        """The utterances of the next stretch, one after the other.

        Raises:
            MediaError: out_of_range, if its sound is forgotten.
        """
        for spoken in self._transcribed(stretch):
            utterance = self._utterance(spoken)
            if not set(utterance.features) and not utterance.text:
                continue
            prediction = self.session.push(utterance)
            (row,) = rows(Dialogue("live", [utterance]), prediction.logits[None], self.model.spec, self.temperature)
            yield Understood(row, spoken.confidence)

    def _transcribed(self, stretch: Stretch) -> list[SpokenUtterance]:
        origin = round(max(stretch.start - MARGIN, 0.0) * SAMPLE_RATE) / SAMPLE_RATE
        samples = self.sound.between(origin, stretch.end + MARGIN)
        pieces = [(begin - origin, end - origin) for begin, end in stretch.pieces]
        turns = join(self.speakers.turns(samples, pieces))
        language = self.language or self.transcriber.find_language(samples, pieces)
        self._speech_heard += sum(end - begin for begin, end in pieces)
        if self._speech_heard >= ENOUGH:
            self.language = language
        words = [said for group in windows(turns) for said in self.transcriber.words(samples, group, language)]
        turns = [turn._replace(start=turn.start + origin, end=turn.end + origin) for turn in turns]
        said = [[word._replace(start=word.start + origin, end=word.end + origin) for word in part] for part in words]
        return utterances(turns, said)

    def _utterance(self, spoken: SpokenUtterance) -> Utterance:
        # as in a transcript, so that its file gives the same features
        (line,) = lines(Transcription([spoken], self.language, [], ""), "live")
        name = f"live_{self._count}"
        self._count += 1
        features = {}
        if self.extractor is not None:
            span = Span(Path("live"), line.start, line.end)
            clip = Clip(name, span, span if self.looks else None)
            features = self.extractor(clip, name, self.report)
        return Utterance(name, line.speaker, features, None, text=line.text, start=line.start, end=line.end)
