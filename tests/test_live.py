"""Promises of a live conversation: the same as the finished file, in bounded memory, and what is dropped is shown."""

import sys
import threading
import tracemalloc
import types
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")

from typer.testing import CliRunner

from amuse.cli.main import app
from amuse.data.transcript import read_transcript
from amuse.encoders.signal import SAMPLE_RATE
from amuse.inference.prediction import PredictedUtterance
from amuse.live import Live, LiveOptions, Lost, Spoken
from amuse.live.memory import RecentPictures, RecentSound
from amuse.live.sources import microphone, replay
from amuse.live.understanding import Understood
from amuse.live.voice import VoiceGate
from amuse.live.writing import LiveTranscript, line, summary
from amuse.media.decode import read_frames
from amuse.media.segments import WINDOW, by_voice, voiced
from amuse.media.sources import Span
from amuse.media.tracks import MediaError
from tests.media_files import tone, write_video, write_wav

NOTHING = lambda kind, message: None  # noqa: E731


def understood(stretch, text="Yes.", emotion="joy"):
    row = PredictedUtterance(
        stretch.start, stretch.end, "speaker 1", text, emotion, 0.8, {emotion: 0.8}, None, ["text"]
    )
    return Understood(row, 0.9)


def loud(window):
    """A voice wherever there is sound."""
    return float(np.abs(window).max() > 0.1)


def speech(*seconds):
    """Sound and silence in turns."""
    parts = [
        tone(each) if i % 2 == 0 else np.zeros(round(each * SAMPLE_RATE), np.float32) for i, each in enumerate(seconds)
    ]
    return np.concatenate(parts)


def blocks(samples, size=1600):
    return [samples[i : i + size] for i in range(0, len(samples), size)]


def test_recent_sound_is_remembered_and_older_sound_is_refused():
    memory, samples = RecentSound(2.0), np.arange(5 * SAMPLE_RATE, dtype=np.float32)
    for block in blocks(samples, 7777):
        memory.add(block)
    np.testing.assert_array_equal(memory.between(3.5, 4.25), samples[56000:68000])
    np.testing.assert_array_equal(memory.between(4.5, 9.0), samples[72000:])
    with pytest.raises(MediaError, match=r"2\.90 to 3\.50 s; heard until 5\.00, kept from 3\.00"):
        memory.between(2.9, 3.5)
    memory.add(samples)  # more than it holds
    np.testing.assert_array_equal(memory.between(8.5, 10.0), samples[56000:])


def test_recent_pictures_are_those_that_the_file_shows(tmp_path):
    video = write_video(tmp_path / "a.mp4", 6.0, fps=10, sound=tone(6.0))
    memory, seen = RecentPictures(100.0), []
    listener = types.SimpleNamespace(looks=True, seconds=0.0, catch_up=lambda: None)
    listener.hear = lambda block: setattr(listener, "seconds", listener.seconds + len(block) / SAMPLE_RATE)
    listener.see = lambda picture, nbytes, time: (memory.add(time, picture, nbytes), seen.append(time))
    replay(video, listener, 0)
    assert len(seen) == 60
    for begin, end, count in ((0.0, 1.0, 4), (2.03, 3.5, 3), (4.0, 6.0, 15)):
        span = Span(video, begin, end)
        expected = read_frames(span, count, 30.0, NOTHING)
        for ours, theirs in zip(memory.read_frames(span, count, 30.0, NOTHING), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_pictures_are_bounded_in_time_and_bytes():
    image = np.zeros((4, 4, 3), np.uint8)
    memory = RecentPictures(2.0, most_bytes=480)
    for i in range(100):
        memory.add(i / 10, lambda: image, 48)
        assert memory.nbytes <= 480
    with pytest.raises(MediaError, match="no picture between"):
        memory.read_frames(Span(Path("live"), 1.0, 2.0), 4, 30.0, NOTHING)
    sparse = RecentPictures(2.0)
    for i in range(100):
        sparse.add(i / 10, lambda: image, 48)
    assert sparse.nbytes <= 22 * 48


def test_stretches_are_closed_at_the_pauses_of_the_whole_recording():
    """Whatever the blocks, whatever the voice: random probabilities with short and long runs."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        runs = rng.integers(1, 40, 200)
        level = np.repeat(rng.random(200), runs).astype(np.float32)
        samples = np.repeat(level, WINDOW)[: -int(rng.integers(WINDOW))]
        gate, found = VoiceGate(lambda window: float(window[0])), []
        for block in blocks(samples, int(rng.integers(100, 3000))):
            found += list(gate.hear(block))
        found += list(gate.finish())
        probabilities = [float(samples[i]) for i in range(0, len(samples), WINDOW)]
        expected = voiced(probabilities, len(samples), pause=0.1, shortest=0.1, longest=25.0)
        assert [piece for stretch in found for piece in stretch.pieces] == expected
        pauses = [after.start - before.end for before, after in pairwise(found)]
        assert min(pauses) >= 0.4
        assert all(stretch.end - stretch.start <= 25.1 for stretch in found)


def test_a_real_voice_is_cut_as_in_the_whole_recording():
    pytest.importorskip("silero_vad", reason="needs the extra: pip install amuse-kernels[speech]")
    from benchmarks import spoken

    if not spoken.installed():
        pytest.skip("needs espeak-ng")
    samples = spoken.conversation(2, turns=3, seed=205).samples
    gate = VoiceGate()
    found = [stretch for block in blocks(samples) for stretch in gate.hear(block)]
    found += list(gate.finish())
    assert [piece for stretch in found for piece in stretch.pieces] == by_voice(
        samples, pause=0.1, shortest=0.1, longest=25.0
    )


def test_utterances_come_in_order_with_the_delay_since_their_end():
    now, shown = [0.0], []
    release = threading.Event()

    def understand(stretch):
        release.wait(10)
        yield understood(stretch)

    live = Live(None, shown.append, understand=understand, gate=VoiceGate(loud), clock=lambda: now[0])
    for block in blocks(speech(1.0, 0.6, 1.0, 0.6)):
        live.hear(block)
        now[0] += 0.1
    now[0] = 5.0
    release.set()
    live.finish()
    assert [round(event.understood.row.start, 1) for event in shown] == [0.0, 1.6]
    # the block with the end of the first utterance came in at 1.0 s, that of the second at 2.6 s
    assert [event.delay for event in shown] == pytest.approx([4.0, 2.4], abs=0.11)
    assert not live.lost
    assert live.waiting == 0


def test_speech_that_waits_too_long_is_dropped_and_shown():
    shown, release, entered = [], threading.Event(), threading.Event()

    def understand(stretch):
        entered.set()
        release.wait(10)
        yield understood(stretch)

    live = Live(None, shown.append, LiveOptions(patience=3.0), understand=understand, gate=VoiceGate(loud))
    sound = speech(*[1.0] * 16)
    for block in blocks(sound[: 2 * SAMPLE_RATE]):
        live.hear(block)
    assert entered.wait(10)
    for block in blocks(sound[2 * SAMPLE_RATE :]):
        live.hear(block)
    assert live.waiting <= 3
    assert [round(event.start) for event in shown] == [2, 4, 6, 8, 10]
    assert all(isinstance(event, Lost) and event.reason == "3 s behind" for event in shown)
    release.set()
    live.finish()
    heard = [round(event.understood.row.start) for event in shown if isinstance(event, Spoken)]
    assert heard == [0, 12, 14]
    told = summary([1.0, 2.0, 3.0], live.lost)
    assert "p50 2.0 s, p99 3.0 s; 5 stretches of speech" in told
    assert told.endswith("dropped: " + ", ".join(f"{line(each).partition('  ')[0]}" for each in live.lost))
    assert summary([], []) == "0 utterances; nothing was dropped"


@pytest.mark.slow
def test_memory_does_not_grow_over_an_hour():
    """An hour of speech and pauses, pictures at 2 a second, and a model that cannot keep up from time to time."""
    count = [0]

    def understand(stretch):
        count[0] += 1
        yield understood(stretch)

    live = Live(None, lambda event: None, understand=understand, gate=VoiceGate(loud))
    live.looks = True
    minute = speech(*[4.3, 0.7, 9.0, 1.0, 30.0, 15.0])
    image = np.zeros((4, 4, 3), np.uint8)
    peaks = []
    tracemalloc.start()
    try:
        for _ in range(60):
            for block in blocks(minute, 8000):
                live.hear(block)
                live.see(lambda: image, 5_000_000)
            live.catch_up()
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.reset_peak()
    finally:
        tracemalloc.stop()
        live.stop()
    assert live.seconds == pytest.approx(3600)
    assert count[0] + len(live.lost) >= 60 * 4
    assert max(peaks[2:]) < peaks[1] + 200_000
    assert live.pictures.nbytes <= 256 * 2**20
    assert live.sound.size == 60 * SAMPLE_RATE


def test_a_failure_ends_the_conversation_with_its_error():
    def understand(stretch):
        raise ValueError("no such thing")
        yield

    live = Live(None, print, understand=understand, gate=VoiceGate(loud))
    for block in blocks(speech(1.0, 0.6)):
        live.hear(block)
    with pytest.raises(ValueError, match="no such thing"):
        live.catch_up()
    with pytest.raises(ValueError, match="no such thing"):
        live.hear(tone(0.1))
    live.stop()


def test_lines_are_written_as_they_come_and_read_back(tmp_path):
    shown = []
    live = Live(
        None, shown.append, understand=lambda s: iter([understood(s, 'He said "no", twice')]), gate=VoiceGate(loud)
    )
    path = tmp_path / "talk.csv"
    with LiveTranscript(path) as transcript:
        for block in blocks(speech(1.0, 0.6)):
            live.hear(block)
        live.catch_up()
        transcript.add(shown[0])
        assert len(path.read_text("utf-8-sig").splitlines()) == 2  # before the end
    live.finish()
    problems = []
    (read,) = read_transcript(path, problems.append)
    assert not problems
    assert (read.speaker, read.text, read.label) == ("speaker 1", 'He said "no", twice', None)
    assert (read.start, read.end) == (shown[0].understood.row.start, pytest.approx(1.0, abs=0.1))
    assert path.read_text("utf-8-sig").splitlines()[1].endswith(",0.90,joy,0.80")
    assert line(shown[0]).startswith("0:00.00 - 0:01.")
    with pytest.raises(FileExistsError, match="perhaps corrected by hand"):
        LiveTranscript(path)
    with pytest.raises(ValueError, match=r"expected a file ending in \.csv"):
        LiveTranscript(tmp_path / "talk.json")


def run_live(*arguments):
    return CliRunner().invoke(app, ["live", *map(str, arguments)], catch_exceptions=False)


def test_a_missing_microphone_is_reported_before_any_model_is_loaded(monkeypatch, tmp_path):
    class PortAudioError(Exception):
        pass

    def refuse(**options):
        raise PortAudioError("Error querying device -1")

    there = [{"name": "Loopback", "max_input_channels": 0}]
    fake = types.SimpleNamespace(PortAudioError=PortAudioError, InputStream=refuse, query_devices=lambda: there)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    with pytest.raises(
        ValueError, match=r"got the default microphone \(Error querying device -1\); this machine has none"
    ):
        run_live(tmp_path)
    there[0]["max_input_channels"] = 2
    with pytest.raises(ValueError, match=r"got 'headset' .*; there are: Loopback"):
        run_live(tmp_path, "--microphone", "headset")
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(ImportError, match=r"needs sounddevice: pip install amuse-kernels\[live\]"):
        run_live(tmp_path)


def test_a_microphone_gives_blocks_of_sound(monkeypatch):
    opened = {}

    class Stream:
        def __init__(self, **options):
            opened.update(options)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            opened["closed"] = True

        def read(self, count):
            return np.full((count, 1), 0.5, np.float32), False

    monkeypatch.setitem(
        sys.modules, "sounddevice", types.SimpleNamespace(PortAudioError=RuntimeError, InputStream=Stream)
    )
    heard = microphone("3")
    assert next(heard).shape == (1600,)
    heard.close()
    assert opened == {
        "samplerate": 16000,
        "channels": 1,
        "dtype": "float32",
        "blocksize": 1600,
        "device": 3,
        "closed": True,
    }


def test_impossible_requests_are_refused(tmp_path):
    live = types.SimpleNamespace(looks=False)
    with pytest.raises(FileNotFoundError, match="expected a video or audio file"):
        replay(tmp_path / "nothing.wav", live)
    with pytest.raises(ValueError, match="speed: expected 0 or more, got -1"):
        replay(tmp_path, live, -1)
    (tmp_path / "talk.mp4").write_bytes(b"nothing of a video" * 100)
    with pytest.raises(ValueError, match=r"talk\.mp4: "):
        replay(tmp_path / "talk.mp4", live)
    with pytest.raises(ValueError, match="patience: expected seconds above 0, got 0"):
        LiveOptions(patience=0)
    with pytest.raises(FileNotFoundError, match="expected a video or audio file"):
        run_live(tmp_path, "--file", tmp_path / "nothing.wav")
    with pytest.raises(ValueError, match="--microphone: expected no --file"):
        run_live(tmp_path, "--file", tmp_path / "talk.mp4", "--microphone", "1")


def test_a_replay_takes_as_long_as_the_recording_and_loses_no_sound(tmp_path):
    samples = speech(0.5, 0.4, 35.0, 0.25)  # more than is decoded together
    heard, waits = [], []
    live = types.SimpleNamespace(looks=False, seconds=0.0, catch_up=lambda: None)

    def hear(block):
        heard.append(block)
        live.seconds += len(block) / SAMPLE_RATE

    live.hear = hear
    replay(write_wav(tmp_path / "a.wav", samples), live, 2.0, waits.append, lambda: 0.0)
    np.testing.assert_allclose(np.concatenate(heard), samples, atol=1e-4)
    assert waits[-1] == pytest.approx(36.15 / 2)
    assert sorted(waits) == waits
