import sys
from fractions import Fraction

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")

from amuse.data.problems import LOSSES, NOTES
from amuse.encoders.signal import SAMPLE_RATE
from amuse.media.decode import media_seconds, read_audio, read_frames
from amuse.media.picture import LONGEST_SIDE
from amuse.media.segments import by_loudness, by_voice, speech_segments
from amuse.media.sources import Span
from amuse.media.tracks import MediaError
from tests.media_files import tone, write_sound, write_video, write_wav


class Notes(list):
    def __call__(self, kind, message):
        assert kind in {**NOTES, **LOSSES}
        self.append(kind)


def pitch(samples):
    """The strongest frequency, in Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return np.argmax(spectrum) * SAMPLE_RATE / len(samples)


def red(frames):
    return [float(frame[:, :, 0].mean()) for frame in frames]


def fails(read, *arguments):
    """Which kind of problem reading ends with."""
    with pytest.raises(MediaError) as error:
        read(*arguments, Notes())
    assert error.value.kind in LOSSES
    return error.value.kind


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_sound_is_mono_at_16_khz(tmp_path, suffix):
    path = write_video(tmp_path / f"a{suffix}", 1.0, hertz=440)
    notes = Notes()
    samples = read_audio(Span(path), 30, notes)
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)
    assert pitch(samples) == pytest.approx(440, abs=3)
    assert np.abs(samples).max() == pytest.approx(0.3, abs=0.05)
    assert notes == []


def test_span_of_a_recording_is_cut_to_the_sample(tmp_path):
    samples = np.concatenate([tone(1.0, 300), tone(1.0, 600), tone(1.0, 900)])
    wav = write_wav(tmp_path / "a.wav", samples)
    cut = read_audio(Span(wav, 0.75, 1.5), 30, Notes())
    np.testing.assert_allclose(cut, samples[12000:24000], atol=1e-4)
    video = write_video(tmp_path / "a.mp4", 3.0, sound=samples)
    for second, hertz in enumerate((300, 600, 900)):
        part = read_audio(Span(video, second + 0.1, second + 0.9), 30, Notes())
        assert len(part) == pytest.approx(0.8 * SAMPLE_RATE, abs=2)
        assert pitch(part) == pytest.approx(hertz, abs=5)


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3", "a.m4a", "a.opus"])
def test_compressed_sound_is_read(tmp_path, name):
    samples = read_audio(Span(write_sound(tmp_path / name, 1.0, 500)), 30, Notes())
    assert len(samples) == pytest.approx(SAMPLE_RATE, abs=0.15 * SAMPLE_RATE)
    assert pitch(samples) == pytest.approx(500, abs=3)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_other_sampling_rates_are_converted(tmp_path, rate):
    samples = read_audio(Span(write_wav(tmp_path / "a.wav", tone(1.0, 500, rate), rate)), 30, Notes())
    assert len(samples) == pytest.approx(SAMPLE_RATE, abs=200)
    assert pitch(samples) == pytest.approx(500, abs=3)


def test_key_frames_are_what_is_on_screen_in_the_middle_of_equal_parts(tmp_path):
    path = write_video(tmp_path / "a.mp4", 1.2)  # the red of frame i is 20 i, ten frames a second
    notes = Notes()
    assert red(read_frames(Span(path), 3, 30, notes)) == pytest.approx([40, 120, 200], abs=6)
    assert red(read_frames(Span(path, 0.6, 1.0), 2, 30, notes)) == pytest.approx([140, 180], abs=6)
    frames = read_frames(Span(path), 50, 30, notes)
    assert len(frames) == 50
    assert frames[0].shape == (48, 64, 3)
    assert frames[0].dtype == np.uint8
    assert notes == []


def test_frames_at_uneven_times_are_chosen_by_time_and_noted(tmp_path):
    path = write_video(tmp_path / "a.mp4", times=[0.0, 0.1, 0.2, 0.3, 0.9, 1.0, 1.1])
    notes = Notes()
    # from 0.3 to 0.9 s the fourth frame is shown
    assert red(read_frames(Span(path, 0.0, 1.0), 4, 30, notes)) == pytest.approx([20, 60, 60, 60], abs=6)
    assert notes == ["variable_frame_rate"]


def test_large_frames_are_scaled_down_and_turned_upright(tmp_path):
    def paint(i):
        picture = np.zeros((400, 800, 3), np.uint8)
        picture[:200] = 255  # bright above
        return picture

    path = write_video(tmp_path / "a.mp4", 0.3, width=800, height=400, paint=paint)
    frame = read_frames(Span(path), 1, 30, Notes())[0]
    assert frame.shape == (LONGEST_SIDE // 2, LONGEST_SIDE, 3)
    data = bytearray(path.read_bytes())
    # the matrix in the track header of a phone that was held upright: a quarter turn clockwise
    header = data.index(b"tkhd", data.index(b"moov"))
    start = header + 4 + 40
    quarter = [0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30]
    data[start : start + 36] = b"".join(int(x).to_bytes(4, "big", signed=True) for x in quarter)
    path.write_bytes(data)
    turned = read_frames(Span(path), 1, 30, Notes())[0]
    assert turned.shape == (LONGEST_SIDE, LONGEST_SIDE // 2, 3)
    # what was above is at the right
    assert turned[:, -100:].mean() > 200
    assert turned[:, :100].mean() < 50


def test_long_spans_are_cut_and_noted(tmp_path):
    path = write_video(tmp_path / "a.mp4", 2.0)
    notes = Notes()
    assert len(read_audio(Span(path), 0.5, notes)) == pytest.approx(8000, abs=2)
    assert red(read_frames(Span(path), 1, 0.5, notes)) == pytest.approx([40], abs=6)
    assert notes == ["long_utterance"] * 2


def test_missing_tracks_are_reported(tmp_path):
    mute = write_video(tmp_path / "mute.mp4", sound=False)
    assert fails(read_audio, Span(mute), 30) == "no_audio"
    assert fails(read_frames, Span(write_wav(tmp_path / "a.wav", tone(0.5))), 4, 30) == "no_video"
    assert fails(media_seconds_of, Span(write_wav(tmp_path / "b.wav", tone(0.5)))) == "no_video"


def media_seconds_of(span, note):
    return media_seconds(span.path)


def test_audio_of_no_length_is_told(tmp_path):
    assert fails(read_audio, Span(write_wav(tmp_path / "a.wav", tone(0.0))), 30) == "empty_audio"
    assert fails(read_audio, Span(write_video(tmp_path / "a.avi", sound="empty")), 30) == "empty_audio"


def test_silence_is_noted_and_read(tmp_path):
    notes = Notes()
    assert len(read_audio(Span(write_wav(tmp_path / "a.wav", np.zeros(8000, np.float32))), 30, notes)) == 8000
    assert notes == ["silent"]


@pytest.mark.parametrize("content", [b"", b"\x00" * 2000, b"not a video at all" * 100])
def test_other_files_than_media_are_unreadable(tmp_path, content):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert fails(read_audio, Span(path), 30) == "unreadable"
    assert fails(read_frames, Span(path), 4, 30) == "unreadable"
    assert fails(read_audio, Span(tmp_path / "gone.mp4"), 30) == "unreadable"


def test_truncated_file_gives_its_intact_part(tmp_path):
    def paint(i):  # noise, so that the data are spread over the whole file
        return np.random.default_rng(i).integers(0, 255, (48, 64, 3), dtype=np.uint8)

    path = write_video(tmp_path / "a.mp4", 8.0, paint=paint)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    notes = Notes()
    samples = read_audio(Span(path), 30, notes)
    frames = read_frames(Span(path), 4, 30, notes)
    assert 2 * SAMPLE_RATE < len(samples) < 6 * SAMPLE_RATE
    assert len(frames) == 4
    assert notes.count("truncated") == 2
    path.write_bytes(whole[:300])  # within the index, which comes first
    assert fails(read_audio, Span(path), 30) in ("unreadable", "no_audio")


def test_truncated_file_with_its_index_at_the_end_is_unreadable(tmp_path):
    path = write_video(tmp_path / "a.mp4", 2.0, index_first=False)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert fails(read_audio, Span(path), 30) == "unreadable"
    assert fails(read_frames, Span(path), 4, 30) == "unreadable"


def test_sound_of_which_no_packet_can_be_decoded_is_refused_by_name(tmp_path):
    import av

    media = tmp_path / "a.mka"
    with av.open(str(media), "w") as container:
        stream = container.add_stream("mp2", rate=16000, layout="mono")
        stream.time_base = Fraction(1, 16000)
        for index in range(5):
            packet = av.Packet(bytes(100))
            packet.stream, packet.time_base = stream, stream.time_base
            packet.pts = packet.dts = 1152 * index
            container.mux(packet)
    with pytest.raises(MediaError, match=r"^a\.mka: none of \d audio packets can be decoded$"):
        read_audio(Span(media), 10.0, lambda kind, message: None)


def test_damaged_packets_are_left_out(tmp_path):
    path = write_video(tmp_path / "a.mp4", 4.0, codec="libx264")
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 8
    middle, length = (begin + len(data)) // 2, (len(data) - begin) // 5
    data[middle : middle + length] = b"\xff" * length
    path.write_bytes(data)
    notes = Notes()
    samples, frames = read_audio(Span(path), 30, notes), read_frames(Span(path), 4, 30, notes)
    assert len(frames) == 4
    assert len(samples) > SAMPLE_RATE
    assert "damaged" in notes


def test_unknown_codec_is_reported(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"mp4v", b"xyz9").replace(b"esds", b"free"))
    assert fails(read_frames, Span(path), 4, 30) == "codec"
    path.write_bytes(data.replace(b"mp4a", b"xyz8").replace(b"esds", b"free"))
    assert fails(read_audio, Span(path), 30) == "codec"


@pytest.mark.slow
def test_frames_of_huge_resolution_are_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4", times=[0.0], width=8256, height=4352, codec="libx264", sound=False)
    assert fails(read_frames, Span(path), 4, 30) == "resolution"


def test_times_outside_of_the_file_are_reported(tmp_path):
    path = write_video(tmp_path / "a.mp4", 1.0)
    assert fails(read_audio, Span(path, 5.0, 6.0), 30) == "out_of_range"
    assert fails(read_frames, Span(path, 5.0, 6.0), 4, 30) == "out_of_range"
    notes = Notes()
    assert len(read_audio(Span(path, 0.5, 4.0), 30, notes)) < SAMPLE_RATE
    assert notes == ["truncated"]


@pytest.mark.slow
def test_nothing_but_reports_comes_of_files_broken_at_random(tmp_path):
    files = [
        write_video(tmp_path / "a.mp4", codec="libx264"),
        write_video(tmp_path / "a.avi"),
        write_video(tmp_path / "a.mkv"),
        write_wav(tmp_path / "a.wav", tone(0.5)),
    ]
    rng = np.random.default_rng(0)
    kinds = Notes()
    for number in range(200):
        file = files[number % len(files)]
        data = bytearray(file.read_bytes())
        if number % 3 == 0:
            del data[rng.integers(len(data)) :]
        elif number % 3 == 1:
            begin = rng.integers(len(data))
            del data[begin : begin + rng.integers(1, 2000)]
        else:
            for position in rng.integers(0, min(len(data), 1500), 8):
                data[position] = rng.integers(256)
        broken = tmp_path / f"broken{file.suffix}"
        broken.write_bytes(data)
        span = Span(broken) if number % 2 else Span(broken, 0.3, 0.8)
        for read in (read_audio, lambda span, seconds, note: read_frames(span, 4, seconds, note)):
            try:
                read(span, 30, kinds)
            except MediaError as error:
                kinds(error.kind, str(error))
    assert {"unreadable", "truncated", "damaged"} <= set(kinds)


def test_speech_is_cut_at_pauses():
    quiet = 1e-4 * np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32)
    samples = np.concatenate([quiet, tone(1.0), quiet[:3200], tone(0.6), quiet, tone(2.0), quiet])
    assert by_loudness(samples) == [pytest.approx(s, abs=0.06) for s in ((1.0, 2.8), (3.8, 5.8))]
    assert by_loudness(np.zeros(SAMPLE_RATE, np.float32)) == []
    assert by_loudness(np.zeros(10, np.float32)) == []
    assert max(end - begin for begin, end in by_loudness(np.concatenate([quiet, tone(25.0)]))) <= 10.01


def test_how_speech_was_found_is_told(monkeypatch):
    quiet = 1e-4 * np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32)
    samples = np.concatenate([quiet, tone(1.0), quiet])
    assert speech_segments(samples).times == by_loudness(samples)  # a tone is no voice
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    assert "pip install amuse-kernels[speech]" in speech_segments(samples).how


def test_voices_are_distinguished_from_other_sounds(shared_data):
    pytest.importorskip("silero_vad", reason="needs the extra: pip install amuse-kernels[speech]")
    voice = read_audio(Span(shared_data / "clip" / "no_face.mp4"), 30, Notes())
    threads = torch.get_num_threads()
    assert by_voice(voice) == by_voice(voice)
    assert by_voice(tone(3.0)) == []
    assert torch.get_num_threads() == threads


def test_real_clips_are_read(shared_data):
    clip = shared_data / "clip" / "WolfgangLanger_Pexels.mp4"
    if not clip.is_file():
        pytest.skip("no clip/ there")
    notes = Notes()
    frames = read_frames(Span(clip, 5.0, 8.0), 4, 30, notes)
    assert [frame.shape for frame in frames] == [(360, 640, 3)] * 4
    assert len({frame.tobytes() for frame in frames}) == 4
    assert len(read_audio(Span(clip), 30, notes)) == pytest.approx(19.69 * SAMPLE_RATE, rel=0.01)
    assert notes == ["silent"]
    voice = read_audio(Span(shared_data / "clip" / "no_face.mp4"), 30, notes)
    assert np.abs(voice).max() > 0.01
