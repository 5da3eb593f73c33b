"""Sound and key frames of a part of a media file."""

import statistics
from itertools import pairwise
from pathlib import Path

import numpy as np

from amuse.media.picture import picture
from amuse.media.sound import Timeline
from amuse.media.sources import Span
from amuse.media.tracks import MediaError, Note, TimedFrame, Track, open_track

MAX_PIXELS = 8192 * 4320
"""Larger frames are not decoded: a file of a few kilobytes can claim frames of many gigabytes."""


def read_audio(span: Span, max_seconds: float, note: Note) -> np.ndarray:
    """The sound of a span as mono float32 `(samples,)` at 16 kHz, at most `max_seconds` of it.

    Sample i is the sound i / 16000 seconds after the beginning of the span. Where the file has none, as before a track
    that starts late, it is silent, which is noted. Nothing is added after the end of the track.

    Raises:
        MediaError: Unreadable, no_audio, codec, empty_audio or out_of_range.
    """
    with open_track(span.path, "audio", note) as track:
        begin, end = _limits(track, span, max_seconds, note)
        timeline, decoded, passed_end = Timeline(begin), False, False
        for time, frame in track.frames(begin):
            decoded = True
            passed_end = time >= end
            if passed_end:
                break
            if time + frame.samples / frame.sample_rate > begin:
                timeline.add(time, frame)
        if not decoded and track.end <= 0:
            raise MediaError("empty_audio", f"{span.path.name}: the audio track has no samples")
        last = end if passed_end else min(timeline.end or begin, end)
        samples, missing, cancelled = timeline.samples(last)
    if not len(samples):
        raise MediaError("out_of_range", f"{span.path.name}: the audio track has no samples{_within(span)}")
    _note_truncation(span, "audio", last - begin, end - begin, note)
    if missing >= 0.1:
        note("sound_gap", f"{span.path.name}: {missing:.2f} s without sound{_within(span)}")
    if cancelled:
        note("cancelled", f"{span.path.name}{_within(span)}")
    note_silence(samples, span, note)
    return samples


def read_frames(span: Span, count: int, max_seconds: float, note: Note) -> list[np.ndarray]:
    """`count` key frames, uint8 `(H, W, 3)` RGB: the pictures on screen in the middle of equal parts of the span.

    No frame is from outside the span: where the picture begins late or ends early, its first or last frame is used.

    Raises:
        MediaError: Unreadable, no_video, codec, resolution or out_of_range.
    """
    with open_track(span.path, "video", note) as track:
        width, height = track.stream.codec_context.width, track.stream.codec_context.height
        if width * height > MAX_PIXELS:
            raise MediaError("resolution", f"{span.path.name}: {width} x {height}, at most 8192 x 4320 is decoded")
        begin, end = _limits(track, span, max_seconds, note)
        last = min(end, max(track.end, begin)) if span.end is None else end
        targets = middles(begin, last, count)
        aspect = float(track.stream.sample_aspect_ratio or 1)
        images: list[np.ndarray] = []
        times: list[float] = []
        shown: TimedFrame | None = None
        passed_end = False
        for frame in track.frames(begin):
            passed_end = frame.time >= end
            if passed_end and not times:
                break
            times.append(frame.time)
            while len(images) < count and shown is not None and frame.time > targets[len(images)]:
                images.append(picture(shown.frame, aspect))
            if passed_end or len(images) == count:
                break
            shown = frame
        steps = [after - before for before, after in pairwise(times) if after > before]
        if shown is None or (not passed_end and not images and shown.time + _duration(shown, steps) <= begin):
            raise MediaError("out_of_range", f"{span.path.name}: no frame{_within(span)}")
        if len(images) < count:
            images += [picture(shown.frame, aspect)] * (count - len(images))
            if not passed_end:
                last = min(last, shown.time + _duration(shown, steps))
    _note_truncation(span, "video", last - begin, end - begin, note)
    if len(steps) > 2 and max(steps) > 2 * statistics.median(steps):
        note("variable_frame_rate", f"{span.path.name}: {min(steps):.3f} to {max(steps):.3f} s between frames")
    return images


def middles(begin: float, end: float, count: int) -> list[float]:
    """The times of key frames: the middle of each of `count` equal parts."""
    return [begin + (i + 0.5) * (end - begin) / count for i in range(count)]


def shortened(span: Span, end: float, max_seconds: float, note: Note) -> float:
    """The end of what is used of a span that ends at `end`; long_utterance, if that is not all."""
    if end - span.begin > max_seconds:
        note("long_utterance", f"{span.path.name}: {end - span.begin:.1f} s{_within(span)}")
    return min(end, span.begin + max_seconds)


def note_silence(samples: np.ndarray, span: Span, note: Note) -> None:
    """Reports samples that nobody could hear."""
    if np.abs(samples).max() < 1e-5:
        note("silent", f"{span.path.name}{_within(span)}")


def media_seconds(path: Path) -> float:
    """Length of a video.

    Raises:
        MediaError: Unreadable, no_video or codec.
    """
    with open_track(path, "video", lambda kind, message: None) as track:
        return track.file_end


def _limits(track: Track, span: Span, max_seconds: float, note: Note) -> tuple[float, float]:
    """The part of the file to read, as its begin and end in seconds."""
    end = track.file_end if span.end is None else span.end
    if span.begin > 0 and span.begin >= end:
        raise MediaError(
            "out_of_range", f"{span.path.name}: ends at {end:.2f} s, the span begins at {span.begin:.2f} s"
        )
    return span.begin, shortened(span, end, max_seconds, note)


def _duration(shown: TimedFrame, steps: list[float]) -> float:
    """How long a frame stays on screen, in seconds, if the file says so; at least as long as the frames before it."""
    return max(float((shown.frame.duration or 0) * (shown.frame.time_base or 0)), *steps, 0.0)


def _note_truncation(span: Span, kind: str, got: float, expected: float, note: Note) -> None:
    if got < expected - 0.5 and got < 0.9 * expected:
        note("truncated", f"{span.path.name}: {kind} ends after {got:.2f} of {expected:.2f} s{_within(span)}")


def _within(span: Span) -> str:
    return "" if span.end is None else f" between {span.begin:.2f} and {span.end:.2f} s"
