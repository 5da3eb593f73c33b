"""Where a live conversation comes from: a file that is replayed, or a microphone."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from amuse.data.folder import AUDIO
from amuse.encoders.signal import SAMPLE_RATE
from amuse.files import check_recording
from amuse.live.listener import Live
from amuse.media.decode import read_audio
from amuse.media.picture import picture
from amuse.media.sources import Span
from amuse.media.tracks import MediaError, TimedFrame, open_track

BLOCK = 0.1
"""Seconds of sound that come in together."""
READ = 30.0
"""Seconds of a file's sound that are decoded together."""
NEEDS_SOUNDDEVICE = "the microphone needs sounddevice: pip install amuse-kernels[live]"
NEEDS_PORTAUDIO = "the microphone needs PortAudio, which sounddevice does not bring on Linux: apt install libportaudio2"


def replay(
    path: Path,
    live: Live,
    speed: float = 1.0,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Let a conversation be heard and seen as if it happened now; returns after its last sound.

    Args:
        path: A video or audio file.
        live: Listens.
        speed: How many times faster; 0 = as fast as it is understood, so that nothing is dropped.
        sleep, clock: Wait that many seconds, and tell them.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A negative speed, or a file without readable sound.
    """
    if speed < 0:
        raise ValueError(f"speed: expected 0 or more, got {speed}")
    check_recording(path)
    pictures = _frames(path) if live.looks and path.suffix.lower() not in AUDIO else iter(())
    upcoming = next(pictures, None)
    began = clock()
    for block in _blocks(path):
        live.hear(block)
        while upcoming is not None and upcoming[0] <= live.seconds:
            live.see(*upcoming[1:], time=upcoming[0])
            upcoming = next(pictures, None)
        if speed == 0:
            live.catch_up()
        else:
            sleep(max(began + live.seconds / speed - clock(), 0.0))


def microphone(device: str | None = None) -> Iterator[np.ndarray]:
    """Blocks of float32 samples at 16 kHz from a microphone, without end.

    Args:
        device: Its number, or a part of its name; None = the default one.

    Raises:
        ImportError: Sounddevice or PortAudio is missing; says how to install it.
        ValueError: No such microphone, or none at all.
    """
    stream = _microphone(device)
    with stream:
        while True:
            yield stream.read(round(BLOCK * SAMPLE_RATE))[0][:, 0]


def check_microphone(device: str | None = None) -> None:
    """Raises what `microphone` raises, without waiting for models to be loaded."""
    _microphone(device).close()


def _microphone(device: str | None) -> Any:
    sounddevice = _sounddevice()
    chosen = int(device) if device is not None and device.isdigit() else device
    try:
        return sounddevice.InputStream(
            samplerate=SAMPLE_RATE,
            channels=1,
            dtype="float32",
            blocksize=round(BLOCK * SAMPLE_RATE),
            device=chosen,
        )
    except (sounddevice.PortAudioError, ValueError) as error:
        inputs = [each["name"] for each in sounddevice.query_devices() if each["max_input_channels"] > 0]
        there = f"there are: {', '.join(inputs)}" if inputs else "this machine has none"
        named = "the default microphone" if device is None else repr(device)
        raise ValueError(f"microphone: expected one that can be opened, got {named} ({error}); {there}") from None


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError:
        raise ImportError(NEEDS_SOUNDDEVICE) from None
    except OSError:
        raise ImportError(NEEDS_PORTAUDIO) from None
    return sounddevice


def _blocks(path: Path) -> Iterator[np.ndarray]:
    size, begin = round(BLOCK * SAMPLE_RATE), 0.0
    while True:
        try:
            samples = read_audio(Span(path, begin), READ, lambda kind, message: None)
        except MediaError as error:
            if begin > 0 and error.kind == "out_of_range":
                return
            raise ValueError(str(error)) from None  # which names the file
        for place in range(0, len(samples), size):
            yield samples[place : place + size]
        begin += len(samples) / SAMPLE_RATE


def _frames(path: Path) -> Iterator[tuple[float, Callable[[], np.ndarray], int]]:
    """When each frame of a video appears, how to get its picture, and its size in bytes; none without a picture."""
    try:
        with open_track(path, "video", lambda kind, message: None) as track:
            aspect = float(track.stream.sample_aspect_ratio or 1)
            shown: TimedFrame
            for shown in track.frames(0.0):
                size = sum(plane.buffer_size for plane in shown.frame.planes)
                yield shown.time, partial(picture, shown.frame, aspect), size
    except MediaError:
        return
