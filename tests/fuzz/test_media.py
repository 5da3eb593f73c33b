"""Recordings that are cut, overwritten or foreign: read within their bounds, or refused with the reason."""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")

from amuse.data.problems import LOSSES, NOTES
from amuse.encoders.signal import SAMPLE_RATE
from amuse.media.decode import read_audio, read_frames
from amuse.media.sources import Span
from amuse.media.tracks import MediaError
from tests.fuzz.corruption import corrupted
from tests.media_files import bursts, write_numbered, write_sound_of

SECONDS = 2.0
VIDEOS = {
    "a.mp4": ("libx264", "aac"),
    "a.mkv": ("libx264", "libopus"),
    "a.webm": ("libvpx", "libopus"),
    "a.avi": ("mpeg4", "libmp3lame"),
    "a.ts": ("mpeg2video", "mp2"),
    "a.mpg": ("mpeg2video", "mp2"),
    "a.flv": ("flv", "libmp3lame"),
    "a.mov": ("mjpeg", "pcm_s16le"),
}
SOUNDS = {"a.wav": "pcm_s16le", "a.mp3": "libmp3lame", "a.ogg": "libopus", "a.aac": "aac", "a.flac": "flac"}
TELLING = ("a.mp4", "a.mov", "a.avi", "a.mkv", "a.webm", "a.wav", "a.flac")
"""Files whose header says how long they are."""


@cache
def sound_file(name):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        if name in SOUNDS:
            write_sound_of(path, SOUNDS[name], bursts(SECONDS, 48000))
        else:
            codec, sound = VIDEOS[name]
            write_numbered(path, SECONDS, codec=codec, sound=sound, key_distance=12)
        return path.read_bytes()


def read(name, content, begin, end):
    """Sound, pictures and notes of a span; None where there is an error."""
    notes = []

    def note(kind, message):
        assert kind in {**NOTES, **LOSSES}
        notes.append(kind)

    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        for reader in (read_audio, lambda *given: read_frames(given[0], 4, *given[1:])):
            try:
                found.append(reader(Span(path, begin, end), 3.0, note))
            except MediaError as error:
                note(error.kind, str(error))
                found.append(None)
    return *found, notes


@given(
    name=st.sampled_from([*VIDEOS, *SOUNDS]),
    span=st.sampled_from([(0.0, None), (0.0, 0.5), (0.6, 1.4), (1.9, 3.0), (50.0, 51.0)]),
    data=st.data(),
)
def test_broken_recordings_are_read_within_their_bounds_or_refused(name, span, data):
    samples, frames, _ = read(name, data.draw(corrupted(sound_file(name))), *span)
    begin, end = span
    if samples is not None:
        assert samples.dtype == np.float32
        assert np.isfinite(samples).all()
        assert 0 < len(samples) <= round((3.0 if end is None else end - begin) * SAMPLE_RATE) + 1
    if frames is not None:
        assert len(frames) == 4
        assert all(frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3 for frame in frames)


@given(name=st.sampled_from(TELLING), share=st.floats(0, 1))
def test_missing_parts_of_a_truncated_recording_are_reported(name, share):
    content = sound_file(name)
    samples, frames, notes = read(name, content[: int(share * len(content))], 0.0, None)
    if samples is None or (frames is None and name in VIDEOS):
        assert set(notes) & set(LOSSES)
    elif len(samples) < (SECONDS - 0.55) * SAMPLE_RATE:
        assert {"truncated", "damaged", "sound_gap"} & set(notes)
