"""From a bare recording to who says what when."""

from amuse.speech.transcription import SpeechOptions, Transcriber, Transcription, transcribe
from amuse.speech.utterances import SpokenUtterance
from amuse.speech.words import Word
from amuse.speech.writing import write_transcription

__all__ = [
    "SpeechOptions",
    "SpokenUtterance",
    "Transcriber",
    "Transcription",
    "Word",
    "transcribe",
    "write_transcription",
]
