"""Promises of the demo page: from a video dropped on it to emotions, reasons and a report, on this machine alone."""

import json
import sys
import urllib.error
import urllib.request

import pytest

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")
pytest.importorskip("jinja2", reason="needs the extra: pip install amuse-kernels[explain]")

from amuse.data.problems import Problem
from amuse.data.transcript import read_transcript
from amuse.demo import page as demo
from amuse.demo import talk as demo_talk
from amuse.demo.view import frame_html, problems_html
from amuse.explain.explanation import ExplainOptions
from amuse.inference.prediction import predict_recording
from amuse.inference.recording import Recognizer
from tests.test_prepare_predict import amuse
from tests.test_prepare_predict import run as run  # a fixture
from tests.test_prepare_predict import talks as talks
from tests.test_report_recording import HOSTILE
from tests.test_report_recording import talk as talk

pytestmark = pytest.mark.slow

PATIENCE = 60_000  # milliseconds; a slow machine may take its time
TEMPLATE = "${document.title} {{value}}"  # gradio's own placeholders are text, too


@pytest.fixture(scope="module", autouse=True)
def telemetry_off():
    """Sets the variables that the demo, and gradio after it, set in the environment of their process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("HF_HUB_DISABLE_TELEMETRY", "True")
        yield


@pytest.fixture(scope="module")
def recognizer(run):
    return Recognizer(run)


@pytest.fixture(scope="module")
def short(talk, tmp_path_factory):
    """The first four utterances of the talk, their transcript apart from the video."""
    transcript = tmp_path_factory.mktemp("words") / "words.csv"
    lines = talk.with_suffix(".csv").read_text().splitlines()[:5]
    transcript.write_text("\n".join(lines).replace(f"{HOSTILE} 1", f"{HOSTILE} {TEMPLATE} 1"))
    return talk, transcript


@pytest.fixture(scope="module")
def address(recognizer, tmp_path_factory):
    pytest.importorskip("gradio", reason="needs the extra: pip install amuse-kernels[demo]")
    page = demo.build(recognizer, tmp_path_factory.mktemp("demo"))
    yield demo.launch(page, None)
    page.close(verbose=False)


def test_utterances_come_one_by_one_and_end_as_the_prediction(run, recognizer, short):
    talks = list(demo_talk.recognize(recognizer, *short))
    assert [len(talk.rows) for talk in talks] == [1, 2, 3, 4]
    assert {talk.count for talk in talks} == {4}
    expected = predict_recording(run, *short, print)
    assert [row.emotion for row in talks[-1].rows] == [row.emotion for row in expected]
    assert [row.probability for row in talks[-1].rows] == pytest.approx([row.probability for row in expected], abs=1e-5)


def test_an_explanation_is_computed_once_and_framed_without_scripts(recognizer, short, monkeypatch):
    monkeypatch.setattr(demo_talk, "DEFAULTS", ExplainOptions("occlusion"))
    *_, talk = demo_talk.recognize(recognizer, *short)
    shown = frame_html(demo_talk.explanation_page(recognizer, talk, 2), 3)
    assert shown.startswith(
        '<iframe sandbox="allow-same-origin" title="Explanation of utterance 3" srcdoc="&lt;!doctype'
    )
    assert shown.count("<") == 2
    assert "Model card" not in shown
    assert demo_talk.explained(recognizer, talk, 2) is talk.turns[2]
    assert list(talk.turns) == [2]


def opened(browser, address, problems=None, **options):
    page = browser.new_page(**options)
    page.set_default_timeout(PATIENCE)
    if problems is not None:
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)
    return page


def upload(page, video, transcript):
    page.locator("input[accept*='video']").set_input_files(video)
    page.locator("#player video").wait_for()
    page.locator("input[accept*='.srt']").set_input_files(transcript)
    page.locator(".file-preview").wait_for()


def recognized(page, count):
    """Waits until all utterances have been heard."""
    page.locator("#status", has_text=f"{count} utterances. Click a block").wait_for()


def test_video_to_emotions_reasons_and_report_in_the_browser(run, address, short, browser, tmp_path):
    video, transcript = short
    problems, hosts = [], set()
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: hosts.add(request.url.split("/")[2] if "://" in request.url else "none"))
    page.goto(address)
    start = page.get_by_role("button", name="Recognize emotions")
    assert start.is_disabled()
    assert not page.get_by_role("button", name="Make a report").is_visible()
    upload(page, video, transcript)
    start.click()
    recognized(page, 4)
    expected = predict_recording(run, video, transcript, print)
    assert page.locator(".utterance .emotion").all_inner_texts() == [row.emotion for row in expected]
    assert page.locator(".utterance .sure").all_inner_texts() == [f"{100 * row.probability:.0f} %" for row in expected]
    assert page.locator(".utterance .speaker").all_inner_texts() == [row.speaker for row in expected]
    assert page.locator(".utterance .words").nth(1).inner_text() == f"{HOSTILE} {TEMPLATE} 1"
    assert page.locator(".lane .name").all_inner_texts()[:-1] == list(dict.fromkeys(row.speaker for row in expected))
    for row, utterance in zip(page.locator(".utterance").all(), expected, strict=True):
        shown = row.locator(".bar").evaluate_all("bars => bars.map(bar => bar.title)")
        assert set(shown) == {f"{name} {100 * p:.0f} %" for name, p in utterance.probabilities.items()}

    page.get_by_role("button", name="Explain utterance 2").click()
    reasons = page.frame_locator("iframe[title='Explanation of utterance 2']")
    assert reasons.locator(".turn .said").inner_text().strip() == f"{HOSTILE} {TEMPLATE} 1"
    assert reasons.locator(".turn").count() == 1
    assert reasons.locator(".chip").inner_text() == expected[1].emotion
    assert reasons.locator(".frames figure").count() == 4
    frame = page.locator(".explanation iframe")
    for _ in range(2):  # folded out, folded in: nothing to scroll in it, no blank below it
        page.wait_for_timeout(300)
        inner = frame.evaluate("frame => frame.contentDocument.body.getBoundingClientRect().height")
        assert inner <= frame.evaluate("frame => frame.clientHeight") <= inner + 10
        reasons.locator(".turn > summary").click()

    page.get_by_role("button", name="Make a report").click()
    with page.expect_download(timeout=PATIENCE) as download:
        page.get_by_role("button", name="Download the report").click()
    download.value.save_as(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count('class="turn"') == 4
    assert "<script" not in text
    assert not problems
    assert hosts <= {address.split("/")[2], "none"}
    page.close()


def test_a_block_plays_its_utterance_which_is_lit_meanwhile(address, short, browser):
    page = opened(browser, address)
    upload(page, *short)
    page.get_by_role("button", name="Recognize emotions").click()
    recognized(page, 4)
    row = page.locator(".utterance").nth(2)
    start, end = (float(row.get_attribute(f"data-{name}")) for name in ("start", "end"))
    page.locator("#player video").evaluate("video => { video.muted = true; video.playbackRate = 0.0625; }")
    page.get_by_role("button", name="Play utterance 3,").click()
    page.wait_for_function("document.querySelectorAll('.utterance')[2].classList.contains('lit')")
    assert start <= page.locator("#player video").evaluate("video => video.currentTime") < end + 0.5
    assert page.locator(".utterance.lit").count() == page.locator(".mark.lit").count() == 1
    page.close()


def test_corrections_are_saved_as_a_transcript_and_predicted_again(recognizer, address, short, browser, tmp_path):
    page = opened(browser, address)
    upload(page, *short)
    page.get_by_role("button", name="Recognize emotions").click()
    recognized(page, 4)
    again = page.get_by_role("button", name="Predict again with corrections")
    assert again.is_disabled()
    page.get_by_label("Speaker of utterance 1").fill("Zoë")
    page.get_by_label("Words of utterance 2").fill('He said "no", twice\nthen left')
    label = recognizer.model.spec.label_names[-1]
    page.locator(".utterance").nth(2).locator("select.label").select_option(label)
    with page.expect_download(timeout=PATIENCE) as download:
        page.get_by_role("button", name="Save as CSV").click()
    download.value.save_as(tmp_path / "saved.csv")
    problems = []
    lines = read_transcript(tmp_path / "saved.csv", problems.append)
    assert not problems
    plain = read_transcript(short[1], print)
    assert [(line.start, line.end) for line in lines] == [(line.start, line.end) for line in plain]
    assert [line.speaker for line in lines] == ["Zoë", *(line.speaker for line in plain[1:])]
    assert lines[1].text == 'He said "no", twice then left'
    assert lines[2].label == label
    again.click()
    page.locator(".utterance .words", has_text="twice then left").wait_for()
    recognized(page, 4)
    assert page.locator(".utterance .speaker").first.inner_text() == "Zoë"
    assert page.locator("select.label").nth(2).input_value() == label
    page.close()


def test_on_a_phone_nothing_overlaps_or_scrolls_sideways(address, short, browser):
    page = opened(browser, address, viewport={"width": 380, "height": 800}, color_scheme="dark")
    upload(page, *short)
    page.get_by_role("button", name="Recognize emotions").click()
    recognized(page, 4)
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    page.locator(".lane .name").first.evaluate("each => { each.textContent = 'speaker 1'; }")
    assert page.locator(".lane .name").first.evaluate("each => each.scrollWidth <= each.clientWidth")
    for row in page.locator(".utterance").all():
        boxes = [part.bounding_box() for part in row.locator(":scope > *").all()]
        for i, a in enumerate(boxes):
            for b in boxes[i + 1 :]:
                apart = (a["x"] + a["width"] <= b["x"] + 1 or b["x"] + b["width"] <= a["x"] + 1) or (
                    a["y"] + a["height"] <= b["y"] + 1 or b["y"] + b["height"] <= a["y"] + 1
                )
                assert apart, (a, b)
        words = row.locator(".emotion").bounding_box()
        assert words["height"] < 40  # in one line
    page.close()


def test_a_file_that_is_no_video_is_named_in_a_sentence(address, browser, tmp_path):
    page = opened(browser, address)
    (tmp_path / "talk.mp4").write_bytes(b"nothing of a video" * 100)
    page.locator("input[accept*='video']").set_input_files(tmp_path / "talk.mp4")
    page.locator("#player video").wait_for(state="attached")
    page.get_by_role("button", name="Recognize emotions").click()
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert alert.inner_text().startswith("talk.mp4 could not be used.")
    assert page.locator(".utterance").count() == 0
    page.close()


def test_problems_are_sentences_with_their_places():
    assert problems_html([]) == ""
    found = [Problem("no_face", f"u{i}", "none in <4> key frames") for i in range(3)]
    notes = problems_html(found)
    assert "No face in any key frame; the utterance lacks the modality face." in notes
    assert "u0: none in &lt;4&gt; key frames, and 2 more" in notes
    assert "Notes" in notes
    assert "open" not in notes.split(">")[0]
    lost = problems_html([*found, Problem("bad_row", "words.csv, line 3", "5 cells")])
    assert '<details class="notes" open><summary>Something could not be used' in lost


def test_the_example_is_made_and_heard(address, browser):
    page = opened(browser, address)
    page.get_by_role("button", name="Try a cartoon talk").click()
    page.locator("#player video").wait_for()
    page.get_by_role("button", name="Recognize emotions").click()
    recognized(page, 6)
    assert page.locator(".utterance").count() == page.locator(".mark").count() == 6
    page.close()


def test_files_that_were_not_uploaded_are_refused(address, talk):
    """`talk` lies outside of gradio's folder, as anybody's files do."""
    config = json.load(urllib.request.urlopen(f"{address}config"))
    assert config["analytics_enabled"] is False
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{address}gradio_api/file={talk}")


def test_a_missing_package_is_named_in_one_sentence(run, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nothing"):
        amuse("demo", tmp_path / "nothing")
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"needs gradio: pip install amuse-kernels\[demo\]"):
        amuse("demo", run)
