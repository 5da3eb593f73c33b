"""Promises of the parts of a face: they are where the face has them, and what decides is found in the right one."""

import re

import numpy as np
import pytest
import torch

from amuse.config import Config
from amuse.data import Conversations, Dialogue, Utterance
from amuse.data.load import Splits
from amuse.explain import Pictures, Regions, explain
from amuse.media import mesh
from amuse.media.extract import Perception
from amuse.media.faces import Picture
from amuse.media.mesh import FACE_PARTS, FaceParts
from amuse.report import Content, Turn, render
from amuse.report.content import Media
from amuse.report.from_recording import key_frames
from amuse.training.train import train_on
from tests.test_explain_pictures import colours

SIDE = 96
EMOTIONS = ["neutral", "joy", "anger"]
WIDTHS = {"text": 4, "face": 48}


def ring(points, group, x, y, width, height):
    """Put a group of landmarks on an ellipse."""
    angles = np.linspace(0, 2 * np.pi, len(group), endpoint=False)
    points[list(group)] = np.stack([x + width * np.cos(angles), y + height * np.sin(angles)], axis=1) * SIDE


def landmarks():
    """A drawn face in a square picture."""
    points = np.full((468, 2), SIDE / 2)
    ring(points, mesh._OVAL, 0.5, 0.5, 0.36, 0.45)
    ring(points, mesh._LIPS, 0.5, 0.75, 0.13, 0.05)
    ring(points, mesh._NOSE, 0.5, 0.55, 0.06, 0.1)
    for eye, brow, x in zip(mesh._EYES, mesh._BROWS, (0.33, 0.67), strict=True):
        ring(points, eye, x, 0.4, 0.07, 0.03)
        ring(points, brow, x, 0.28, 0.09, 0.02)
    return points


PARTS = FaceParts([landmarks()] * 2, [(SIDE, SIDE)] * 2)


def centre(part, parts=PARTS, picture=0):
    rows, columns = np.nonzero(parts.maps[picture] == FACE_PARTS.index(part))
    return columns.mean() / parts.maps[picture].shape[1], rows.mean() / parts.maps[picture].shape[0]


def test_every_pixel_belongs_to_the_part_that_is_drawn_there():
    assert {part: centre(part)[1] for part in ("brows", "eyes", "nose", "mouth")} == {
        "brows": pytest.approx(0.28, abs=0.02),
        "eyes": pytest.approx(0.4, abs=0.02),
        "nose": pytest.approx(0.55, abs=0.02),
        "mouth": pytest.approx(0.75, abs=0.02),
    }
    picture = PARTS.maps[0]
    assert picture[0, 0] == FACE_PARTS.index("around the face")
    assert picture[round(0.15 * SIDE), SIDE // 2] == FACE_PARTS.index("cheeks, chin and forehead")
    assert set(np.unique(picture)) == set(range(len(FACE_PARTS)))


def test_outlines_are_around_the_pixels_of_their_part():
    for number, polygons in enumerate(PARTS.outlines[0][:4]):
        rows, columns = np.nonzero(PARTS.maps[0] == number)
        corners = np.concatenate(polygons) * SIDE
        assert corners.min(axis=0) == pytest.approx((columns.min(), rows.min()), abs=1.5)
        assert corners.max(axis=0) == pytest.approx((columns.max() + 1, rows.max() + 1), abs=1.5)
    assert [len(polygons) for polygons in PARTS.outlines[0]] == [1, 2, 2, 1, 7, 2]


def test_a_real_face_has_its_parts_in_their_order(shared_data):
    pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")
    from amuse.media.decode import read_frames
    from amuse.media.faces import FaceDetector, split_faces
    from amuse.media.sources import Span

    clip = shared_data / "clip" / "single_face.mp4"
    if not clip.is_file():
        pytest.skip("no clip/ there")
    try:
        detector, finder = FaceDetector(), mesh.FaceMesh()
    except ImportError as error:
        pytest.skip(str(error))
    frames = read_frames(Span(clip), 4, 60, lambda kind, message: None)
    faces, _ = split_faces(frames, detector)
    parts = FaceParts.find(faces, frames, finder)
    for picture in range(len(faces)):
        heights = [centre(part, parts, picture)[1] for part in ("brows", "eyes", "nose", "mouth")]
        assert heights == sorted(heights)
        assert all(0.3 < centre(part, parts, picture)[0] < 0.7 for part in ("nose", "mouth"))
        shares = [float((parts.maps[picture] == number).mean()) for number in range(len(FACE_PARTS))]
        assert all(0.005 < share < 0.2 for share in shares[:4])
    noise = [np.random.default_rng(0).integers(0, 255, frame.shape, dtype=np.uint8) for frame in frames]
    assert FaceParts.find(faces, noise, finder) is None  # no face is there
    assert FaceParts.find([], frames, finder) is None


def planted(num_dialogues, seed):
    """Noise in which the colour of the mouth, red (joy) or blue (anger), decides; and words that say nothing."""
    rng = np.random.default_rng(seed)
    images = {}

    def utterance(name):
        label = int(rng.integers(3))
        frames = rng.integers(60, 190, (2, SIDE, SIDE, 3), dtype=np.uint8)
        if label:
            for frame, parts in zip(frames, PARTS.maps, strict=True):
                frame[parts == FACE_PARTS.index("mouth")] = (250, 0, 0) if label == 1 else (0, 0, 250)
        images[name] = list(frames)
        text = torch.from_numpy(rng.normal(size=(5, WIDTHS["text"])).astype(np.float32))
        return Utterance(name, "Ann", {"text": text, "face": colours(frames)}, label)

    dialogues = [Dialogue(f"d{d}", [utterance(f"d{d}_{i}") for i in range(4)]) for d in range(num_dialogues)]
    return Conversations(dialogues, EMOTIONS, WIDTHS), images


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    (train, _), (valid, _), (test, images) = (planted(n, seed) for seed, n in enumerate((60, 8, 8)))
    changes = ["model.d_model=16", "model.num_heads=2", "model.man_layers=1", "model.dropout=0.05", "train.epochs=10"]
    config = Config.load(None, [*changes, "train.learning_rate=0.01", "train.batch_size=8"])
    folder = tmp_path_factory.mktemp("run")
    return train_on(Splits(train, valid, test, standardizer=None), config, folder, progress=False), test, images


def explained(trained, dialogue, position):
    model, test, images = trained
    utterance = test.dialogues[dialogue].utterances[position]
    regions = Regions(FACE_PARTS, PARTS.maps)
    pictures = {"face": Pictures(images[utterance.id], colours, regions=regions)}
    return utterance, explain(model, test.dialogues[dialogue], position, pictures=pictures)


def test_a_model_that_reads_the_mouth_is_explained_by_the_mouth(trained):
    _, test, _ = trained
    hits = []
    for d, dialogue in enumerate(test.dialogues):
        for position, utterance in enumerate(dialogue.utterances):
            if utterance.label:
                _, explanation = explained(trained, d, position)
                best = explanation.groups[int(explanation.scores.argmax())]
                hits.append(best.name == "face, mouth")
    assert len(hits) >= 10
    assert sum(hits) / len(hits) >= 0.95


def test_maps_of_other_pictures_are_refused(trained):
    _, _, images = trained
    frames = next(iter(images.values()))
    with pytest.raises(ValueError, match=r"regions\.maps: expected \[\(96, 96\), \(96, 96\)\], got \[\(96, 96\)\]"):
        Pictures(frames, colours, regions=Regions(FACE_PARTS, PARTS.maps[:1]))


def test_the_report_paints_the_mouth_and_lists_the_parts(trained):
    _, test, images = trained
    d, position = next(
        (d, i) for d, talk in enumerate(test.dialogues) for i, u in enumerate(talk.utterances) if u.label
    )
    utterance, explanation = explained(trained, d, position)
    assert explanation.fidelity.reliable
    utterance.start, utterance.end = 0.0, 2.0
    box = (0, 0, SIDE, SIDE)
    seen = Perception(
        frames=images[utterance.id],
        pictures={"face": [Picture(image, i, box) for i, image in enumerate(images[utterance.id])]},
    )
    media = Media(frames=key_frames(utterance, explanation, seen, PARTS))
    mouth = next(r for r in media.frames[1].regions if explanation.groups[r.group].name == "face, mouth")
    assert (mouth.x + mouth.width / 2, mouth.y + mouth.height / 2) == pytest.approx((0.5, 0.75), abs=0.02)
    explanation.scores = explanation.scores.clone()
    eyes = next(i for i, group in enumerate(explanation.groups) if group.name == "face, eyes")
    explanation.scores[eyes] = -explanation.scores.abs().max() / 2
    page = render(Content("Faces", [Turn(utterance, explanation, media)], EMOTIONS, ["text", "face"], {}))
    first, *rest = re.findall(r"<th scope=\"row\">([^<]*)</th>", page.partition("Parts of the face")[2])[
        : len(FACE_PARTS)
    ]
    assert first == "mouth"
    assert set(rest) == set(FACE_PARTS) - {"mouth"}
    # the second cue besides the colour: what detracts is hatched and dashed, and numbers have signs
    assert len(re.findall(r'<path d="M[^"]*"\s+class="region up"', page)) >= 2
    assert len(re.findall(r'<path d="M[^"]*"\s+class="hatched"', page)) == 2
    assert page.count('id="hatch"') == 1
    assert "−" in re.search(r'<text class="region"[^>]*>(−[^<]*)<', page)[1]
