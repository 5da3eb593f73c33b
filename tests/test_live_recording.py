"""A spoken conversation, live: right words, speakers and emotions, and the same predictions as of the finished file."""

import csv

import pytest

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")
pytest.importorskip("transformers", reason="needs the extra: pip install amuse-kernels[text]")
pytest.importorskip("faster_whisper", reason="needs the extra: pip install amuse-kernels[speech]")

from amuse.inference.prediction import predict_recording
from benchmarks.speech import edits, plain_words
from tests import test_prepare_predict as prepared
from tests.test_bare_recording import FELT, amuse, pytestmark, trained
from tests.test_bare_recording import run as run  # a fixture
from tests.test_bare_recording import talk as talk
from tests.test_bare_recording import video as video
from tests.test_prepare_predict import talks as talks

__all__ = ["pytestmark"]

CAUSAL = ("model.temporal=attention", "model.causal=true")


def live(run, video, out):
    """The rows of the file that the command writes, and what it prints."""
    printed = amuse("live", run, "--file", video, "--speed", 0, "-o", out)
    with out.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file)), printed


def test_it_has_the_right_words_speakers_and_emotions(run, video, talk, tmp_path):
    rows, printed = live(run, video, tmp_path / "talk.csv")
    assert [row["speaker"] for row in rows] == ["speaker 1", "speaker 2"] * 3
    assert [row["predicted"] for row in rows] == FELT
    said = [plain_words(" ".join(part)) for part in ([line.text for line in talk.lines], [r["text"] for r in rows])]
    assert edits(*said) / len(said[0]) <= 0.15
    for row, line in zip(rows, talk.lines, strict=True):
        assert float(row["start"]) == pytest.approx(line.start, abs=0.3)
        assert float(row["end"]) == pytest.approx(line.end, abs=0.3)
    lines = printed.splitlines()
    assert sum(rows[2]["text"] in line and "(+" in line for line in lines) == 1
    assert lines[-1].startswith("6 utterances; from the end of speech to the emotion: p50 ")
    assert lines[-1].endswith(f"nothing was dropped: {tmp_path / 'talk.csv'}")


def test_words_of_a_causal_model_get_the_predictions_of_the_finished_file(video, tmp_path):
    run = trained(tmp_path, *CAUSAL)
    rows, _ = live(run, video, tmp_path / "talk.csv")
    expected = predict_recording(run, video, tmp_path / "talk.csv", print)
    assert [row["predicted"] for row in rows] == [row.emotion for row in expected]
    assert [float(row["probability"]) for row in rows] == pytest.approx([r.probability for r in expected], abs=0.0051)
    bare = predict_recording(run, video, None, print)
    assert [(r.speaker, r.emotion, r.start, r.end) for r in bare] == [
        (r.speaker, r.emotion, r.start, r.end) for r in expected
    ]


def test_voice_and_picture_of_a_causal_model_get_the_predictions_of_the_finished_file(talks, video, tmp_path):
    amuse("data", "prepare", talks, "--out", tmp_path / "data", "--workers", 1, "--no-faces")
    prepared.train(tmp_path / "data", tmp_path / "run", prepared.SOUND_AND_PICTURE, *CAUSAL)
    rows, _ = live(tmp_path / "run", video, tmp_path / "talk.csv")
    expected = predict_recording(tmp_path / "run", video, tmp_path / "talk.csv", print)
    assert len(rows) == 6
    assert {modality for row in expected for modality in row.modalities} == {"audio", "video"}
    assert [row["predicted"] for row in rows] == [row.emotion for row in expected]
    assert [float(row["probability"]) for row in rows] == pytest.approx([r.probability for r in expected], abs=0.0051)
