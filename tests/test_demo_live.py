"""Promises of the page's live view: what a microphone hears appears with its emotion, and so does what is lost."""

import csv
import types

import numpy as np
import pytest

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")
pytest.importorskip("jinja2", reason="needs the extra: pip install amuse-kernels[explain]")

from amuse.data import Utterance
from amuse.demo import live as demo_live
from amuse.demo import page as demo
from amuse.encoders.signal import SAMPLE_RATE
from amuse.inference.recording import Recognizer
from amuse.inference.rereading import open_session
from amuse.live import LiveOptions, Lost, Spoken
from amuse.live.voice import Stretch
from benchmarks.speech import edits, plain_words
from benchmarks.spoken import speak
from tests.media_files import tone, write_wav
from tests.test_bare_recording import FELT, TALK
from tests.test_bare_recording import pytestmark as needs_speech
from tests.test_bare_recording import run as run  # a fixture
from tests.test_demo_page import PATIENCE
from tests.test_demo_page import telemetry_off as telemetry_off
from tests.test_live import understood

HOSTILE = "<script>alert(1)</script>"
LOADING = 12.0  # seconds of silence while the page loads its models


@pytest.fixture
def talk(tmp_path, monkeypatch):
    """A conversation on the page that is told its events by hand."""

    class Live:
        def __init__(self, recognizer, show, *, transcriber):
            self.show, self.heard, self.lost = show, [], []
            self.speaking, self.waiting, self.seconds = False, 0, 0.0
            self.hear = self.heard.append
            self.seen = []
            self.see = lambda picture, nbytes: self.seen.append((picture(), nbytes))
            self.finish = self.stop = lambda: None

    monkeypatch.setattr(demo_live, "Live", Live)
    spec = types.SimpleNamespace(label_names=["joy", "anger"])
    recognizer = types.SimpleNamespace(model=types.SimpleNamespace(spec=spec))
    return demo_live.LiveTalk(recognizer, None, tmp_path / "live.csv")


def say(talk, start, text="Yes.", emotion="joy"):
    talk.live.show(Spoken(understood(Stretch([(start, start + 2.0)]), text, emotion), 1.25))


def test_utterances_come_newest_first_and_hostile_words_are_text(talk):
    assert talk.news() is None
    say(talk, 1.0)
    say(talk, 5.0, HOSTILE, "anger")
    shown = talk.news()
    assert talk.news() is None
    assert "<script" not in shown
    assert shown.index("&lt;script&gt;") < shown.index("Yes.")
    assert shown.count('class="mark"') == shown.count('class="utterance"') == 2
    assert "+1.2 s" in shown
    assert "left:25.0%;width:10.0%" in shown  # of the first 20 seconds


def test_what_was_dropped_is_shown_where_it_was_and_counted(talk):
    say(talk, 1.0)
    talk.live.lost.append(Lost(4.0, 9.0, "20 s behind"))
    talk.live.show(talk.live.lost[0])
    say(talk, 30.0)
    shown = talk.view().partition("<ol")[2]
    assert shown.index("0:30") < shown.index("dropped: 20 s behind") < shown.index("0:01")
    assert "0:04 – 0:09" in shown
    assert "5 s of speech dropped" in talk.status()


def test_a_long_conversation_is_cut_on_the_page_but_not_in_the_file(talk):
    for i in range(130):
        say(talk, 3.0 * i)
    shown = talk.view()
    assert shown.count('class="utterance"') == 100
    assert 'data-number="130"' in shown
    assert "30 earlier utterances are in the file" in shown
    assert shown.count('class="mark"') == 20  # of the last minute
    talk.finish()
    assert "130 utterances" in talk.status()
    assert len(talk.path.read_text("utf-8-sig").splitlines()) == 131


def test_the_conversation_of_a_visitor_who_has_gone_ends_and_keeps_its_lines(talk):
    say(talk, 1.0)
    talk.abandon()
    talk.hear(48000, np.ones(48000, np.int16))
    assert not talk.live.heard
    assert len(talk.path.read_text("utf-8-sig").splitlines()) == 2


@pytest.mark.parametrize("channels", [1, 2])
def test_sound_at_the_browsers_rate_is_heard_at_ours(talk, channels):
    samples = (tone(2.0, 440.0, 48000) * 32767).astype(np.int16)
    for begin in range(0, len(samples), 24000):
        part = samples[begin : begin + 24000]
        talk.hear(48000, part if channels == 1 else np.stack([part, part], axis=1))
    heard = np.concatenate(talk.live.heard)
    assert abs(len(heard) - 2 * SAMPLE_RATE) < 100
    spectrum = np.abs(np.fft.rfft(heard))
    assert spectrum.argmax() * SAMPLE_RATE / len(heard) == pytest.approx(440, abs=1)
    talk.finish()
    talk.hear(48000, samples)  # too late
    assert sum(map(len, talk.live.heard)) == len(heard)


def test_pictures_of_the_camera_are_as_small_as_those_of_a_file(talk):
    image = np.zeros((1440, 1920, 3), np.uint8)
    image[:, 960:] = 200
    talk.see(image)
    ((seen, nbytes),) = talk.live.seen
    assert seen.shape == (480, 640, 3)
    assert nbytes == seen.nbytes
    assert (abs(seen[:, :300].mean()), seen[:, 340:].mean()) == pytest.approx((0, 200), abs=3)
    talk.finish()
    talk.see(image)
    assert len(talk.live.seen) == 1


@pytest.fixture
def microphone(launch_chromium, tmp_path):
    """A browser whose microphone plays four lines, and those lines."""
    spoken = speak(TALK[:4], [LOADING, 0.8, 0.8, 0.8])
    wav = write_wav(tmp_path / "talk.wav", spoken.samples)
    fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    browser = launch_chromium(*fake, f"--use-file-for-fake-audio-capture={wav}%noloop")
    yield browser.new_context(permissions=["microphone"], viewport={"width": 380, "height": 800}), spoken.lines
    browser.close()


@needs_speech[0]
@needs_speech[1]
def test_a_conversation_at_the_microphone_appears_in_the_browser(run, microphone, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="needs the extra: pip install amuse-kernels[demo]")
    monkeypatch.setattr("amuse.live.listener.LiveOptions", lambda: LiveOptions(patience=120.0))  # of a busy machine
    context, lines = microphone
    recognizer = Recognizer(run)
    served = demo.build(recognizer, tmp_path)
    address = demo.launch(served, None)
    problems, hosts = [], set()
    page = context.new_page()
    page.set_default_timeout(2 * PATIENCE)
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: hosts.add(request.url.split("/")[2] if "://" in request.url else "none"))
    page.goto(address)
    page.get_by_role("tab", name="Live").click()
    assert page.locator("#camera").count() == 0  # the model reads words only
    page.get_by_role("button", name="Record").first.click()
    page.locator("#live-status", has_text="Listening").wait_for()
    page.locator("#live .utterance[data-number='4']").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    page.get_by_role("button", name="Stop").first.click()
    page.locator("#live-status", has_text="The conversation has ended: 4 utterances.").wait_for()
    rows = page.locator("#live .utterance")
    assert rows.locator(".speaker").all_inner_texts() == ["speaker 2", "speaker 1"] * 2
    shown = rows.locator(".emotion").all_inner_texts()[::-1]
    words = plain_words(" ".join(reversed(rows.locator(".words").all_inner_texts())))
    expected = plain_words(" ".join(line.text for line in lines))
    assert edits(expected, words) / len(expected) <= 0.3, words  # the browser suppresses what it takes for noise
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").last.click()
    download.value.save_as(tmp_path / "saved.csv")
    with (tmp_path / "saved.csv").open(encoding="utf-8-sig", newline="") as file:
        saved = list(csv.DictReader(file))
    data = recognizer.config.data
    session = open_session(recognizer.model, recognizer.standardizer, recognizer.temperature, data)
    said = [session.push(Utterance(row["start"], row["speaker"], {}, text=row["text"])).label for row in saved]
    assert shown == [row["predicted"] for row in saved]
    assert said == shown
    assert sum(a == b for a, b in zip(shown, FELT[:4], strict=True)) >= 3
    assert not problems
    assert hosts <= {address.split("/")[2], "none"}
    served.close(verbose=False)
