"""Small real media files: pictures that change with the time and a tone, coded by the same FFmpeg that reads them."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np

WIDTH, HEIGHT, RATE = 64, 48, 16000
HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"
EMOTIONS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")


def tone(seconds, hertz=440.0, rate=RATE):
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write_video(
    path,
    seconds=1.0,
    *,
    fps=10,
    hertz=440.0,
    width=WIDTH,
    height=HEIGHT,
    codec="mpeg4",
    sound=True,
    times=None,
    paint=None,
    index_first=True,
):
    """A video; the red of frame i is 20 i, or `paint(i)` is the picture. `sound`: True, False, "empty" or samples."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"movflags": "faststart"} if index_first and path.suffix == ".mp4" else {}
    with av.open(path, "w", options=options) as container:
        video = container.add_stream(codec, rate=fps)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        video.gop_size = 5
        audio = None
        if sound is not False:
            name = {".mp4": "aac", ".avi": "mp2", ".webm": "libopus", ".mkv": "aac"}[path.suffix]
            audio = container.add_stream(name, rate=48000 if name == "libopus" else RATE, layout="mono")
        times = [i / fps for i in range(round(seconds * fps))] if times is None else times
        for i, time in enumerate(times):
            picture = np.full((height, width, 3), (min(20 * i, 255), 60, 120), np.uint8) if paint is None else paint(i)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None and not isinstance(sound, str):
            _encode_sound(container, audio, tone(seconds, hertz, audio.rate) if sound is True else sound)
    return path


def write_wav(path, samples, rate=RATE):
    import wave

    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def write_sound(path, seconds, hertz):
    """A tone in a compressed sound file, by its suffix: .flac, .ogg, .mp3, .m4a or .opus."""
    import av

    codec = {".flac": "flac", ".ogg": "libopus", ".mp3": "libmp3lame", ".m4a": "aac", ".opus": "libopus"}[path.suffix]
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=48000 if codec == "libopus" else RATE, layout="mono")
        _encode_sound(container, stream, tone(seconds, hertz, stream.rate))
    return path


def write_sound_of(path, codec, samples, rate=48000):
    """`(samples,)` in a file of sound alone; the suffix chooses the container."""
    import av

    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        _encode_sound(container, stream, samples)
    return path


def _encode_sound(container, stream, samples):
    for packets in encoded_sound(stream, samples):
        container.mux(packets)


def encoded_sound(stream, samples):
    """Packets of `(samples,)`, list by list."""
    import av

    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts = stream.rate, 0
    fifo = av.AudioFifo()
    fifo.write(frame)
    resampler = av.AudioResampler(format=stream.format, layout="mono", rate=stream.rate)
    while (part := fifo.read(stream.frame_size or 1024, partial=True)) is not None:
        for converted in resampler.resample(part):
            yield stream.encode(converted)
    yield stream.encode()


FPS, BITS = 25, 8


def write_numbered(
    path, seconds=6.0, *, codec, sound=None, key_distance=25, reorder=0, form=None, options=None, aspect=None
):
    """A video whose frame i shows the number i, 25 frames a second, and whose sound has a burst every second.

    Args:
        sound: Codec of the sound; None = no sound.
        key_distance: Frames from one key frame to the next.
        reorder: B-frames between two others.
        form: FFmpeg's name of the container; None = by the suffix.
        options: Of the container.
        aspect: Width of a pixel by its height, a Fraction.
    """
    import av

    with av.open(path, "w", format=form, options=options or {}) as container:
        fast = {"preset": "ultrafast", "sc_threshold": "0"} if codec == "libx264" else {}
        video = container.add_stream(codec, rate=FPS, options=fast)
        video.width, video.height = BITS * 16, 48
        video.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        video.codec_context.gop_size, video.codec_context.max_b_frames = key_distance, reorder
        video.bit_rate = 4_000_000
        if aspect is not None:
            video.codec_context.sample_aspect_ratio = aspect
        audio = None if sound is None else container.add_stream(sound, rate=48000, layout="mono", bit_rate=96000)
        heard = iter(()) if audio is None else encoded_sound(audio, bursts(seconds, audio.rate))
        for i in range(round(seconds * FPS)):
            frame = av.VideoFrame.from_ndarray(numbered(i), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(video.encode(frame))
            container.mux([packet for _, packets in zip(range(3), heard, strict=False) for packet in packets])
        container.mux(video.encode())
        container.mux([packet for packets in heard for packet in packets])
    return path


def numbered(i):
    """A picture of `BITS` columns, bright where the number i has a 1; with noise, so that frames have a usual size."""
    bits = np.array([i >> bit & 1 for bit in range(BITS)])
    columns = np.repeat((60 + 140 * bits)[None, :, None], 48, axis=0).repeat(16, axis=1)
    return (columns + np.random.default_rng(i).integers(-40, 41, (48, 16 * BITS, 3))).astype(np.uint8)


def number(image):
    """The number that a picture of `numbered` shows, whatever its size."""
    columns = image.mean(axis=(0, 2)).reshape(BITS, -1).mean(axis=1) if image.shape[1] % BITS == 0 else None
    if columns is None:
        edges = np.linspace(0, image.shape[1], BITS + 1).round().astype(int)
        columns = np.array([image[:, a:b].mean() for a, b in pairwise(edges)])
    return sum(1 << bit for bit in range(BITS) if columns[bit] > 140)


def bursts(seconds, rate=RATE):
    """A tone of 1 kHz from 0.25 to 0.35 s of every second, and silence."""
    samples = tone(seconds, 1000.0, rate)
    return samples * (abs(np.arange(len(samples)) / rate % 1 - 0.3) < 0.05)


def onsets(samples, rate=RATE):
    """When the bursts in a sound begin, in seconds."""
    loud = np.abs(samples) > 0.1
    loud = np.convolve(loud, np.ones(rate // 100), mode="same") > 0
    starts = np.flatnonzero(np.diff(loud.astype(int), prepend=0) > 0) + rate // 200
    return [float(start) / rate for start in starts]


def copied(source, target, *, form=None, options=None, shift=0.0, left_out=lambda kind, time: False):
    """The packets of a file in another container.

    Args:
        form, options: As for `write_numbered`.
        shift: Seconds that are added to all times; what comes before zero is kept, and is not to be shown.
        left_out: Takes "video" or "audio" and seconds, and says which packets are missing.
    """
    import av

    with av.open(source) as read, av.open(target, "w", format=form, options=options or {}) as write:
        streams = {stream: write.add_stream_from_template(stream) for stream in read.streams}
        for packet in read.demux():
            stream = packet.stream
            if packet.dts is None or left_out(stream.type, float(packet.pts * packet.time_base)):
                continue
            by = round(shift / packet.time_base)
            packet.pts, packet.dts = packet.pts + by, packet.dts + by
            packet.stream = streams[stream]
            write.mux(packet)
    return target


def write_meld(folder, dialogues=2, utterances=3):
    """MELD's layout; every split has dialogues of utterances of one second."""
    for split, name in (
        ("train", "train_splits"),
        ("dev", "dev_splits_complete"),
        ("test", "output_repeated_splits_test"),
    ):
        rows = []
        for number in range(dialogues * utterances):
            dialogue, position = divmod(number, utterances)
            emotion = EMOTIONS[number % 3]
            speaker = ("Ann", "Bob")[position % 2]
            rows.append(
                f'{number},"Words {number} here",{speaker},{emotion},neutral,{dialogue},{position},1,1,'
                f'"00:00:{position:02d},000","00:00:{position + 1:02d},000"\n'
            )
            write_video(folder / name / f"dia{dialogue}_utt{position}.mp4", hertz=300.0 * (1 + number % 3))
        (folder / f"{split}_sent_emo.csv").write_text(HEADER + "".join(rows), encoding="utf-8")
    return folder


def write_iemocap(folder, sessions=(1, 2, 5)):
    """IEMOCAP's layout; dialogues of six utterances of 0.5 s, both actors in a frame: red on the left, blue right."""

    def paint(i):
        picture = np.zeros((HEIGHT, 2 * WIDTH, 3), np.uint8)
        picture[:, :WIDTH, 0] = picture[:, WIDTH:, 2] = 200
        return picture

    for session in sessions:
        root = folder / f"Session{session}"
        for marked in "FM":
            name = f"Ses0{session}{marked}_impro01"
            ids = [f"{name}_{'FM'[i % 2]}{i:03d}" for i in range(6)]
            labels = ("hap", "exc", "ang", "neu", "xxx", "sad")
            table, words = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"], []
            for i, (turn, label) in enumerate(zip(ids, labels, strict=True)):
                begin, end = 0.5 * i, 0.5 * i + 0.5
                table.append(
                    f"[{begin:.4f} - {end:.4f}]\t{turn}\t{label}\t[2.5000, 2.5000, 2.5000]\nC-E1:\tNeutral;\t()\n\n"
                )
                words.append(f"{turn} [{begin:08.4f}-{end:08.4f}]: Line {i}.\n")
                write_wav(root / "sentences" / "wav" / name / f"{turn}.wav", tone(0.5))
            for kind, lines in (("EmoEvaluation", table), ("transcriptions", [*words, "M: [LAUGHTER]\n"])):
                path = root / "dialog" / kind / f"{name}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("".join(lines), encoding="utf-8")
            (root / "dialog" / "EmoEvaluation" / f"._{name}.txt").write_bytes(b"\x00\x05\x16\x07\xff")
            avi = root / "dialog" / "avi" / "DivX" / f"{name}.avi"
            write_video(avi, 3.0, width=2 * WIDTH, paint=paint)
    return folder


def write_talks(folder, count=6, utterances=4, labels=("calm", "angry")):
    """A plain folder: recordings with CSV transcripts; the pitch tells the label."""
    for number in range(count):
        rows, sound = ["start,end,speaker,text,label\n"], []
        for i in range(utterances):
            kind = (number + i) % len(labels)
            rows.append(f"{0.5 * i},{0.5 * i + 0.5},{('Ann', 'Bob')[i % 2]},word {i},{labels[kind]}\n")
            sound.append(tone(0.5, 250.0 * (1 + 2 * kind)))
        write_video(folder / f"talk{number}.mp4", 0.5 * utterances, sound=np.concatenate(sound))
        Path(folder / f"talk{number}.csv").write_text("".join(rows), encoding="utf-8")
    return folder
