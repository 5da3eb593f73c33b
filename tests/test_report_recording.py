"""Promises of the report of a recording: made from the video alone, it shows what was heard and seen, where it was."""

import re

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")
pytest.importorskip("jinja2", reason="needs the extra: pip install amuse-kernels[explain]")

from amuse.data import Utterance
from amuse.explain import ExplainOptions, Group
from amuse.media.cartoon import write_talk
from amuse.media.extract import Extractor, Options, Perception
from amuse.media.faces import Picture
from amuse.media.sources import Clip, Span
from amuse.report import render, write_report
from amuse.report.from_recording import explain_recording, key_frames
from tests.media_files import tone, write_video
from tests.test_prepare_predict import amuse
from tests.test_prepare_predict import run as run  # a fixture
from tests.test_prepare_predict import talks as talks

pytestmark = pytest.mark.slow

HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """A video of 20 utterances with a transcript of hostile words."""
    video = tmp_path_factory.mktemp("talk") / "new.webm"
    lines = write_talk(video, utterances=20, seed=3)
    rows = [f'{line.start},{line.end},{line.speaker},"{HOSTILE} {i}",calm' for i, line in enumerate(lines)]
    video.with_suffix(".csv").write_text("\n".join(["start,end,speaker,text,label", *rows]))
    return video


@pytest.fixture(scope="module")
def content(run, talk):
    return explain_recording(run, talk, None, print, ExplainOptions("occlusion"), progress=False)


def test_report_by_the_command(run, talks, tmp_path):
    out = tmp_path / "report.html"
    printed = amuse("explain", run, talks / "talk0.mp4", "--samples", 40, "--method", "shap", "-o", out)
    assert f"4 utterances explained: {out}" in printed
    assert "shap, 40 samples, seed 0" in out.read_text()
    assert "<audio" not in out.read_text()
    printed = amuse("explain", run, talks / "talk0.mp4", "--method", "occlusion", "--sound", "-o", out)
    assert re.search(r"report.html \([\d,]+ kB, with sound\)", printed)
    assert out.read_text().count("<audio") == 4


def test_report_of_a_video_in_the_browser(content, tmp_path, browser):
    out = tmp_path / "report.html"
    write_report(content, out)
    assert out.stat().st_size < 2_000_000
    page = browser.new_page()
    problems, requests = [], []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(out.as_uri())
    assert not problems
    assert [url for url in requests if not url.startswith("data:")] == [page.url]
    assert page.locator(".turn").count() == 20
    page.locator("#u2").evaluate("element => element.open = true")
    assert page.locator("#u2 .said").inner_text().strip() == f"{HOSTILE} 1"
    assert page.locator("#u2 .frames .moment").count() == 4
    assert page.locator("#u2 .frames image").first.evaluate("e => e.getBBox().width") == 240
    assert page.locator("#u2 .strip .wave").count() == 1
    assert page.locator("#u2 .strip image").count() == 1
    assert all(box.get_attribute("aria-label") for box in page.locator("#u2 svg[role=img]").all())
    counted = page.locator(".confusion tbody td:not(:last-child)").all_inner_texts()
    assert sum(int(count) for count in counted) == 20


def test_content_of_a_recording_is_what_was_predicted_heard_and_seen(run, talk, content):
    rows = amuse("predict", run, talk).splitlines()
    assert len(content.turns) == len(rows) == 20
    for turn, row in zip(content.turns, rows, strict=True):
        probabilities = turn.explanation.probabilities
        assert f"{content.label_names[int(probabilities.argmax())]}" in row
        assert f"{float(probabilities.max()):.2f}" in row
        seconds = turn.utterance.end - turn.utterance.start
        assert len(turn.media.waveform) == pytest.approx(16000 * seconds, abs=2000)
        assert turn.media.mel.shape[0] == 64
        times = [frame.time for frame in turn.media.frames]
        assert times == pytest.approx([turn.utterance.start + (i + 0.5) * seconds / 4 for i in range(4)])
        regions = [group for group in turn.explanation.groups if group.stream == "video"]
        assert len(regions) == 16
        assert all(len(frame.regions) == 16 for frame in turn.media.frames)


def test_a_sound_file_and_a_video_without_sound(run, tmp_path):
    mute = write_video(tmp_path / "mute.mp4", 2.0, sound=False)
    (turn,) = explain_recording(run, mute, None, print, ExplainOptions("occlusion"), progress=False).turns
    assert turn.media.waveform is None
    assert len(turn.media.frames) == 4
    loud = write_video(tmp_path / "loud.mp4", 1.0, sound=np.concatenate([tone(0.5, 250), tone(0.5, 750)]))
    (tmp_path / "loud.csv").write_text("start,end,speaker,text,label\n0,1,Ann,hello,\n5,6,Ann,never said,\n")
    problems = []
    content = explain_recording(run, loud, None, problems.append, ExplainOptions("occlusion"), progress=False)
    assert {problem.kind for problem in problems} >= {"out_of_range"}
    assert not content.turns[1].explanation.groups
    assert "never said" in render(content)


def test_regions_lie_where_the_face_was():
    """A face in the lower right quarter of the second frame."""
    frames = [np.zeros((100, 200, 3), np.uint8)] * 2
    seen = Perception(None, frames, {"face": [Picture(frames[1][50:, 100:], 1, (100, 50, 200, 100))]})
    groups = [Group("text", (0,), "hi"), Group("face", (0,), "face, row 1, column 2", cell=1)]
    explanation = type("Explained", (), {"groups": groups, "scores": torch.ones(2)})
    first, second = key_frames(Utterance("u", "Ann", {}, start=1.0, end=3.0), explanation, seen)
    assert (first.time, second.time) == (1.5, 2.5)
    assert not first.regions
    (region,) = second.regions
    assert (region.group, region.x, region.y, region.width, region.height) == (1, 0.625, 0.5, 0.125, 0.125)


def test_faces_are_pictures_of_their_own(tmp_path, monkeypatch):
    """By a detector that finds a face in every second frame."""
    from amuse.media import extract

    found = iter([[(10, 10, 30, 30)], []] * 2)
    monkeypatch.setattr(extract, "FaceDetector", lambda: lambda frame: next(found))
    monkeypatch.setattr(Extractor, "describe", lambda self: {})
    extractor = Extractor(Options(audio=None, faces=True))
    video = write_video(tmp_path / "a.mp4", 1.0)
    seen = extractor.perceive(Clip("u", None, Span(video)), "u", print)
    assert [(p.frame, p.box) for p in seen.pictures["face"]] == [(0, (6, 6, 34, 34)), (2, (6, 6, 34, 34))]
    assert [p.box for p in seen.pictures["background"]] == [(0, 0, 64, 48)] * 4
    assert {m: len(x) for m, x in extractor.encode(seen, "u", print).items()} == {"face": 2, "background": 4}


def test_arguments_that_do_not_go_together(run, talk):
    with pytest.raises(ValueError, match="--transcript: expected VIDEO"):
        amuse("explain", run, "--transcript", talk)
    with pytest.raises(ValueError, match="--dialogue: expected no VIDEO with it"):
        amuse("explain", run, talk, "--dialogue", "d")
    with pytest.raises(ValueError, match="--sound: expected VIDEO, since a run's data hold no sound"):
        amuse("explain", run, "--sound")
    assert re.search("VIDEO", amuse("explain", "--help"))
