"""Generated videos of talking cartoon faces, with words and voices, to try the package without any data.

Each utterance is neutral, joyful or angry, which shows in one to three ways: a kind or harsh word, a chirp or growl in
the voice, a smiling or frowning mouth. Everything else is neutral, so a model needs all three modalities. Speakers
differ in colour and pitch. Nothing here resembles people, and a model trained on it knows nothing about them.
"""

import random
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np

from amuse.files import replace_file, write_csv
from amuse.media.tracks import pyav

EMOTIONS = ("neutral", "joy", "anger")
WORDS = {
    "neutral": ["well", "so", "then", "the", "train", "coffee", "table", "maybe", "tomorrow", "door", "today", "again"],
    "joy": ["wonderful", "lovely", "great", "brilliant"],
    "anger": ["awful", "terrible", "horrible", "stupid"],
}
SPEAKERS = {"Ada": ((244, 196, 108), 210.0), "Ben": ((150, 190, 235), 150.0)}  # colour of the face, pitch in hertz
WIDTH, HEIGHT, FPS, RATE = 192, 144, 10, 48000
PAUSE = 0.4  # seconds between utterances


@dataclass(frozen=True)
class CartoonUtterance:
    """One utterance: its times, speaker and words, and which of "word", "voice" and "face" show its emotion."""

    start: float
    end: float
    speaker: str
    text: str
    emotion: str
    evidence: tuple[str, ...]


def write_talks(folder: Path, count: int, utterances: int = 8, seed: int = 0) -> None:
    """`count` talks as `amuse data prepare --dataset folder` reads them: videos, each next to its CSV transcript."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write_talk(folder / f"talk{number}.webm", utterances, seed=1000 * seed + number)


def write_talk(video: Path, utterances: int = 8, seed: int = 0) -> list[CartoonUtterance]:
    """One talk: a WebM video, and its transcript of the same name ending in .csv.

    Raises:
        ImportError: PyAV is missing.
    """
    lines = _script(random.Random(seed), utterances)
    rng = np.random.default_rng(seed)
    length = lines[-1].end + PAUSE
    sound = 0.002 * rng.standard_normal(round(length * RATE)).astype(np.float32)
    for line in lines:
        begin, end = round(line.start * RATE), round(line.end * RATE)
        sound[begin:end] += _voice(rng, line, end - begin)
    faces = [_face_at(lines, i / FPS) for i in range(round(length * FPS))]
    replace_file(video, lambda temporary: _encode(temporary, faces, sound))
    rows = [[line.start, line.end, line.speaker, line.text, line.emotion] for line in lines]
    write_csv([["start", "end", "speaker", "text", "label"], *rows], video.with_suffix(".csv"))
    return lines


def _script(rng: random.Random, count: int) -> list[CartoonUtterance]:
    lines, time = [], PAUSE
    for _ in range(count):
        emotion = rng.choice(EMOTIONS)
        ways = ("word", "voice", "face")
        evidence = () if emotion == "neutral" else tuple(rng.sample(ways, rng.choice((1, 1, 2, 3))))
        words = rng.choices(WORDS["neutral"], k=rng.randint(4, 7))
        if "word" in evidence:
            words[rng.randrange(len(words))] = rng.choice(WORDS[emotion])
        end = round(time + 0.3 * len(words), 1)
        lines.append(CartoonUtterance(time, end, rng.choice(list(SPEAKERS)), " ".join(words), emotion, evidence))
        time = round(end + PAUSE, 1)
    return lines


def _voice(rng: np.random.Generator, line: CartoonUtterance, count: int) -> np.ndarray:
    """A hum in syllables, with half a second of chirp or growl in it if the voice shows the emotion."""
    time = np.arange(count) / RATE
    pitch = SPEAKERS[line.speaker][1]
    hum = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in (1, 2, 3))
    sound = 0.08 * hum * (0.6 + 0.4 * np.sin(2 * np.pi * 3.3 * time))
    if "voice" in line.evidence:
        begin = rng.uniform(0.1, 0.9) * (count / RATE - 0.5)
        inside = (time >= begin) & (time < begin + 0.5)
        if line.emotion == "joy":
            sound[inside] += 0.3 * np.sin(2 * np.pi * (900 + 300 * np.sin(2 * np.pi * 4 * time[inside])) * time[inside])
        else:
            sound[inside] += 0.35 * np.sign(np.sin(2 * np.pi * 80 * time[inside]))
    return sound.astype(np.float32)


def _face_at(lines: list[CartoonUtterance], time: float) -> np.ndarray:
    """The current or last speaker; the mouth moves with the words, and shows the emotion if the face does."""
    line = next((line for line in reversed(lines) if line.start <= time), lines[0])
    curve = {"joy": -1.0, "anger": 1.0}[line.emotion] if "face" in line.evidence else 0.0
    syllable = abs(np.sin(2 * np.pi * 3.3 * time)) if line.start <= time <= line.end else 0.0
    return _face(line.speaker, curve, round(3 * syllable))


@cache
def _face(speaker: str, curve: float, opening: int) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    picture = np.repeat((240 - 40 * y / HEIGHT)[..., None], 3, axis=2)
    x, y = (x - WIDTH / 2) / (HEIGHT * 0.42), (y - HEIGHT / 2) / (HEIGHT * 0.42)  # the face has radius 1
    picture[np.hypot(x, y) <= 1.03] = (60, 60, 60)
    picture[np.hypot(x, y) <= 1] = SPEAKERS[speaker][0]
    for side in (-0.38, 0.38):
        picture[np.hypot(x - side, 1.3 * (y + 0.25)) <= 0.12] = (40, 40, 40)
    lips = np.abs(y - 0.42 - curve * (x**2 - 0.1)) <= 0.05 + 0.02 * opening
    picture[lips & (np.abs(x) <= 0.45)] = (150, 40, 40)
    return picture.astype(np.uint8)


def _encode(video: Path, pictures: list[np.ndarray], sound: np.ndarray) -> None:
    av = pyav()
    with av.open(str(video), "w", format="webm") as container:
        stream = container.add_stream("libvpx", rate=FPS, options={"deadline": "realtime", "cpu-used": "8"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 300_000
        stream.codec_context.thread_count = 1  # threads cost more than they save on small pictures
        track = container.add_stream("libopus", rate=RATE, layout="mono")
        for i, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        fifo = av.AudioFifo()
        samples = av.AudioFrame.from_ndarray(sound[None], format="flt", layout="mono")
        samples.sample_rate, samples.pts = RATE, 0
        fifo.write(samples)
        while (part := fifo.read(960, partial=True)) is not None:
            container.mux(track.encode(part))
        container.mux(track.encode())
