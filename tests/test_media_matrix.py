"""Containers by key-frame distances by spans: in every cell, what is seen and heard is what was recorded then."""

import os
import subprocess
import sys
from fractions import Fraction
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")

from amuse.data.problems import LOSSES, NOTES
from amuse.encoders.signal import SAMPLE_RATE
from amuse.media.decode import media_seconds, read_audio, read_frames
from amuse.media.picture import upright
from amuse.media.sources import Span
from amuse.media.tracks import MediaError, open_track
from tests.media_files import (
    FPS,
    bursts,
    copied,
    encoded_sound,
    number,
    onsets,
    tone,
    write_numbered,
    write_sound_of,
)
from tests.processes import ROOT

SECONDS = 6.0
SPANS = [(0.0, 1.0), (0.48, 0.96), (1.52, 2.0), (2.0, 2.16), (3.0, 4.0), (4.96, 5.44), (5.52, 6.0), (0.0, None)]


class Form(NamedTuple):
    """A container: codecs of picture and sound, FFmpeg's name of it, and the muxer's options.

    `late`, `late_sound`: frames by which the file itself is later than what was recorded, where frames are reordered:
    AVI has no display times, and a fragmented MP4 whose header is written first no edit list.
    """

    codec: str
    sound: str | None = None
    form: str | None = None
    options: dict[str, str] | None = None
    late: int = 0
    late_sound: int = 0


FORMS = {
    "h264.ts": Form("libx264", "aac"),
    "mpeg2.ts": Form("mpeg2video", "mp2"),
    "a.m2ts": Form("libx264", "ac3"),
    "a.mpg": Form("mpeg2video", "mp2"),
    "a.vob": Form("mpeg2video", "ac3", "vob"),
    "a.avi": Form("mpeg4", "libmp3lame", late=1),
    "a.flv": Form("libx264", "aac"),
    "sorenson.flv": Form("flv", "libmp3lame"),
    "a.wmv": Form("wmv2", "wmav2", "asf"),
    "a.mkv": Form("libx264", "aac"),
    "no_cues.mkv": Form("libx264", "libopus", options={"live": "1"}),
    "a.webm": Form("libvpx", "libopus"),
    "no_cues.webm": Form("libvpx", "libopus", options={"live": "1"}),
    "a.mp4": Form("libx264", "aac"),
    "fragmented.mp4": Form("libx264", "aac", options={"movflags": "frag_keyframe+empty_moov"}, late=2, late_sound=2),
    "delayed.mp4": Form("libx264", "aac", options={"movflags": "frag_keyframe+empty_moov+delay_moov"}),
    "a.mov": Form("mjpeg", "pcm_s16le"),
    "a.3gp": Form("mpeg4", "aac"),
    "a.ogv": Form("libvpx", "libopus", "ogg"),
    "a.gif": Form("gif"),
    "a.nut": Form("mpeg4", "mp2"),
    "a.mxf": Form("mpeg2video", "pcm_s16le"),
    "a.m3u8": Form("libx264", "aac", "hls", options={"hls_time": "2", "hls_list_size": "0"}),
    "a.rm": Form("rv20", "ac3", "rm"),
    "a.h264": Form("libx264"),
    "a.mjpeg": Form("mjpeg"),
}
REORDERING = {"libx264", "mpeg2video", "mpeg4"}
ALL_KEYS = {"mjpeg", "gif"}


in_full = pytest.mark.skipif("AMUSE_SOAK_STEPS" not in os.environ, reason="make fuzz runs the whole matrix")


def cells():
    """File name, key-frame distance, reordered frames, where the format has them; all of them in `make fuzz`."""
    for name, form in FORMS.items():
        for distance, reorder in product([1, 12, 25, 50, 250], [0, 2]):
            if form.codec in ALL_KEYS and (distance, reorder) != (1, 0):
                continue
            if reorder and (form.codec not in REORDERING or distance == 1):
                continue
            usual = (distance, reorder) in ((25, 2), (50, 0)) or form.codec in ALL_KEYS
            yield pytest.param(name, distance, reorder, marks=[] if usual else in_full)


class Notes(list):
    def __call__(self, kind, message):
        assert kind in {**NOTES, **LOSSES}
        self.append(kind)


def recorded_numbers(begin, end, count, late=0):
    """Numbers of the frames in the middle of equal parts of a span."""
    times = [begin + (i + 0.5) * (end - begin) / count for i in range(count)]
    return [max(int(time * FPS + 1e-6) - late, 0) for time in times]


def recorded_onsets(begin, end):
    return [time - begin for time in np.arange(0.25, SECONDS) if begin <= time < end - 0.02]


def check_picture(path, begin, end, notes, late=0, shift=0.0):
    got = [number(image) for image in read_frames(Span(path, begin, end), 4, 30, notes)]
    last = SECONDS - shift if end is None else end
    assert got == recorded_numbers(begin + shift, last + shift, 4, late), f"{begin} to {end}"


def check_sound(path, begin, end, notes, shift=0.0):
    samples = read_audio(Span(path, begin, end), 30, notes)
    last = SECONDS - shift if end is None else end
    assert len(samples) == pytest.approx((last - begin) * SAMPLE_RATE, abs=0.06 * SAMPLE_RATE)
    assert onsets(samples) == pytest.approx(recorded_onsets(begin + shift, last + shift), abs=0.05)


@pytest.mark.parametrize(("name", "distance", "reorder"), list(cells()))
def test_pictures_and_sounds_of_a_span_are_those_recorded_then(tmp_path, name, distance, reorder):
    form = FORMS[name]
    path = write_numbered(
        tmp_path / name,
        SECONDS,
        codec=form.codec,
        sound=form.sound,
        key_distance=distance,
        reorder=reorder,
        form=form.form,
        options=form.options,
    )
    notes = Notes()
    late, late_sound = (form.late, form.late_sound) if reorder else (0, 0)
    for begin, end in SPANS:
        if not (late and end is None):
            check_picture(path, begin, end, notes, late)
        if form.sound is not None and not (late_sound and end is None):
            check_sound(path, begin, end, notes, -late_sound / FPS)
    assert set(notes) <= {"silent"}
    for read in (read_audio, lambda *args: read_frames(args[0], 4, *args[1:])) if form.sound else ():
        with pytest.raises(MediaError) as error:
            read(Span(path, 7.0, 8.0), 30, notes)
        assert error.value.kind == "out_of_range"


def test_pictures_of_dv_are_those_recorded_then(tmp_path):
    """A format of one size only, whose frame i is of the grey 4 i here."""
    import av

    path = tmp_path / "a.dv"
    with av.open(path, "w") as container:
        stream = container.add_stream("dvvideo", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 720, 576, "yuv420p"
        for i in range(60):
            picture = av.VideoFrame.from_ndarray(np.full((576, 720, 3), 4 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    for begin, end in [(0.0, 1.0), (1.0, 1.4), (1.52, 2.0), (2.0, 2.4)]:
        got = [image.mean() / 4 for image in read_frames(Span(path, begin, end), 4, 30, Notes())]
        assert got == pytest.approx(recorded_numbers(begin, end, 4), abs=0.6), f"{begin} to {end}"


def test_nothing_from_outside_of_a_span_is_seen(tmp_path):
    # a recording whose picture begins at 2 s and ends at 4 s, while its sound lasts six
    whole = write_numbered(tmp_path / "whole.mkv", SECONDS, codec="libx264", sound="libopus", key_distance=25)
    part = copied(whole, tmp_path / "part.mkv", left_out=lambda kind, time: kind == "video" and not 2 <= time < 4)
    for begin, end in [(0.0, 1.0), (1.0, 1.9), (4.04, 5.0), (5.0, 6.0)]:
        with pytest.raises(MediaError) as error:
            read_frames(Span(part, begin, end), 4, 30, Notes())
        assert error.value.kind == "out_of_range"
    assert [number(image) for image in read_frames(Span(part, 1.0, 3.0), 4, 30, Notes())] == [50, 50, 56, 68]
    assert [number(image) for image in read_frames(Span(part, 3.0, 5.0), 4, 30, Notes())] == [81, 93, 99, 99]


@pytest.mark.parametrize(
    ("name", "sound", "form"), [("a.mkv", "libopus", None), ("a.mp4", "aac", None), ("a.ts", "aac", None)]
)
def test_sound_behind_a_gap_lies_where_it_was_recorded(tmp_path, name, sound, form):
    whole = write_numbered(tmp_path / f"whole_{name}", SECONDS, codec="libx264", sound=sound, form=form)
    gap = copied(whole, tmp_path / name, form=form, left_out=lambda kind, time: kind == "audio" and 1.6 <= time < 3.6)
    late = copied(
        whole, tmp_path / f"late_{name}", form=form, left_out=lambda kind, time: kind == "audio" and time < 2.5
    )
    notes = Notes()
    assert onsets(read_audio(Span(gap), 30, notes)) == pytest.approx([0.25, 1.25, 4.25, 5.25], abs=0.05)
    assert notes == ["sound_gap"]
    assert onsets(read_audio(Span(gap, 3.0, 5.0), 30, notes)) == pytest.approx([1.25], abs=0.05)
    assert len(read_audio(Span(gap, 2.0, 3.0), 30, notes)) == SAMPLE_RATE
    assert notes == ["sound_gap"] * 3 + ["silent"]
    assert onsets(read_audio(Span(late), 30, notes)) == pytest.approx([3.25, 4.25, 5.25], abs=0.05)
    assert onsets(read_audio(Span(late, 1.0, 4.0), 30, notes)) == pytest.approx([2.25], abs=0.05)


def without_header(path):
    """An MP3 file without the frame that says how long it is."""
    data = path.read_bytes()
    frame = data.index(b"\xff\xfb")
    assert b"Xing" in data[frame : frame + 200] or b"Info" in data[frame : frame + 200]
    path.write_bytes(data[data.index(b"\xff\xfb", frame + 4) :])


@pytest.mark.parametrize("name", ["a.aac", "a.mp3", "a.ogg", "a.opus", "a.ts", "a.mpg", "a.flac", "a.wav", "a.ac3"])
def test_length_that_a_file_does_not_tell_is_not_guessed(tmp_path, name):
    """Loud and silent stretches, so that the bit rate of the beginning says nothing; joined, where that can be done."""
    part = tmp_path / f"part_{name}"
    suffix = part.suffix
    sound = {".aac": "aac", ".mp3": "libmp3lame", ".ogg": "libopus", ".opus": "libopus", ".ts": "mp2", ".mpg": "mp2"}
    codec = sound.get(suffix, {".flac": "flac", ".wav": "pcm_s16le", ".ac3": "ac3"}.get(suffix))
    write_sound_of(
        part, codec, np.concatenate([bursts(2.0, 48000), np.zeros(48000 * 18, np.float32), bursts(4.0, 48000)])
    )
    path = tmp_path / name
    joined = suffix in (".aac", ".mp3", ".ogg", ".opus", ".ts", ".mpg", ".ac3")
    if suffix == ".mp3":
        without_header(part)
    path.write_bytes(part.read_bytes() * (2 if joined else 1))
    notes = Notes()
    expected = [0.25, 1.25, 20.25, 21.25, 22.25, 23.25]
    if joined:
        expected += [24 + time for time in expected]
    length = 48 if joined else 24
    samples = read_audio(Span(path), 300, notes)
    assert len(samples) / SAMPLE_RATE == pytest.approx(length, abs=0.15)
    assert onsets(samples) == pytest.approx(expected, abs=0.1)
    for time in expected:
        begin = max(time - 0.5, 0)
        assert onsets(read_audio(Span(path, begin, time + 0.4), 30, notes)) == pytest.approx([time - begin], abs=0.1)
    assert set(notes) <= {"silent", "damaged"}


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("a.wav", "adpcm_ms", 48000),
        ("a.wav", "adpcm_ima_wav", 48000),
        ("a.wav", "pcm_mulaw", 8000),
        ("a.wav", "pcm_f64le", 48000),
        ("a.wav", "mp2", 48000),
        ("a.mov", "adpcm_ima_qt", 48000),
        ("a.g722", "g722", 16000),
        ("a.tta", "tta", 48000),
        ("a.wv", "wavpack", 48000),
        ("a.eac3", "eac3", 48000),
        ("a.aiff", "pcm_s24be", 44100),
        ("a.au", "pcm_s16be", 22050),
        ("a.caf", "pcm_s16be", 48000),
        ("a.w64", "pcm_s16le", 48000),
        ("a.m4a", "alac", 48000),
        ("a.flv", "adpcm_swf", 44100),
    ],
)
def test_sound_of_any_codec_lies_where_it_was_recorded(tmp_path, name, codec, rate):
    """Also where a packet holds several frames, of which only the first has a time, as in ADPCM."""
    path = write_sound_of(tmp_path / name, codec, bursts(SECONDS, rate), rate)
    notes = Notes()
    assert onsets(read_audio(Span(path), 30, notes)) == pytest.approx(recorded_onsets(0, SECONDS), abs=0.05)
    for begin, end in ((2.0, 3.0), (3.6, 4.4), (0.4, 3.6), (5.0, 5.5)):
        samples = read_audio(Span(path, begin, end), 30, notes)
        assert len(samples) == round((end - begin) * SAMPLE_RATE)
        assert onsets(samples) == pytest.approx(recorded_onsets(begin, end), abs=0.05)
    assert notes == []


def test_an_edit_list_is_obeyed(tmp_path):
    whole = write_numbered(tmp_path / "whole.mp4", SECONDS, codec="libx264", sound="aac", key_distance=50, reorder=2)
    cut = copied(whole, tmp_path / "cut.mp4", shift=-1.2)  # the frames before 1.2 s are in the file, and not shown
    for begin, end in [(0.0, 1.0), (1.52, 2.0), (3.0, 4.0)]:
        check_picture(cut, begin, end, Notes(), shift=1.2)
        check_sound(cut, begin, end, Notes(), shift=1.2)


def test_recordings_that_were_joined_are_read_through(tmp_path):
    part = write_numbered(tmp_path / "part.ts", SECONDS, codec="libx264", sound="aac", key_distance=25)
    path = tmp_path / "a.ts"
    path.write_bytes(part.read_bytes() * 2)
    for begin, end in [(0.48, 0.96), (4.0, 5.0), (7.0, 8.0), (10.0, 11.0)]:
        images = read_frames(Span(path, begin, end), 4, 30, Notes())
        numbers = recorded_numbers(begin % SECONDS, end % SECONDS, 4)
        assert [number(image) for image in images] == pytest.approx(
            numbers, abs=2
        )  # either sound or picture ends later
    assert media_seconds(path) == pytest.approx(2 * SECONDS, abs=0.2)


def test_a_track_that_begins_in_the_middle_of_a_file_ends_no_other(tmp_path):
    path = write_numbered(tmp_path / "a.flv", 10.0, codec="flv", sound="libmp3lame")
    data = path.read_bytes()
    kept, place = data[:4] + b"\1" + data[5:13], 13  # the header promises a picture and no sound
    while place < len(data):
        size = 15 + int.from_bytes(data[place + 1 : place + 4], "big")
        late = int.from_bytes(data[place + 4 : place + 7], "big") > 9000
        kept += data[place : place + size] if data[place] == 9 or (data[place] == 8 and late) else b""
        place += size
    path.write_bytes(kept)
    code = (
        "import sys, pathlib; from amuse.media.decode import read_frames; from amuse.media.sources import Span; "
        "print(len(read_frames(Span(pathlib.Path(sys.argv[1])), 4, 30, print)))"
    )
    # PyAV reads memory for the new track that nobody has written, so that only some processes would fail
    environment = {**os.environ, "MALLOC_PERTURB_": "85"}
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.stdout == "4\n", done.stderr


@pytest.mark.parametrize(("degrees", "hflip", "vflip"), list(product([0, 90, 180, 270], [False, True], [False])))
def test_pictures_are_turned_and_mirrored_as_players_do(tmp_path, degrees, hflip, vflip):
    import av

    corners = np.full((64, 96, 3), 60, np.uint8)
    corners[:32, :48] = 200  # bright above on the left
    corners[32:, 48:, 0] = 200  # red below on the right
    path = tmp_path / "a.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.set_display_rotation(degrees, hflip=hflip, vflip=vflip)
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(corners, format="rgb24")))
        container.mux(stream.encode())
    expected = np.rot90(corners, degrees // 90)  # counter-clockwise, and mirrored after it
    expected = expected[:, ::-1] if hflip else expected
    (image,) = read_frames(Span(path), 1, 30, Notes())
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() < 12


def test_display_matrix_maps_every_corner_where_it_says():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert upright(image, None) is image
    for a, b, c, d in [
        (1, 0, 0, 1),
        (-1, 0, 0, 1),
        (1, 0, 0, -1),
        (-1, 0, 0, -1),
        (0, 1, -1, 0),
        (0, -1, 1, 0),
        (0, 1, 1, 0),
    ]:
        shown = upright(image, (a, b, 0, c, d, 0, 0, 0, 1))
        places = {(a * p + c * q, b * p + d * q): image[q, p] for q in range(2) for p in range(3)}
        left, top = min(x for x, _ in places), min(y for _, y in places)
        for (x, y), pixel in places.items():
            assert (shown[y - top, x - left] == pixel).all()


@pytest.mark.parametrize(
    ("name", "codec", "aspect"),
    [
        ("a.mp4", "libx264", Fraction(64, 45)),
        ("a.mkv", "libx264", Fraction(8, 9)),
        ("a.mpg", "mpeg2video", Fraction(1, 2)),
    ],
)
def test_pixels_that_are_not_square_are_shown_in_their_shape(tmp_path, name, codec, aspect):
    path = write_numbered(tmp_path / name, 1.0, codec=codec, aspect=aspect)
    image = read_frames(Span(path), 1, 30, Notes())[0]
    assert image.shape[1] / image.shape[0] == pytest.approx(128 * aspect / 48, rel=0.02)
    assert number(image) == 12


def test_default_track_is_used_and_a_commentary_last(tmp_path):
    import av

    def write(path, sounds):
        with av.open(path, "w") as container:
            streams = []
            for hertz, disposition, title in sounds:
                stream = container.add_stream("aac", rate=16000, layout="mono")
                stream.disposition = disposition
                if title:
                    stream.metadata["title"] = title
                streams.append((stream, tone(1.0, hertz)))
            for stream, samples in streams:
                for packets in encoded_sound(stream, samples):
                    container.mux(packets)
        return path

    flags = av.stream.Disposition
    cases = {
        "marked.mkv": [(300, flags.comment, ""), (600, flags(0), ""), (900, flags.default, "")],
        "named.mkv": [(300, flags.default, "Director's commentary"), (900, flags(0), "")],
        "impaired.mkv": [(300, flags.visual_impaired, ""), (900, flags(0), ""), (600, flags(0), "")],
    }
    for name, sounds in cases.items():
        notes = Notes()
        samples = read_audio(Span(write(tmp_path / name, sounds)), 30, notes)
        spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
        assert np.argmax(spectrum) * SAMPLE_RATE / len(samples) == pytest.approx(900, abs=5), name
        assert notes == ["several_tracks"]


def test_channels_that_cancel_each_other_are_not_silence(tmp_path):
    import wave

    samples = tone(1.0)
    path = tmp_path / "a.wav"
    for right, expected, kinds in [(-samples, 0.3, ["cancelled"]), (samples, 0.3, []), (0 * samples, 0.15, [])]:
        with wave.open(str(path), "wb") as file:
            file.setnchannels(2)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes((np.stack([samples, right], axis=1) * 32767).astype("<i2").tobytes())
        notes = Notes()
        assert np.abs(read_audio(Span(path), 30, notes)).max() == pytest.approx(expected, abs=0.01)
        assert notes == kinds


def test_jumps_that_land_behind_their_target_are_not_believed(tmp_path, monkeypatch):
    """Whatever FFmpeg does: here every jump lands two seconds late, or reaches the end of the file."""
    from amuse.media import tracks

    path = write_numbered(tmp_path / "a.mkv", SECONDS, codec="libx264", sound="libopus", key_distance=12)
    honest = tracks.Track._jump
    for late in (2.0, 100.0):
        monkeypatch.setattr(tracks.Track, "_jump", lambda self, time, late=late: honest(self, time + late))
        for begin, end in SPANS:
            check_picture(path, begin, end, Notes())
            check_sound(path, begin, end, Notes())
    with open_track(path, "video", Notes()) as track:
        times = [frame.time for frame in track.frames(3.0)]
    assert times[0] <= 3.0
    assert times == sorted(times)
