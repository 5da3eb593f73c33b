"""The speaker's face is told from others by its mouth: on made tracks, and on videos composed of two real faces."""

import numpy as np
import pytest

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")

from amuse.encoders.signal import SAMPLE_RATE
from amuse.media.decode import read_frames
from amuse.media.extract import Extractor, Options
from amuse.media.sources import Clip, Span
from amuse.media.speaking import FPS, FaceTrack, MouthReader, loudness, speaking, track_faces
from tests.media_files import write_video

SECONDS = 4.0
HALF = 320  # pixels of a picture that each face has
CLIPS = {"man": ("single_face.mp4", 0, 20), "woman": ("WolfgangLanger_Pexels.mp4", 9, 30)}
"""Face -> file and which of 40 frames of it show the mouth closed and open."""


def syllables(seed, seconds=SECONDS):
    """`(frames,)` between 0 and 1: syllables at an uneven rhythm of about four a second."""
    rng = np.random.default_rng(seed)
    times = np.arange(round(seconds * FPS)) / FPS
    centres = np.cumsum(rng.uniform(0.15, 0.4, round(seconds * 4)))
    return np.exp(-(((times[:, None] - centres) / 0.06) ** 2)).max(axis=1)


def track(openings):
    return FaceTrack(dict.fromkeys(range(len(openings)), (0, 0, 9, 9)), dict(enumerate(openings)))


def test_the_mouth_that_moves_with_the_sound_is_the_speakers():
    sound = syllables(0)
    rng = np.random.default_rng(0)
    speaker, chewing = track(0.2 * np.roll(sound, -1)), track(0.4 * syllables(1))
    still = track(0.1 + 0.004 * rng.standard_normal(len(sound)))
    for order in ([speaker, chewing, still], [still, chewing, speaker]):
        assert speaking(order, sound) is speaker


def test_who_speaks_is_undecided_where_no_mouth_moves_or_both_do_or_hardly_anything_is_seen():
    sound = syllables(0)
    still = track(0.1 + 0.004 * np.random.default_rng(0).standard_normal(len(sound)))
    assert speaking([still, still], sound) is None
    assert speaking([track(0.2 * sound), track(0.25 * sound)], sound) is None
    assert speaking([track(0.2 * sound[:8]), still], sound) is None
    assert speaking([track(0.4 * syllables(1)), still], sound) is None  # chews, while somebody off screen speaks
    assert speaking([], sound) is None
    assert speaking([track(0.2 * sound), still], np.zeros_like(sound)) is None


def test_faces_keep_their_tracks_when_they_move_and_when_they_are_lost_for_a_moment():
    def detector(frame):
        number = int(frame[0, 0, 0])
        left, right = (2 * number, 0, 2 * number + 50, 50), (200 - number, 0, 240 - number, 40)
        return [left] if number in (5, 6) else [right, left] if number % 2 else [left, right]

    frames = [np.full((60, 300, 3), number, np.uint8) for number in range(20)]
    tracks = track_faces(frames, detector, lambda frame, box: float(box[0]))
    assert len(tracks) == 2
    assert tracks[0].openings == {number: 2.0 * number for number in range(20)}
    assert sorted(set(range(20)) - set(tracks[1].boxes)) == [5, 6]
    assert tracks[0].box_near(7.4) == (14, 0, 64, 50)


def test_loudness_is_that_of_each_frames_time():
    samples = np.concatenate([np.zeros(SAMPLE_RATE), np.full(SAMPLE_RATE, 0.25)]).astype(np.float32)
    assert loudness(samples, 4).tolist() == pytest.approx([0, 0, 0.5, 0.5])


@pytest.fixture(scope="module")
def mouths():
    try:
        return MouthReader()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def faces(shared_data, mouths):
    """Face -> pictures of it with its mouth closed and open, `HALF` wide."""
    folder = shared_data / "clip"
    if not folder.is_dir():
        pytest.skip("no clip/ there")
    pictures = {}
    for name, (file, closed, opened) in CLIPS.items():
        frames = read_frames(Span(folder / file), 40, 60, lambda kind, message: None)
        left = (290 if name == "man" else 460) - HALF // 2
        pictures[name] = [frames[number][:, left : left + HALF] for number in (closed, opened)]
    return pictures


def compose(path, faces, mouths, sound):
    """A video of the woman on the left and the man on the right.

    Args:
        mouths: Face -> `(frames,)`; above 0.5 its mouth is open.
        sound: `(frames,)`, how loud it is.
    """
    rng = np.random.default_rng(0)

    def paint(i):
        halves = [faces[name][int(mouths[name][i] > 0.5)] for name in ("woman", "man")]
        picture = np.concatenate(halves, axis=1).astype(int)
        return (picture + rng.integers(-4, 5, picture.shape)).clip(0, 255).astype(np.uint8)

    envelope = np.interp(
        np.arange(round(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE * FPS, np.arange(len(sound)) + 0.5, sound
    )
    samples = (0.3 * envelope * rng.standard_normal(len(envelope)).clip(-2, 2)).astype(np.float32)
    return write_video(path, SECONDS, fps=round(FPS), width=2 * HALF, height=360, paint=paint, sound=samples)


def chosen(path):
    """Which face the features are made of, and what was noted."""
    problems = []
    extractor = Extractor(Options(audio=None, faces=True, speaker_face=True))
    span = Span(path, 0.0, SECONDS)
    seen = extractor.perceive(Clip("u", span, span), "u", problems.append)
    sides = {"woman" if picture.box[0] < HALF else "man" for picture in seen.pictures["face"]}
    return sides, {problem.kind for problem in problems}


def test_a_mouth_is_measured(faces, mouths):
    from amuse.media.faces import FaceDetector

    detector = FaceDetector()
    measured = []
    for pictures in zip(faces["woman"], faces["man"], strict=True):
        frame = np.concatenate(pictures, axis=1)
        measured.append([mouths(frame, box) for box in sorted(detector(frame))])
    closed, opened = measured
    assert max(closed) < 0.1
    assert min(opened) > 0.2
    assert (len(closed), len(opened)) == (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("speaker", ["woman", "man"])
@pytest.mark.parametrize("other", ["still", "chewing"])
def test_of_two_faces_the_one_that_speaks_is_used(faces, tmp_path, speaker, other):
    sound = syllables(3)
    silent = np.zeros_like(sound) if other == "still" else syllables(8)
    moves = {name: sound if name == speaker else silent for name in faces}
    assert chosen(compose(tmp_path / "talk.mkv", faces, moves, sound)) == ({speaker}, set())


def test_without_a_visible_speaker_the_largest_face_is_used_and_reported(faces, tmp_path):
    sound = syllables(3)
    moves = {name: np.zeros_like(sound) for name in faces}
    assert chosen(compose(tmp_path / "talk.mkv", faces, moves, sound)) == ({"woman"}, {"undecided_face"})
