"""From sound to words with their times: Whisper by faster-whisper, or a speech-to-text model of transformers."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from amuse.encoders.hub import import_transformers
from amuse.encoders.signal import SAMPLE_RATE
from amuse.speech.weights import SpeechModel, speech_model

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Tried in turn, until the text neither repeats itself nor is improbable (Radford et al. 2022)."""


class Word(NamedTuple):
    """A word: seconds, its text with the space before it, and its probability if the model gives it."""

    start: float
    end: float
    text: str
    probability: float | None


class SpeechRecognizer(Protocol):
    """A speech-to-text model.

    Attributes:
        description: Which one it is, in words.
    """

    description: str

    def find_language(self, samples: np.ndarray) -> str | None:
        """The code of the spoken language, such as `"en"`, from samples at 16 kHz; None if it cannot be detected."""

    def __call__(self, samples: np.ndarray, language: str | None) -> list[Word]:
        """The words in at most 30 seconds at 16 kHz, in their order; times count from the first sample."""


def recognizer(name: str, language: str | None = None, device: str = "cpu") -> SpeechRecognizer:
    """The model of that name, see `amuse.speech.weights.speech_model`.

    Raises:
        ImportError: A library or packaged weights are missing; says how to install them.
        FileNotFoundError: No such model.
        ValueError: The model does not know the language.
    """
    model = speech_model(name)
    found: Whisper | Transformers
    if model.folder is not None and model.is_transformers:
        found = Transformers(model.folder, name, device)
    else:
        found = Whisper(model, device)
    known = found.languages()
    if language is not None and known is not None and language not in known:
        raise ValueError(f"language: {name} knows {', '.join(sorted(known))}, got {language!r}")
    return found


class Whisper:
    """Whisper (Radford et al. 2022) by faster-whisper, in 8 bits on a CPU; the same samples give the same words."""

    def __init__(self, model: SpeechModel, device: str) -> None:
        from faster_whisper import WhisperModel

        self.description = f"Whisper {model.description}"
        kind = "int8_float16" if device.startswith("cuda") else "int8"
        self._model = WhisperModel(
            model.description if model.folder is None else str(model.folder),
            device=device.partition(":")[0],
            compute_type=kind,
            cpu_threads=torch.get_num_threads(),
            files=model.files,
        )

    def languages(self) -> set[str] | None:
        return set(self._model.supported_languages)

    def find_language(self, samples: np.ndarray) -> str | None:
        if not self._model.model.is_multilingual:
            return "en"
        return self._model.detect_language(samples, language_detection_segments=4)[0]

    def __call__(self, samples: np.ndarray, language: str | None) -> list[Word]:
        import ctranslate2

        ctranslate2.set_random_seed(0)  # temperatures above 0 sample
        segments, _ = self._model.transcribe(
            samples,
            language=language,
            temperature=TEMPERATURES,
            word_timestamps=True,
            condition_on_previous_text=False,  # one mistake would lead to the next
        )
        return [
            Word(word.start, word.end, word.word, float(word.probability))
            for segment in segments
            for word in segment.words or ()
        ]


class Transformers:
    """A speech-to-text model of transformers: one such as Whisper, or a CTC model such as wav2vec 2.0's."""

    def __init__(self, folder: Path, name: str, device: str) -> None:
        transformers = import_transformers()
        try:
            self._pipeline: Any = transformers.pipeline(
                "automatic-speech-recognition",
                model=str(folder),
                device=device,
                model_kwargs={"use_safetensors": True},
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"model: {name} is not a speech-to-text model: {str(error).splitlines()[0]}") from None
        self._whisper = self._pipeline.model.config.model_type == "whisper"
        self.description = f"{type(self._pipeline.model).__name__} {name}"

    def languages(self) -> set[str] | None:
        codes = getattr(self._pipeline.model.generation_config, "lang_to_id", None) if self._whisper else None
        return None if codes is None else {code.strip("<|>") for code in codes}

    def find_language(self, samples: np.ndarray) -> str | None:
        if not self.languages():
            return None
        inputs = self._pipeline.feature_extractor(
            samples[: 30 * SAMPLE_RATE], sampling_rate=SAMPLE_RATE, return_tensors="pt"
        )
        model = self._pipeline.model
        token = model.detect_language(inputs.input_features.to(model.device, model.dtype))
        return self._pipeline.tokenizer.decode(token[0]).strip("<|>")

    def __call__(self, samples: np.ndarray, language: str | None) -> list[Word]:
        told = {"language": language} if self.languages() and language is not None else {}
        heard = self._pipeline(
            {"raw": samples, "sampling_rate": SAMPLE_RATE},
            return_timestamps="word",
            **({"generate_kwargs": told} if told else {}),
        )
        words, seconds = [], len(samples) / SAMPLE_RATE
        for chunk in heard["chunks"]:
            start, end = (seconds if time is None else float(time) for time in chunk["timestamp"])
            text = chunk["text"] if self._whisper else f" {chunk['text'].strip()}"
            if text.strip():
                words.append(Word(start, max(end, start), text, None))
        return words
