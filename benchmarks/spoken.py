"""Conversations spoken by espeak-ng, with who says what when known exactly."""

import io
import random
import shutil
import subprocess
import wave
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.signal import resample_poly

from amuse.encoders.signal import SAMPLE_RATE

VOICES = {
    "Ann": ("en-us+f3", 55, 150),
    "Bob": ("en-us+m3", 40, 155),
    "Cat": ("en-gb+f5", 75, 165),
    "Dan": ("en-gb-x-rp+m7", 25, 145),
}
"""Name -> espeak-ng's voice, pitch (0 to 99) and words a minute."""

LINES = (
    "Where were you last night?",
    "I waited for you for two hours and nobody called me.",
    "I am sorry, the train was late again.",
    "You always say that and I do not believe it any more.",
    "Please calm down, it was not my fault.",
    "Did you hear that they are getting married in June?",
    "No way, that is the best news of the whole week!",
    "I could not stop laughing when she told me the story.",
    "The doctor said that we have to wait for the results.",
    "That sounds terrible, how do you feel about it?",
    "To be honest I am scared and I cannot sleep.",
    "Let us go for a walk and talk about something else.",
    "My boss wants me to work on Sunday again.",
    "Why do you not tell him that you need a break?",
    "Because I am afraid that he will get angry with me.",
    "Look at this picture, do you remember the summer at the lake?",
    "Of course, we were swimming every single morning.",
    "I miss those days more than I can say.",
    "This soup tastes strange, what did you put into it?",
    "Only onions, carrots and a little bit of pepper.",
    "I won the first prize and I still cannot believe it!",
    "Congratulations, you have worked so hard for it.",
    "Somebody broke the window of my car.",
    "You should call the police and take some pictures.",
)


class SpokenLine(NamedTuple):
    """The words of one utterance, and when they are spoken, in seconds."""

    start: float
    end: float
    speaker: str
    text: str


@dataclass
class Spoken:
    """A conversation as sound, float32 `(samples,)` at 16 kHz, and its true lines."""

    samples: np.ndarray
    lines: list[SpokenLine] = field(default_factory=list)


def installed() -> bool:
    return shutil.which("espeak-ng") is not None


def say(text: str, voice: str, pitch: int, speed: int) -> np.ndarray:
    """float32 `(samples,)` at 16 kHz, from the first to the last audible sample; arguments as in `VOICES`."""
    command = ["espeak-ng", "-v", voice, "-p", str(pitch), "-s", str(speed), "--stdout", text]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(output)) as file:
        rate, samples = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2")
    heard = resample_poly(samples / 32768, SAMPLE_RATE, rate).astype(np.float32)
    audible = np.flatnonzero(np.abs(heard) > 0.01)
    return heard[audible[0] : audible[-1] + 1]


def speak(turns: list[tuple[str, str]], pauses: list[float], noise: float = 1e-4, seed: int = 0) -> Spoken:
    """Turns of (name in `VOICES`, words), each after its pause in seconds, over steady noise of that deviation."""
    rng = np.random.default_rng(seed)
    parts: list[np.ndarray] = []
    lines: list[SpokenLine] = []
    time = 0.0
    for (speaker, text), pause in zip(turns, pauses, strict=True):
        voice = say(text, *VOICES[speaker])
        start = time + round(pause * SAMPLE_RATE) / SAMPLE_RATE
        time = start + len(voice) / SAMPLE_RATE
        parts += [np.zeros(round(pause * SAMPLE_RATE), np.float32), voice]
        lines.append(SpokenLine(start, time, speaker, text))
    samples = np.concatenate([*parts, np.zeros(SAMPLE_RATE // 2, np.float32)])
    return Spoken((samples + noise * rng.standard_normal(len(samples))).astype(np.float32), lines)


def conversation(speakers: int, turns: int, seed: int, pauses: tuple[float, float] = (0.2, 1.2)) -> Spoken:
    """A random conversation: nobody speaks twice in a row, pauses are drawn between the two limits in seconds."""
    rng = random.Random(seed)
    names = rng.sample(sorted(VOICES), speakers)
    texts = rng.sample(LINES, turns)
    who = [names[i] for i in range(min(speakers, turns))]  # everybody speaks
    while len(who) < turns:
        who.append(rng.choice([name for name in names if name != who[-1]] or names))
    return speak(list(zip(who, texts, strict=True)), [rng.uniform(*pauses) for _ in texts], seed=seed)
