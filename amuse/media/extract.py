"""From one utterance's media to its token features: cut, encode, report problems."""

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
from torch import Tensor

from amuse.data.problems import Problem, ProblemHandler
from amuse.encoders.choose import audio_encoder, vision_encoder
from amuse.encoders.signal import SAMPLE_RATE, Encoder, NetworkEncoder, RawStream
from amuse.encoders.words import TextOptions, WordsEncoder
from amuse.media.decode import read_audio, read_frames
from amuse.media.faces import Box, FaceDetector, Picture, largest, overlap, split_faces, whole
from amuse.media.sources import Clip, Span
from amuse.media.speaking import (
    FEWEST,
    FPS,
    FaceTrack,
    MouthReader,
    frames_to_look_at,
    loudness,
    sound_looked_at,
    speaking,
    track_faces,
)
from amuse.media.tracks import MediaError, Note


@dataclass(frozen=True)
class Options:
    """Everything that decides the features of a clip.

    Attributes:
        audio, vision: Encoders, see `amuse.encoders.choose`; None leaves the modality out.
        face: Encoder of the modality face; None = that of `vision`.
        faces: Whether faces and background are separate modalities, "face" and "background", instead of "video".
        speaker_face: Of several faces, use the one whose mouth moves with the sound; otherwise the largest.
        audio_rate: Audio tokens per second.
        frames: Key frames per utterance.
        max_seconds: Longest part of an utterance that is read.
        text: Encoder of words; None leaves them to `amuse train`.
    """

    audio: str | None = "logmel"
    vision: str | None = "hog"
    face: str | None = None
    faces: bool = False
    speaker_face: bool = False
    audio_rate: float = 5.0
    frames: int = 4
    max_seconds: float = 30.0
    text: TextOptions | None = None

    def __post_init__(self) -> None:
        if self.audio is None and self.vision is None and self.text is None:
            raise ValueError("audio, vision, text: expected at least one encoder, got none")
        for name in ("audio_rate", "frames", "max_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")
        if self.face is not None and not self.faces:
            raise ValueError(f"face: {self.face!r} needs a face detector, see docs/data.md")


@dataclass
class Perception:
    """The decoded sound and pictures of one utterance, before any encoder.

    Attributes:
        samples: float32 `(samples,)` at 16 kHz, or None.
        frames: Key frames, uint8 `(H, W, 3)`, from the middles of equal parts of the utterance.
        pictures: Visual modality -> its encoder's inputs, one per token.
    """

    samples: np.ndarray | None = None
    frames: list[np.ndarray] = field(default_factory=list)
    pictures: dict[str, list[Picture]] = field(default_factory=dict)


@dataclass
class ReadClip:
    """One utterance after everything that needs no network; made in one process, encoded in another.

    Attributes:
        clip: Its media.
        place: How problems name it.
        features: Modality -> the tokens of an encoder without a network.
        inputs: Modality -> what an encoder's network reads.
        problems: Those found so far.
    """

    clip: Clip
    place: str
    features: dict[str, Tensor]
    inputs: dict[str, Any]
    problems: list[Problem]


class MediaReader(NamedTuple):
    """Where sound and key frames come from; functions as `read_audio` and `read_frames` of `amuse.media.decode`."""

    audio: Callable[[Span, float, Note], np.ndarray]
    frames: Callable[[Span, int, float, Note], list[np.ndarray]]


FILES = MediaReader(read_audio, read_frames)


class Extractor:
    """The encoders that `Options` name, ready to use.

    Args:
        options: Which.
        device: Where their networks run; None loads no network, so that clips can be read but not encoded.

    Raises:
        ImportError, FileNotFoundError, ValueError: An encoder is unavailable; says why.
    """

    def __init__(self, options: Options, device: str | None = "cpu") -> None:
        self.options, self.device = options, device
        self.reader = FILES
        self.encoders: dict[str, Encoder] = {}
        self.detector = FaceDetector() if options.faces and options.vision is not None else None
        self.mouths = MouthReader() if self.detector is not None and options.speaker_face else None
        if options.audio is not None:
            self.encoders["audio"] = audio_encoder(options.audio, options.audio_rate, device)
        if options.vision is not None:
            vision = vision_encoder(options.vision, device)
            if self.detector is None:
                self.encoders["video"] = vision
            else:
                self.encoders["face"] = vision if options.face is None else vision_encoder(options.face, device)
                self.encoders["background"] = vision
        if options.text is not None:  # last, where `amuse train` puts the words that it encodes
            self.encoders["text"] = WordsEncoder(options.text, device)

    def describe(self) -> dict[str, Any]:
        """Options and encoders, for the manifest; `from_manifest` is the inverse, but for words."""
        keys = ("name", "width", "description", "fingerprint")
        encoders = {m: {key: getattr(e, key) for key in keys} for m, e in self.encoders.items()}
        for modality, encoder in self.encoders.items():
            raw: RawStream | None = getattr(encoder, "raw", None)
            if raw is not None:
                encoders[modality]["raw"] = asdict(raw)
        which = "the largest" if self.mouths is None else "the one whose mouth moves with the sound"
        options = asdict(self.options)
        if self.options.text is None:
            del options["text"]
        return {
            "options": options,
            "encoders": encoders,
            "faces": None if self.detector is None else f"{self.detector.description}, {which}",
        }

    @classmethod
    def from_manifest(cls, manifest: dict[str, Any], device: str = "cpu") -> Self:
        """The encoders of sound and pictures with which data was prepared.

        Raises:
            ValueError: The encoder of that name has different weights here.
        """
        self = cls(Options(**{**manifest["options"], "text": None}), device)
        for modality, here in self.encoders.items():
            there = manifest["encoders"][modality]
            if here.fingerprint != there["fingerprint"]:
                raise ValueError(
                    f"{modality}: encoder {here.name} has different weights here than where the data was prepared"
                )
        return self

    def reading(self, reader: MediaReader) -> Self:
        """The same encoders on media from elsewhere, such as those of a live conversation in memory."""
        other = copy.copy(self)
        other.reader = reader
        return other

    def __call__(self, clip: Clip, place: str, report: ProblemHandler) -> dict[str, Tensor]:
        """Modality -> float32 `(L, width)`; a modality that is unavailable is left out and the reason reported."""
        return self.encode(self.perceive(clip, place, report), place, report)

    def perceive(self, clip: Clip, place: str, report: ProblemHandler) -> Perception:
        """The inputs of the encoders; what is unavailable is left out and the reason reported."""

        def note(kind: str, message: str) -> None:
            report(Problem(kind, place, message))

        seen = Perception()
        readers: list[tuple[Span | None, Callable[[Span, Clip, Note, Perception], None]]] = [
            (clip.sound, self._read_sound),
            (clip.picture, self._read_picture),
        ]
        for span, read in readers:
            if span is not None:
                try:
                    read(span, clip, note, seen)
                except MediaError as error:
                    note(error.kind, str(error))
        return seen

    def encode(self, seen: Perception, place: str, report: ProblemHandler) -> dict[str, Tensor]:
        """Modality -> float32 `(L, width)`."""
        return _finite({m: self.encoders[m](signal) for m, signal in _signals(seen)}, place, report)

    def read(self, clip: Clip, place: str) -> ReadClip:
        """Everything but the networks: cut, decoded, encoded by encoders without a network."""
        problems: list[Problem] = []
        read = ReadClip(clip, place, {}, {}, problems)
        signals = _signals(self.perceive(clip, place, problems.append))
        if clip.words is not None:
            signals.append(("text", clip.words))
        for modality, signal in signals:
            encoder = self.encoders[modality]
            if isinstance(encoder, NetworkEncoder):
                read.inputs[modality] = encoder.prepare(signal)
            else:
                read.features[modality] = encoder(signal)
        return read

    def encode_batch(self, clips: Sequence[ReadClip]) -> list[dict[str, Tensor]]:
        """Modality -> float32 `(L, width)` of each clip, as for each alone up to rounding; adds to their problems."""
        features = [dict(clip.features) for clip in clips]
        for modality, encoder in self.encoders.items():
            rows = [row for row, clip in enumerate(clips) if modality in clip.inputs]
            if isinstance(encoder, NetworkEncoder) and rows:
                encoded = encoder.encode([clips[row].inputs[modality] for row in rows])
                for row, tokens in zip(rows, encoded, strict=True):
                    features[row][modality] = tokens
        return [
            _finite(by_modality, clip.place, clip.problems.append)
            for by_modality, clip in zip(features, clips, strict=True)
        ]

    def has_network(self) -> bool:
        """Whether there is anything to encode after a clip was read."""
        return any(isinstance(encoder, NetworkEncoder) for encoder in self.encoders.values())

    def _read_sound(self, span: Span, clip: Clip, note: Note, seen: Perception) -> None:
        if "audio" not in self.encoders:
            return
        seen.samples = self.reader.audio(span, self.options.max_seconds, note)
        seconds = len(seen.samples) / SAMPLE_RATE
        if span.end is None and clip.seconds is not None and seconds > 2 * clip.seconds + 2:
            note("long_clip", f"{span.path.name}: over {seconds:.1f} s for an utterance of {clip.seconds:.1f} s")

    def _read_picture(self, span: Span, clip: Clip, note: Note, seen: Perception) -> None:
        if self.options.vision is None:
            return
        frames = self.reader.frames(span, self.options.frames, self.options.max_seconds, note)
        seen.frames = [_half(frame, clip.half) for frame in frames]
        if self.detector is None:
            seen.pictures["video"] = whole(seen.frames)
            return
        choose = partial(self._choose, span, clip, note, seen)
        faces, seen.pictures["background"] = split_faces(seen.frames, self.detector, choose)
        if faces:
            seen.pictures["face"] = faces
        else:
            note("no_face", f"{span.path.name}: none in {len(frames)} key frames")

    def _choose(self, span: Span, clip: Clip, note: Note, seen: Perception, found: list[list[Box]]) -> list[Box | None]:
        """The speaker's face in each key frame, given all faces of each; the largest where that is undecided."""
        if self.mouths is None or max(map(len, found)) < 2:
            return largest(found)
        samples = seen.samples
        if samples is None and clip.sound is not None:
            with contextlib.suppress(MediaError):
                samples = self.reader.audio(clip.sound, self.options.max_seconds, lambda kind, message: None)
        speaker = None if samples is None else self._speaking_face(span, clip, samples)
        if speaker is None:
            note("undecided_face", f"{span.path.name}: {max(map(len, found))} faces")
            return largest(found)
        assert samples is not None
        step = len(samples) / SAMPLE_RATE * FPS / len(found)  # from one key frame to the next, in frames of the track
        chosen: list[Box | None] = []
        for number, boxes in enumerate(found):
            there = np.array(speaker.box_near((number + 0.5) * step))
            box = max(boxes, key=lambda box: overlap(np.array(box), there), default=None)
            chosen.append(box if box is not None and overlap(np.array(box), there) > 0 else None)
        return chosen

    def _speaking_face(self, span: Span, clip: Clip, samples: np.ndarray) -> FaceTrack | None:
        assert self.detector is not None
        assert self.mouths is not None
        heard = sound_looked_at(samples)
        seconds = len(heard) / SAMPLE_RATE
        count = frames_to_look_at(seconds)
        if count < FEWEST:
            return None
        looked_at = Span(span.path, span.begin, span.begin + seconds)
        frames = self.reader.frames(looked_at, count, seconds, lambda kind, message: None)
        tracks = track_faces([_half(frame, clip.half) for frame in frames], self.detector, self.mouths)
        return speaking(tracks, loudness(heard, count))


def _signals(seen: Perception) -> list[tuple[str, Any]]:
    """Modality and what its encoder is called with."""
    sound: list[tuple[str, Any]] = [] if seen.samples is None else [("audio", seen.samples)]
    return sound + [
        (modality, [picture.pixels for picture in pictures]) for modality, pictures in seen.pictures.items()
    ]


def _finite(features: dict[str, Tensor], place: str, report: ProblemHandler) -> dict[str, Tensor]:
    for modality in [name for name, tokens in features.items() if not tokens.isfinite().all()]:
        report(Problem("not_finite", place, f"{modality}: NaN or infinity among its features"))
        del features[modality]
    return features


def _half(frame: np.ndarray, half: str | None) -> np.ndarray:
    middle = frame.shape[1] // 2
    if half is None:
        return frame
    return frame[:, :middle] if half == "left" else frame[:, middle:]
