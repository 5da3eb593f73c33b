"""From a recording to utterances with times, speakers and words."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from amuse.encoders.signal import SAMPLE_RATE
from amuse.files import check_recording
from amuse.media.decode import read_audio
from amuse.media.segments import by_voice
from amuse.media.sources import Span
from amuse.media.tracks import MediaError
from amuse.speech.speakers import SpeakerTurn, find_turns
from amuse.speech.utterances import LONGEST_STRETCH, SpokenUtterance, assign, join, utterances, windows
from amuse.speech.voices import RESEMBLYZER, VoiceEncoder, voice_encoder
from amuse.speech.weights import DEFAULT_MODEL, NEEDS_EXTRA
from amuse.speech.words import SpeechRecognizer, Word, recognizer

PIECE_PAUSE, SHORTEST_PIECE = 0.1, 0.1
"""The shortest silence at which speech is cut, since the speaker may change, and the shortest segment, in seconds."""
MARGIN = 0.2
"""Seconds of sound around speech that the recogniser also reads."""


@dataclass(frozen=True)
class SpeechOptions:
    """Options of a transcription.

    Attributes:
        model: Speech to text, see `amuse.speech.weights.speech_model`.
        speakers: Their number; None estimates it.
        language: Its code, such as `"en"`; None detects it.
        voices: Encoder that distinguishes speakers, see `amuse.speech.voices.voice_encoder`.
        device: `"cpu"` or `"cuda"`, for speech to text.
    """

    model: str = DEFAULT_MODEL
    speakers: int | None = None
    language: str | None = None
    voices: str = RESEMBLYZER
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.speakers is not None and self.speakers < 1:
            raise ValueError(f"speakers: expected at least 1, got {self.speakers}")


@dataclass(frozen=True)
class Transcription:
    """The transcription of a recording.

    Attributes:
        utterances: In their order; empty if nobody speaks.
        language: Its code; None if the model does not detect it.
        wordless: Segments of voice without recognised words, which are left out, in seconds.
        by: The models that found words and speakers, in words.
    """

    utterances: list[SpokenUtterance]
    language: str | None
    wordless: list[tuple[float, float]]
    by: str

    @property
    def speakers(self) -> int:
        return len({utterance.speaker for utterance in self.utterances})

    def __str__(self) -> str:
        count, people = len(self.utterances), self.speakers
        found = f"{count} utterance{'s' * (count != 1)} of {people} speaker{'s' * (people != 1)}"
        language = f" in {self.language!r}" if self.language else ""
        left = f"; {len(self.wordless)} stretches of voice without words left out" if self.wordless else ""
        return f"{found}{language}, by {self.by}{left}"


class Transcriber:
    """Transcribes recordings with models that are loaded once, when the first voice is found.

    Raises:
        ImportError: A package is missing; says how to install it.
    """

    def __init__(self, options: SpeechOptions | None = None) -> None:
        self.options = options or SpeechOptions()
        if find_spec("silero_vad") is None or find_spec("faster_whisper") is None:
            raise ImportError(NEEDS_EXTRA)
        self.voices: VoiceEncoder | None = None
        if self.options.speakers != 1:
            self.voices = voice_encoder(self.options.voices)

    def __call__(self, samples: np.ndarray, progress: Callable[[float], None] = lambda share: None) -> Transcription:
        """The utterances in sound.

        Args:
            samples: float32 `(samples,)` at 16 kHz.
            progress: Takes the finished share of the speech, from 0 to 1.

        Raises:
            FileNotFoundError, ImportError, ValueError: See `amuse.speech.words.recognizer`.
        """
        pieces = by_voice(samples, pause=PIECE_PAUSE, shortest=SHORTEST_PIECE, longest=LONGEST_STRETCH)
        if not pieces:
            return Transcription([], self.options.language, [], "voice")
        turns = join(find_turns(samples, pieces, self.voices, self.options.speakers))
        language = self.options.language or self.find_language(samples, pieces)
        said: list[list[Word]] = []
        for group in windows(turns):
            said += self.words(samples, group, language)
            progress(group[-1].end / turns[-1].end)
        wordless = [(turn.start, turn.end) for turn, words in zip(turns, said, strict=True) if not words]
        return Transcription(utterances(turns, said), language, wordless, self.description)

    @cached_property
    def recognizer(self) -> SpeechRecognizer:
        return recognizer(self.options.model, self.options.language, self.options.device)

    @property
    def description(self) -> str:
        """The models that find words and speakers, in words."""
        voices = "" if self.voices is None else f" and {self.voices.description}"
        return f"{self.recognizer.description}{voices}"

    def find_language(self, samples: np.ndarray, pieces: list[tuple[float, float]]) -> str | None:
        """The code of the language of some segments of speech, in seconds; None if the model does not detect it."""
        return self.recognizer.find_language(
            np.concatenate([samples[_index(begin) : _index(end)] for begin, end in pieces])
        )

    def words(self, samples: np.ndarray, turns: list[SpeakerTurn], language: str | None) -> list[list[Word]]:
        """The words of neighbouring turns that are recognised together, see `amuse.speech.utterances.windows`."""
        begin, end = max(turns[0].start - MARGIN, 0.0), turns[-1].end + MARGIN
        words = self.recognizer(samples[_index(begin) : _index(end)], language)
        return assign([word._replace(start=word.start + begin, end=word.end + begin) for word in words], turns)


def transcribe(
    media: Path, transcriber: Transcriber, progress: Callable[[float], None] = lambda share: None
) -> Transcription:
    """The utterances of a recording.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A folder, or its sound cannot be read.
    """
    check_recording(media)
    try:
        samples = read_audio(Span(media), float("inf"), lambda kind, message: None)
    except MediaError as error:
        raise ValueError(str(error)) from None  # which names the file
    return transcriber(samples, progress)


def _index(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)
