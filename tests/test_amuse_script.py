"""Promises of `import amuse` and of the command line around the work itself: names, versions, devices, logs."""

import subprocess
import sys

import pytest
import torch
import yaml
from typer.testing import CliRunner

import amuse
import amuse_kernels
from amuse.cli.main import app
from amuse.config import Config
from amuse.data import synthetic_conversations
from amuse.data.load import Splits, load_split
from amuse.experiments.comparison import compare
from amuse.training.train import train_on
from tests.test_training import TINY


def fresh(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


def test_every_name_of_the_package_leads_somewhere():
    assert set(amuse.__all__) <= set(dir(amuse))
    for name in amuse.__all__:
        assert getattr(amuse, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = amuse.trian


@pytest.mark.parametrize("code", ["import amuse", "import amuse.config", "import amuse.cli.main"])
def test_commands_that_need_no_torch_do_not_import_it(code):
    done = fresh("-c", f"import sys; {code}; print('torch' in sys.modules, 'sklearn' in sys.modules)")
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_training_imports_no_library_that_only_scores_need():
    done = fresh("-c", "import sys, amuse.training.train; print('sklearn' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("words", [["--version"], ["train", "--help"], ["data", "prepare", "--help"]])
def test_commands_that_compute_nothing_start_without_torch(words):
    code = "import sys\nfrom amuse.cli.main import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    done = fresh("-c", code, *words)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


@pytest.mark.parametrize("command", ["train", "repeat", "ablate", "compare"])
def test_commands_that_train_take_a_folder_of_data(tmp_path, monkeypatch, command):
    taken = []

    class Stop(Exception):
        pass

    def stop(config, *arguments, **options):
        taken.append(config if command == "compare" else config.data.path)
        raise Stop

    module = {"repeat": "repetition", "ablate": "ablation", "compare": "comparison"}.get(command)
    monkeypatch.setattr(
        "amuse.training.train.train" if module is None else f"amuse.experiments.{module}.{command}", stop
    )
    monkeypatch.setattr("amuse.data.load.guess_dataset", lambda folder: "prepared")
    result = CliRunner().invoke(app, [command, "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, Stop), result.output
    assert str(taken[0]) == str(tmp_path)


def test_encoders_load_without_notices_of_their_libraries(capfd):
    pytest.importorskip("transformers", reason="needs the extra: pip install amuse-kernels[text]")
    from amuse.encoders.text import TextModel
    from amuse.encoders.trainable import pretrained_model

    try:
        pretrained_model("minilm")
    except ImportError as error:
        pytest.skip(str(error))
    assert TextModel("minilm").network.config.hidden_size == 384
    try:
        from amuse.media.faces import FaceDetector

        FaceDetector()
    except ImportError:
        pass
    assert capfd.readouterr() == ("", "")


def test_the_module_is_the_command_and_knows_its_version():
    done = fresh("-m", "amuse", "--version")
    assert done.stdout == f"amuse {amuse_kernels.__version__}\n"
    assert amuse.__version__ == amuse_kernels.__version__


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train=3", "train.epochs=5"], "--set train.epochs=5: expected train to be a section, but it was set to 3"),
        (["model.dropout.x=1"], "config.model.dropout: expected"),
        (["train.epochs.deep.er=5"], "config.train.epochs: expected int, got dict"),
        (["train=3"], "config.train: expected a mapping, got int 3"),
        (["train.epochs=[1"], r"--set train.epochs=\[1: expected a YAML value after '=', got '\[1'"),
        (["train.epochs={a: b"], "expected a YAML value after '='"),
        (["train.epochs=" + "[" * 5000], "expected a YAML value after '='"),
        (["=5"], "--set =5: expected section.key=value"),
        (["train.=5"], "--set train.=5: expected section.key=value"),
        ([".epochs=5"], "--set .epochs=5: expected section.key=value"),
    ],
)
def test_overrides_that_do_not_fit_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        Config.load(None, overrides)


@pytest.mark.parametrize("overrides", [[], ["train.epochs=5"], ["model.streams.av=[audio, video]"]])
def test_an_empty_section_of_a_file_counts_as_one_without_keys(tmp_path, overrides):
    (tmp_path / "config.yaml").write_text("train:\nmodel:\n")
    assert Config.load(tmp_path / "config.yaml", overrides) == Config.load(None, overrides)


def test_an_empty_mapping_inside_a_section_takes_overrides(tmp_path):
    (tmp_path / "config.yaml").write_text("model:\n  streams:\n")
    found = Config.load(tmp_path / "config.yaml", ["model.streams.av=[audio, video]"])
    assert found.model.streams == {"av": ["audio", "video"]}


def test_text_is_encoded_on_the_device_of_the_training(tmp_path, monkeypatch):
    header = "Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,StartTime,EndTime"
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}_sent_emo.csv").write_text(
            f'{header}\nHello,Ann,joy,positive,0,0,"00:00:01,000","00:00:02,000"\n'
        )
    devices = []

    def encode_text(conversations, *arguments, device, modality, **options):
        devices.append(str(device))
        features = {u.id: torch.ones(1, 4) for u in conversations.utterances()}
        return conversations.with_features(modality, 4, features)

    monkeypatch.setattr("amuse.data.load.encode_text", encode_text)
    config = Config.load(None, ["data.dataset=meld", f"data.path={tmp_path}", "train.device=meta"])
    load_split(config.data, "test", progress=False, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):  # which computes nothing
        amuse.train(config, tmp_path / "run", progress=False)
    assert devices == ["meta"] * 4


def test_compare_takes_any_data_that_train_takes(tmp_path, monkeypatch):
    """Data sets without a configuration of their own get the defaults."""
    splits = Splits(*(synthetic_conversations(s, num_dialogues=3) for s in ("train", "valid", "test")), None)
    for dataset in ("prepared", "tables", "meld", "mosi"):
        monkeypatch.setattr("amuse.experiments.comparison.guess_dataset", lambda folder, found=dataset: found)
        monkeypatch.setattr("amuse.experiments.comparison.load_splits", lambda *_, **__: splits)
        table = compare(tmp_path, tmp_path / dataset, overrides=[*TINY[1:], "train.epochs=1", "model.streams={}"])
        assert table.startswith(f"{dataset}: ")


@pytest.mark.parametrize(("patience", "epochs", "reason"), [(1, 9, "train.patience"), (9, 2, "train.epochs")])
def test_the_end_says_why_training_stopped_and_which_epoch_is_kept(tmp_path, capsys, patience, epochs, reason):
    splits = Splits(*(synthetic_conversations(s, num_dialogues=3) for s in ("train", "valid", "test")), None)
    rate = "train.learning_rate=1e-12"  # so that no epoch is better than the first
    config = Config.load(None, [*TINY[1:], f"train.patience={patience}", f"train.epochs={epochs}", rate])
    train_on(splits, config, tmp_path)
    printed = capsys.readouterr()
    last = printed.out.strip().splitlines()[-1]
    assert last.startswith("stopped after epoch 2: ")
    assert reason in last
    assert "kept epoch 1: weighted_f1 " in last
    lines = printed.out.strip().splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [["epoch", "1"], ["epoch", "2"]]
    assert "\r" not in printed.out + printed.err  # no bar where there is no terminal


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_one_process_of_several_prints(tmp_path, monkeypatch, rank, lines):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("amuse.training.train.train", lambda *_: torch.nn.Linear(2, 2))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"train": {"epochs": 1}}))
    done = CliRunner().invoke(app, ["train", "--out", str(tmp_path), "--config", str(tmp_path / "config.yaml")])
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == lines
