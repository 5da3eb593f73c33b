"""Promises of the demo page: from a video dropped on it to emotions, reasons and a report, on this machine alone."""

import json
import sys
import urllib.error
import urllib.request

import pytest

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")
pytest.importorskip("jinja2", reason="needs the extra: pip install amuse-kernels[explain]")

from amuse import demo
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
    """What the demo, and gradio after it, set in the environment of their process."""
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
    talks = list(demo.listen(recognizer, *short))
    assert [len(talk.rows) for talk in talks] == [1, 2, 3, 4]
    assert {talk.count for talk in talks} == {4}
    expected = predict_recording(run, *short, print)
    assert [row.emotion for row in talks[-1].rows] == [row.emotion for row in expected]
    assert [row.probability for row in talks[-1].rows] == pytest.approx([row.probability for row in expected], abs=1e-5)


def test_an_explanation_is_computed_once_and_framed_without_rights(recognizer, short, monkeypatch):
    monkeypatch.setattr(demo, "DEFAULTS", ExplainOptions("occlusion"))
    *_, talk = demo.listen(recognizer, *short)
    shown = demo.explanation(recognizer, talk, 2)
    assert shown.startswith('<iframe sandbox title="Explanation of utterance 3" srcdoc="&lt;!doctype html&gt;')
    assert shown.count("<") == 2
    assert "Model card" not in shown
    assert demo.explained(recognizer, talk, 2) is talk.turns[2]
    assert list(talk.turns) == [2]


def test_video_to_emotions_reasons_and_report_in_the_browser(run, address, short, browser, tmp_path):
    video, transcript = short
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    problems, hosts = [], set()
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: hosts.add(request.url.split("/")[2] if "://" in request.url else "none"))
    page.goto(address)
    page.get_by_role("button", name="Listen").click()
    status = page.get_by_label("Status")
    wait_for_value(page, "no video yet")
    page.locator("input[accept*='video']").set_input_files(video)
    page.locator("video").wait_for()
    page.locator("input[accept*='.srt']").set_input_files(transcript)
    page.locator(".file-preview").wait_for()
    page.get_by_role("button", name="Listen").click()
    wait_for_value(page, "4 utterances; click one")
    shown = cells(page, 4)
    expected = predict_recording(run, video, transcript, print)
    assert [row[3] for row in shown] == [row.emotion for row in expected]
    assert [row[4] for row in shown] == [f"{100 * row.probability:.0f} %" for row in expected]
    assert [row[2] for row in shown] == [row.speaker for row in expected]
    assert shown[1][5] == f"{HOSTILE} {TEMPLATE} 1"

    page.get_by_test_id("cell-1-3").click()
    reasons = page.frame_locator("iframe[title='Explanation of utterance 2']")
    assert reasons.locator(".turn .said").inner_text().strip() == f"{HOSTILE} {TEMPLATE} 1"
    assert reasons.locator(".turn").count() == 1
    assert reasons.locator(".chip").inner_text() == expected[1].emotion
    assert reasons.locator(".frames figure").count() == 4

    page.get_by_role("button", name="Make report").click()
    wait_for_value(page, "the report is ready")
    with page.expect_download(timeout=PATIENCE) as download:
        page.get_by_role("button", name="Download report").click()
    download.value.save_as(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count('class="turn"') == 4
    assert "<script" not in text
    assert status.input_value() == "the report is ready"
    assert not problems
    assert hosts <= {address.split("/")[2], "none"}
    page.close()


def test_the_example_is_made_and_heard(address, browser):
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.get_by_role("button", name="Cartoon talk").click()
    page.locator("video").wait_for()
    page.get_by_role("button", name="Listen").click()
    wait_for_value(page, "6 utterances; click one")
    assert [row[0] for row in cells(page, 6)] == list("123456")
    page.close()


def test_files_that_were_not_uploaded_are_refused(address, talk):
    """`talk` lies outside of gradio's folder, as anybody's files do."""
    config = json.load(urllib.request.urlopen(f"{address}config"))
    assert config["analytics_enabled"] is False
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{address}gradio_api/file={talk}")


def test_what_is_missing_is_said_in_one_sentence(run, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nothing"):
        amuse("demo", tmp_path / "nothing")
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"needs gradio: pip install amuse-kernels\[demo\]"):
        amuse("demo", run)


def wait_for_value(page, beginning):
    page.wait_for_function(
        "text => document.querySelector('.status textarea')?.value.startsWith(text)", arg=beginning, timeout=PATIENCE
    )


def cells(page, count):
    """What the table shows, row by row, once it has that many."""
    page.locator(f".utterances [data-row='{count - 1}'][data-col='5']").wait_for()
    return [
        [page.get_by_test_id(f"cell-{row}-{column}").inner_text().strip() for column in range(6)]
        for row in range(count)
    ]
