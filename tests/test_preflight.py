import json
import logging

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")

from amuse.cli.main import app
from amuse.config import Config
from amuse.data import load
from amuse.data.conversation import Conversations, Dialogue, Utterance
from amuse.data.load import Splits, load_splits
from amuse.data.preflight import Preflight
from amuse.evaluation.calibration import ENOUGH, Calibration
from amuse.model.amuse import Amuse
from amuse.training.train import train, train_on
from tests.media_files import write_talks


def conversations(labels, names=("calm", "angry"), speaker="Ann", prefix="a", seconds=2.0):
    utterances = [
        Utterance(f"{prefix}{i}", speaker, {}, label, "two words", 3.0 * i, 3.0 * i + seconds)
        for i, label in enumerate(labels)
    ]
    return Conversations([Dialogue(prefix, utterances)], list(names), {})


def test_preflight_counts_labels_speakers_and_lengths_by_split():
    splits = {
        "train": conversations([0] * 400 + [1] * 20 + [None] * 30),
        "valid": conversations([0, 1], prefix="b", speaker="Bob"),
        "test": conversations([1, None], prefix="c", speaker="Cid"),
    }
    found = Preflight.of(splits, 30)
    train = found.splits["train"]
    assert (train.labels, train.labelled, train.utterances) == ({"calm": 400, "angry": 20}, 420, 450)
    assert (train.speakers, train.seconds[50], train.words[99]) == (["Ann"], 2.0, 2.0)
    assert found.oddities == []
    rows = {line[:16].strip(): line.split()[-3:] for line in found.table().splitlines()}
    assert rows["angry"] == ["20", "1", "1"]
    assert rows["without label"] == ["30", "0", "1"]
    json.dumps(found.as_dict())


@pytest.mark.parametrize(
    ("change", "oddity"),
    [
        ({"test": None}, "no test split"),
        ({"test": [None, None]}, "test: no labels; it cannot be scored"),
        ({"train": [None] * 400}, "train: no labels; it cannot be learned from"),
        ({"test": [0, None, None]}, "test: 2 of 3 utterances have no label"),
        ({"train": [0] * 400}, "class 'angry' is in valid and test and never in train"),
        ({"train": [0] * 400 + [1] * 3}, "class 'angry' has 3 labels to learn from"),
        ({"train": [0] * 20 + [1] * 15}, "train: 35 labels are few"),
        ({"valid": [0] * 400, "train": [0] * 400, "test": [0]}, "train: a single class"),
    ],
)
def test_preflight_names_what_is_odd(change, oddity):
    labels = {"train": [0] * 400 + [1] * 20, "valid": [0, 1], "test": [0, 1]} | change
    splits = {n: conversations(x, prefix=n, speaker=n) for n, x in labels.items() if x is not None}
    assert any(text.startswith(oddity) for text in Preflight.of(splits).oddities)


def test_preflight_names_shared_speakers_and_odd_lengths():
    splits = {n: conversations([0, 1] * 200, prefix=n, seconds=40.0 if n == "test" else 0.1) for n in ("train", "test")}
    text = "\n".join(Preflight.of(splits, 30).oddities)
    assert "1 of 1 speakers are in several splits: Ann" in text
    assert "train: half of the utterances last under 0.1 s" in text
    assert "test: a tenth of the utterances last longer than the 30 s that are read" in text


def test_preflight_names_speakers_and_classes_that_may_be_none():
    names = ["Ann"] * 5 + ["Bob"] * 5 + ["Cid"] * 5 + ["ANN"] * 3 + ["I said"]
    utterances = [Utterance(str(i), name, {}, i % 2, "words", i, i + 1.0) for i, name in enumerate(names)]
    part = Conversations([Dialogue("a", utterances)], ["calm", "NaN"], {})
    text = "\n".join(Preflight.of({"train": part}).oddities)
    assert "speakers that differ in case only count as several: ANN and Ann" in text
    assert "1 of 5 speakers have one utterance: I said; are these names?" in text
    assert "a class named NaN" in text


def test_dry_run_reports_and_encodes_nothing(tmp_path):
    write_talks(tmp_path / "talks", count=4)
    arguments = ["data", "prepare", str(tmp_path / "talks"), "--out", str(tmp_path / "data"), "--no-faces"]
    result = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert result.exit_code == 0
    assert "angry" in result.output
    assert "nothing was encoded" in result.output
    assert not (tmp_path / "data").exists()
    result = CliRunner().invoke(app, [*arguments, "--workers", "1"])
    assert result.exit_code == 0
    report = json.loads((tmp_path / "data" / "report.json").read_text(encoding="utf-8"))
    assert report["preflight"]["splits"]["test"]["labels"] == {"angry": 2, "calm": 2}
    assert any("labels are few" in text for text in report["preflight"]["oddities"])


SMALL_RUN = [
    *("data.dataset=synthetic", "data.num_dialogues=4", "model.d_model=16", "model.num_heads=2", "train.epochs=1"),
    "train.batch_size=4",
]


def unlabelled(split):
    for utterance in split.utterances():
        utterance.label = None


@pytest.mark.parametrize("name", ["train", "valid", "test"])
def test_training_refuses_at_once_what_evaluation_could_not_score(tmp_path, name):
    config = Config.load(None, SMALL_RUN)
    splits = load_splits(config.data)
    unlabelled(getattr(splits, name))
    with pytest.raises(ValueError, match=f"{name}: expected labelled utterances"):
        train_on(splits, config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_splits_without_labels_are_refused_before_their_words_are_encoded(tmp_path, monkeypatch):
    header = "Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,StartTime,EndTime"
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}_sent_emo.csv").write_text(
            f'{header}\nHello,Ann,joy,positive,0,0,"00:00:01,000","00:00:02,000"\n'
        )

    def read(folder, split, **options):
        found = read_meld(folder, split, **options)
        if split == "dev":
            unlabelled(found)
        return found

    read_meld = load.read_meld
    monkeypatch.setattr(load, "read_meld", read)
    monkeypatch.setattr(load, "add_text", lambda *_: pytest.fail("words were encoded"))
    config = Config.load(None, ["data.dataset=meld", f"data.path={tmp_path}"])
    with pytest.raises(ValueError, match="valid: expected labelled utterances"):
        train(config, tmp_path / "run", progress=False)


def test_training_says_when_the_model_is_large_for_the_data(tmp_path, caplog):
    config = Config.load(None, [*SMALL_RUN, "model.d_model=128", "model.man_layers=4"])
    splits = load_splits(config.data)
    few = Splits(splits.train.subset([0]), splits.valid.subset([0]), splits.test, splits.standardizer)
    with caplog.at_level(logging.WARNING):
        train_on(few, config, tmp_path / "run", progress=False)
    assert "try --config small" in caplog.text
    assert "probabilities are not calibrated" in caplog.text
    small = Config.load("small", ["data.dataset=synthetic"])
    model = Amuse(small.model, load_splits(small.data).spec(small.data.encoder))
    assert sum(parameter.numel() for parameter in model.parameters()) < 100_000


def test_temperature_is_fitted_on_enough_labels_only():
    logits, labels = 9 * torch.eye(4).repeat(20, 1), torch.arange(4).repeat(20)
    labels[::3] = (labels[::3] + 1) % 4  # a third are wrong, and very sure
    assert Calibration.fit(logits[: ENOUGH - 1], labels[: ENOUGH - 1]).temperature == 1.0
    few = labels.clone()
    few[ENOUGH - 1 :] = -100
    assert Calibration.fit(logits, few).temperature == 1.0
    assert Calibration.fit(logits[:ENOUGH], labels[:ENOUGH]).temperature > 2


@pytest.mark.parametrize(("labels", "said"), [("wrong", "hardly better than chance"), ("right", "all but certain")])
def test_temperature_at_its_bound_is_reported(caplog, labels, said):
    logits, right = 0.1 * torch.eye(4).repeat(20, 1), torch.arange(4).repeat(20)
    with caplog.at_level(logging.WARNING):
        Calibration.fit(logits, right if labels == "right" else (right + 1) % 4)
    assert "is at its bound" in caplog.text
    assert said in caplog.text


def test_configurations_of_the_package_go_by_their_names():
    assert Config.load("small").model.d_model == 32
    with pytest.raises(FileNotFoundError, match=r"smal: expected a YAML file, or one of .*small"):
        Config.load("smal")
