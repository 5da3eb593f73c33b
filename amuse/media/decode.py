"""Sound and key frames of a part of a media file, by PyAV (FFmpeg)."""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from amuse.encoders.signal import SAMPLE_RATE
from amuse.media.sources import Span

MAX_PIXELS = 8192 * 4320
"""Larger frames are not decoded: a file of a few kilobytes can claim frames of many gigabytes."""
LONGEST_SIDE = 640
"""Frames are scaled down to this, which is more than detectors and encoders read."""

Note = Callable[[str, str], None]
"""Takes a kind of `amuse.data.problems` and a message."""


class MediaError(Exception):
    """A stream that cannot be used; `kind` is one of `amuse.data.problems.LOSSES`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def read_audio(span: Span, max_seconds: float, note: Note) -> np.ndarray:
    """The sound of a span as mono float32 `(samples,)` at 16 kHz, at most `max_seconds` of it.

    Raises:
        MediaError: unreadable, no_audio, codec, empty_audio or out_of_range.
    """
    with _opened(span, "audio") as (container, stream):
        begin, end = _limits(container, stream, span, max_seconds, note)
        resampler = pyav().AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        first: float | None = None
        chunks: list[np.ndarray] = []
        for time, frame in _frames(container, stream, begin, note):
            if time >= end:
                break
            first = time if first is None else first
            chunks += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        if first is None:
            raise MediaError("empty_audio", f"{span.path.name}: the audio track has no samples{_within(span)}")
        chunks += [part.to_ndarray()[0] for part in resampler.resample(None)]
        # frames overhang the span at both ends
        skip = max(round((begin - first) * SAMPLE_RATE), 0)
        samples = np.concatenate(chunks)[skip : skip + round((end - max(begin, first)) * SAMPLE_RATE)]
    if not len(samples):
        raise MediaError("empty_audio", f"{span.path.name}: the audio track has no samples{_within(span)}")
    _note_truncation(span, "audio", len(samples) / SAMPLE_RATE + max(first - begin, 0), end - begin, note)
    if np.abs(samples).max() < 1e-5:
        note("silent", f"{span.path.name}{_within(span)}")
    return samples


def read_frames(span: Span, count: int, max_seconds: float, note: Note) -> list[np.ndarray]:
    """`count` key frames, uint8 `(H, W, 3)` RGB: what is on screen in the middle of `count` equal parts of the span.

    Raises:
        MediaError: unreadable, no_video, codec, resolution or out_of_range.
    """
    with _opened(span, "video") as (container, stream):
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAX_PIXELS:
            raise MediaError("resolution", f"{span.path.name}: {width} x {height}, at most 8192 x 4320 is decoded")
        begin, end = _limits(container, stream, span, max_seconds, note)
        targets = [begin + (i + 0.5) * (end - begin) / count for i in range(count)]
        images: list[np.ndarray] = []
        times: list[float] = []
        shown: Any = None
        for time, frame in _frames(container, stream, begin, note):
            times.append(time)
            while len(images) < count and shown is not None and time > targets[len(images)]:
                images.append(_image(shown))
            if len(images) == count:
                break
            shown = frame
        if shown is None:
            raise MediaError("out_of_range", f"{span.path.name}: no frame{_within(span)}")
        images += [_image(shown)] * (count - len(images))
    steps = [after - before for before, after in pairwise(times) if after > before]
    _note_truncation(span, "video", times[-1] - begin + max(steps, default=0.0), targets[-1] - begin, note)
    if len(steps) > 2 and max(steps) > 2 * statistics.median(steps):
        note("variable_frame_rate", f"{span.path.name}: {min(steps):.3f} to {max(steps):.3f} s between frames")
    return images


def media_seconds(path: Path) -> float:
    """Length of a video.

    Raises:
        MediaError: unreadable, no_video or codec.
    """
    with _opened(Span(path), "video") as (container, stream):
        return _seconds(container, stream)


@contextmanager
def _opened(span: Span, kind: str) -> Iterator[tuple[Any, Any]]:
    """A container and its first stream of a kind, with decoding errors turned into `MediaError`."""
    av = pyav()
    name = span.path.name
    try:
        with av.open(span.path, metadata_errors="ignore") as container:
            streams = [stream for stream in getattr(container.streams, kind) if not _is_cover(stream)]
            if not streams:
                raise MediaError(f"no_{kind}", f"{name}: has no {kind} track")
            if streams[0].codec_context is None:
                raise MediaError("codec", f"{name}: FFmpeg has no decoder for its {kind} track")
            yield container, streams[0]
    except (av.FFmpegError, ValueError) as error:  # PyAV gives a ValueError for a format that changes midway
        raise MediaError("unreadable", f"{name}: {error}") from None


def _is_cover(stream: Any) -> bool:
    """Whether a "video" is the cover picture of a music file."""
    return bool(stream.disposition & pyav().stream.Disposition.attached_pic)


def _limits(container: Any, stream: Any, span: Span, max_seconds: float, note: Note) -> tuple[float, float]:
    """Beginning and end of what is to be read, in seconds of the file."""
    length = _seconds(container, stream)
    if span.begin > 0 and span.begin >= length:
        raise MediaError("out_of_range", f"{span.path.name}: ends at {length:.2f} s, asked for{_within(span)}")
    end = length if span.end is None else span.end
    if end - span.begin > max_seconds:
        note("long_utterance", f"{span.path.name}: {end - span.begin:.1f} s{_within(span)}")
    return span.begin, min(end, span.begin + max_seconds)


def _seconds(container: Any, stream: Any) -> float:
    """Where a file ends; recordings of browsers do not say, and are read through."""
    if container.duration:
        return float(container.duration / 1e6)
    if stream.duration:
        return float(stream.duration * stream.time_base)
    last = 0.0
    for packet in container.demux(stream):
        if packet.pts is not None:
            last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    container.seek(0)
    return last


def _frames(container: Any, stream: Any, begin: float, note: Note) -> Iterator[tuple[float, Any]]:
    """Decoded frames with their times, from the last key frame before `begin` on; damaged packets are left out."""
    av = pyav()
    zero = (container.start_time or 0) / 1e6
    if begin > 0:
        container.seek(int((begin + zero) / stream.time_base), stream=stream)
    stream.codec_context.thread_count = 1  # clips are decoded side by side
    decoded = damaged = 0
    last = 0.0
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                damaged += 1
                continue
            for frame in frames:
                decoded += 1
                last = last if frame.time is None else frame.time - zero
                yield last, frame
        if damaged and not decoded:
            raise MediaError("unreadable", f"none of {damaged} {stream.type} packets can be decoded")
    finally:  # a reader stops when it has enough
        if damaged and decoded:
            note("damaged", f"{stream.type}: {damaged} packets cannot be decoded")


def _image(frame: Any) -> np.ndarray:
    scale = min(LONGEST_SIDE / max(frame.width, frame.height), 1.0)
    width, height = max(round(frame.width * scale), 1), max(round(frame.height * scale), 1)
    image = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))


def _note_truncation(span: Span, kind: str, got: float, expected: float, note: Note) -> None:
    if got < expected - 0.5 and got < 0.9 * expected:
        note("truncated", f"{span.path.name}: {kind} ends after {got:.2f} of {expected:.2f} s{_within(span)}")


def _within(span: Span) -> str:
    return "" if span.end is None else f" between {span.begin:.2f} and {span.end:.2f} s"


def pyav() -> Any:
    try:
        import av
        import av.stream
    except ImportError:
        raise ImportError("reading video and audio needs PyAV: pip install amuse-kernels[media]") from None
    return av
