"""One track of a media file: which one is used, where it ends, and its frames with their presentation times.

Containers differ in what can be trusted. Some store a time with every packet and an index (MP4, Matroska, AVI, WAV):
seeking works, though it may land after the target. In some, times restart in the middle (concatenated MPEG-TS and Ogg,
DVDs), and some have no times, so that FFmpeg guesses times and length from the bit rate (raw AAC, MP3). So a file
without an index is surveyed once, a seek is trusted only in formats that are known and only if it lands before its
target, and everything else is read from the beginning.
"""

import functools
import heapq
import math
import re
import wave
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

Note = Callable[[str, str], None]
"""Takes a kind of `amuse.data.problems` and a message."""

INDEXED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "wav", "flac", "aiff", "w64", "caf"}
"""FFmpeg's names of the formats whose times and lengths are stored, not guessed."""
TIMED = {"mpegts", "mpeg", "flv", "asf", "mxf", "nut", "rm", "dv"}
"""FFmpeg's names of formats that store times, but neither lengths nor an index that can be trusted."""
BY_BYTES = {"wav", "aiff", "w64", "caf"}
"""FFmpeg guesses their time after a jump from the bytes per second in the header, which only PCM keeps."""
BACK = (0.0, 1.0, 4.0, 16.0, 64.0)
"""Seconds before its target at which a seek is tried, one after the other, until it lands before the target."""
PREROLL = 0.25
"""Sound is decoded from this many seconds earlier, since a frame of MP3, AAC or Opus depends on the previous ones."""
RESTART = 0.5
"""If times go back by more than this many seconds, another part begins, whose times start again."""
PRIMING = 0.1
"""A file that begins at most this many seconds before zero begins at zero: the decoder drops the samples before it."""
REORDERED = 8
"""AVI stores no display times: frames that leave the decoder within this many of each other may have swapped theirs."""
_COMMENTARY = re.compile(r"comment|descri", re.IGNORECASE)


class MediaError(Exception):
    """A stream that cannot be used; `kind` is one of `amuse.data.problems.LOSSES`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class TimedFrame(NamedTuple):
    """A decoded frame, and when it begins, in seconds from the beginning of the file."""

    time: float
    frame: Any


def pyav() -> Any:
    try:
        import av
        import av.stream
    except ImportError:
        raise ImportError("reading video and audio needs PyAV: pip install amuse-kernels[media]") from None
    return av


@dataclass
class Clock:
    """Makes the times of packets continuous: each part begins at the end of the previous one.

    Attributes:
        shifts: Seconds to add, one entry per part; shared by all tracks, so that they stay synchronous.
        parts: Track -> the part of its last packet.
        latest: Track -> time of its last packet, as stored.
        ends: Track -> end of its last packet, in continuous seconds.
    """

    shifts: list[float] = field(default_factory=lambda: [0.0])
    parts: dict[int, int] = field(default_factory=dict)
    latest: dict[int, float] = field(default_factory=dict)
    ends: dict[int, float] = field(default_factory=dict)

    def shift(self, packet: Any) -> float:
        """Seconds to add to the packet's times."""
        track, base = packet.stream.index, packet.time_base
        stored = packet.pts if packet.dts is None else packet.dts
        part = self.parts.get(track, 0)
        if stored is None:
            return self.shifts[part]
        time = float(stored * base)
        if time < self.latest.get(track, -math.inf) - RESTART:
            part += 1
            if part == len(self.shifts):
                self.shifts.append(max(self.ends.values()) - time)
        self.parts[track], self.latest[track] = part, time
        shown = time if packet.pts is None else float(packet.pts * base)
        end = shown + float((packet.duration or 0) * base) + self.shifts[part]
        self.ends[track] = max(self.ends.get(track, -math.inf), end)
        return self.shifts[part]


@dataclass(frozen=True)
class Survey:
    """The result of reading all packets of a file once.

    Attributes:
        ends: Track -> its end, in seconds from the beginning of the file.
        restarts: Whether times restart in the middle.
    """

    ends: dict[int, float]
    restarts: bool


class Track:
    """The sound or the picture of an open file, see `open_track`.

    Attributes:
        stream: FFmpeg's stream.
    """

    def __init__(self, path: Path, kind: str, note: Note) -> None:
        self._path, self._kind, self._note = path, kind, note
        self._stack = ExitStack()
        self._container: Any = None
        self.stream: Any = None

    def __enter__(self) -> Self:
        try:
            self._open()
            self._take(self._choose())
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stack.close()
        # PyAV gives a ValueError for what it cannot turn into a frame
        if isinstance(error, (pyav().FFmpegError, ValueError)):
            # without the path, which PyAV repeats
            reason = error.strerror if isinstance(error, pyav().FFmpegError) else str(error)
            raise MediaError("unreadable", f"{self._path.name}: cannot be read as a media file: {reason}") from None

    @property
    def end(self) -> float:
        """Where this track ends, in seconds, by its packets."""
        return self._survey.ends.get(self.stream.index, 0.0)

    @property
    def file_end(self) -> float:
        """Where the last of all tracks ends, in seconds; in an indexed file that was cut off, where it should."""
        promised = _promised(self._container, self._path) if self._indexed else 0.0
        return max(promised, *self._survey.ends.values(), 0.0)

    def frames(self, begin: float) -> Iterator[TimedFrame]:
        """Decoded frames in the order of time, from one that begins no later than `begin`, where there is one.

        Damaged packets are left out and noted.
        """
        begin -= PREROLL if self._kind == "audio" else 0.0
        for back in BACK if self._jumps else ():
            if begin - back <= 0 or not self._jump(begin - back):
                break
            frames = self._decoded(begin, from_start=False)
            first = next(frames, None)
            if first is not None and first.time <= begin + 1e-3:
                yield first
                yield from frames
                return
            frames.close()
        if self._moved:
            index = self.stream.index
            self._open()
            self._take(self._container.streams[index])
        yield from self._decoded(begin, from_start=True)

    @property
    def _indexed(self) -> bool:
        return self._container.format.name in INDEXED

    @property
    def _jumps(self) -> bool:
        """Whether times mean the same after a jump as when read from the beginning."""
        name = self._container.format.name
        if name in BY_BYTES:
            return self.stream.codec_context.name.startswith("pcm_")
        return self._indexed or (name in TIMED and not self._survey.restarts)

    @functools.cached_property
    def _survey(self) -> Survey:
        state = self._path.stat()
        return survey(self._path, state.st_size, state.st_mtime_ns)

    def _open(self) -> None:
        self._stack.close()
        self._container = self._stack.enter_context(pyav().open(self._path, metadata_errors="ignore"))
        self._moved = False

    def _take(self, stream: Any) -> None:
        stream.codec_context.thread_count = 1  # clips are decoded side by side
        self.stream = stream

    def _choose(self) -> Any:
        """The default track; one that can be decoded rather than not, and the conversation rather than a commentary."""
        flags = pyav().stream.Disposition
        aside = flags.comment | flags.visual_impaired | flags.hearing_impaired | flags.descriptions

        def rank(stream: Any) -> tuple[bool, ...]:
            title = stream.metadata.get("title") or stream.metadata.get("handler_name") or ""
            extra = bool(stream.disposition & aside) or bool(_COMMENTARY.search(title))
            return stream.codec_context is None, extra, not stream.disposition & flags.default

        # a "video" may be the cover picture of a music file
        streams = [s for s in getattr(self._container.streams, self._kind) if not s.disposition & flags.attached_pic]
        if not streams:
            raise MediaError(f"no_{self._kind}", f"{self._path.name}: has no {self._kind} track")
        chosen = min(streams, key=rank)
        if chosen.codec_context is None:
            raise MediaError("codec", f"{self._path.name}: FFmpeg has no decoder for its {self._kind} track")
        if len(streams) > 1:
            number = streams.index(chosen) + 1
            self._note("several_tracks", f"{self._path.name}: {self._kind} track {number} of {len(streams)} is used")
        return chosen

    def _jump(self, time: float) -> bool:
        """Whether the file can be continued near a time."""
        self._moved = True
        try:
            self._container.seek(round((time + _zero(self._container)) / self.stream.time_base), stream=self.stream)
        except pyav().FFmpegError:
            return False
        return True

    def _packets(self) -> Iterator[tuple[float | None, Any]]:
        """Packets of this track, with the time when each is shown, in seconds from the beginning of the file."""
        self._moved = True
        zero, clock = _zero(self._container), None
        streams = [self.stream]
        if not self._indexed and self._survey.restarts:
            clock, streams = Clock(), _media_streams(self._container)
        for packet in _demuxed(self._container, streams):
            if clock is not None and packet.size:
                shift = round(clock.shift(packet) / packet.time_base)
                packet.pts = None if packet.pts is None else packet.pts + shift
                packet.dts = None if packet.dts is None else packet.dts + shift
            if packet.stream.index == self.stream.index:
                stored = packet.dts if packet.pts is None else packet.pts
                yield None if stored is None else float(stored * packet.time_base) - zero, packet

    def _awaited(self, begin: float, from_start: bool) -> Iterator[Any]:
        """Packets from the last one before `begin` at which decoding can start."""
        held: list[Any] | None = []
        for time, packet in self._packets():
            starts = packet.is_keyframe or self._kind == "audio"
            if held is None:
                yield packet
            elif time is None or time > begin:
                yield from (*held, packet)
                held = None
            elif starts:
                held = [packet]
            elif held or from_start:
                held.append(packet)
        yield from held or ()

    def _decoded(self, begin: float, from_start: bool) -> Generator[TimedFrame]:
        av = pyav()
        decoded = damaged = 0
        zero: float | None = _zero(self._container)
        if (
            self._container.start_time is None and not self._jumps
        ):  # no times: they count from the first frame, so that one is needed
            zero, begin = None, -math.inf
        rate = float(self.stream.guessed_rate or 25) if self._kind == "video" else 0.0

        def timed() -> Iterator[TimedFrame]:
            nonlocal decoded, damaged, zero
            time = 0.0  # of a frame that has none itself, such as all but the first of a packet
            packets = self._awaited(begin, from_start)
            while True:
                try:
                    packet = next(packets, None)
                    if packet is None:
                        return
                    frames = packet.decode()
                except av.FFmpegError:
                    # after a jump, the first frames may need others that were skipped
                    damaged += bool(decoded) or from_start
                    continue
                for frame in frames:
                    decoded += 1
                    if frame.time is not None:
                        zero = frame.time if zero is None else zero
                        time = frame.time - zero
                    yield TimedFrame(time, frame)
                    time += 1 / rate if rate else frame.samples / frame.sample_rate

        try:
            yield from _in_order(timed()) if self._container.format.name == "avi" else timed()
            if damaged and not decoded:
                raise MediaError(
                    "unreadable", f"{self._path.name}: none of {damaged} {self._kind} packets can be decoded"
                )
        finally:  # a reader stops when it has enough
            if damaged and decoded:
                self._note("damaged", f"{self._kind}: {damaged} packets cannot be decoded")


def open_track(path: Path, kind: str, note: Note) -> Track:
    """The default track of a kind, to be used in a `with` block.

    Args:
        path: Any file that FFmpeg reads.
        kind: "audio" or "video".
        note: Takes `several_tracks` and `damaged`.

    Raises:
        MediaError: On entering or inside of the block: unreadable, no_audio, no_video or codec.
    """
    return Track(path, kind, note)


@functools.lru_cache(maxsize=256)
def survey(path: Path, size: int, changed: int) -> Survey:
    """Reads all packets of a file once; `size` and `changed` tell one state of the file from another.

    Raises:
        av.FFmpegError: it cannot be opened.
    """
    av = pyav()
    clock = Clock()
    with av.open(path, metadata_errors="ignore") as container:
        zero, streams = _zero(container), _media_streams(container)
        untimed = dict.fromkeys((stream.index for stream in streams), 0)
        try:
            for packet in _demuxed(container, streams):
                if packet.size:
                    clock.shift(packet)
                    untimed[packet.stream.index] += packet.pts is None and packet.dts is None
        except av.FFmpegError:  # broken from here on
            pass
        ends = {track: end - zero for track, end in clock.ends.items()}
        for stream in streams:
            if stream.index not in ends and stream.type == "video":
                ends[stream.index] = untimed[stream.index] / float(stream.guessed_rate or 25)
    return Survey(ends, len(clock.shifts) > 1)


def _demuxed(container: Any, streams: list[Any]) -> Iterator[Any]:
    """The packets of these streams."""
    try:
        yield from container.demux(streams)
    except IndexError:  # at the end of a file in which another stream began late, which PyAV does not know
        return


def _media_streams(container: Any) -> list[Any]:
    covers = pyav().stream.Disposition.attached_pic
    return [s for s in (*container.streams.video, *container.streams.audio) if not s.disposition & covers]


def _promised(container: Any, path: Path) -> float:
    """The length of a file by its header, in seconds; FFmpeg shortens those of AVI and WAV to the data in the file."""
    found = (container.duration or 0) / 1e6
    if container.format.name == "avi":
        found = max(found, *(float(s.frames / s.average_rate) for s in container.streams.video if s.average_rate), 0.0)
    if container.format.name == "wav":
        try:
            with wave.open(str(path)) as file:
                # programs that do not know the length yet write the largest one, or none
                length = file.getnframes() * file.getnchannels() * file.getsampwidth()
                found = max(found, file.getnframes() / file.getframerate() if length < 0x7FFFFF00 else 0.0)
        except (wave.Error, EOFError, ZeroDivisionError):  # coded in another way, or broken
            pass
    return found


def _zero(container: Any) -> float:
    """The time at which a file begins, in seconds as stored."""
    start = (container.start_time or 0) / 1e6
    return 0.0 if -PRIMING < start < 0 else start


def _in_order(frames: Iterator[TimedFrame]) -> Iterator[TimedFrame]:
    """Frames with the same times in ascending order."""
    times: list[float] = []
    held: list[Any] = []
    for time, frame in frames:
        heapq.heappush(times, time)
        held.append(frame)
        if len(held) > REORDERED:
            yield TimedFrame(heapq.heappop(times), held.pop(0))
    while held:
        yield TimedFrame(heapq.heappop(times), held.pop(0))
