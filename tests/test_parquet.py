"""Prepared data as Parquet: the library datasets reads what it declares, and nothing is lost on the way back."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("pyarrow", reason="needs the extra: pip install amuse-kernels[datasets]")

from amuse.cli.main import app
from amuse.data import Conversations, synthetic_conversations
from amuse.data import parquet as parquet_module
from amuse.data.parquet import pull, push
from amuse.data.prepared import read_manifest, read_prepared
from tests.prepared_folder import write_prepared


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Nine dialogues per split, a third of the modalities missing; Parquet files of a few rows."""
    monkeypatch.setattr(parquet_module, "ROWS_IN_MEMORY", 4)
    monkeypatch.setattr(parquet_module, "ROWS_IN_FILE", 20)
    splits = ("train", "valid", "test")
    source = {split: synthetic_conversations(split, num_dialogues=9, seed=1, absent_rate=0.3) for split in splits}
    source = {split: conversations.select(["audio", "video", "text"]) for split, conversations in source.items()}
    for conversations in source.values():
        conversations.dialogues[0].utterances[0].label = None
    folder = write_prepared(tmp_path / "prepared", source)
    manifest = json.loads((folder / "manifest.json").read_text())
    encoders = {"audio": {"name": "logmel", "description": "bands"}}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "encoders": encoders, "shard_size": 7}))
    return folder


def assert_same(ours: Conversations, theirs: Conversations) -> None:
    assert (ours.label_names, ours.modalities) == (theirs.label_names, theirs.modalities)
    assert [d.id for d in ours.dialogues] == [d.id for d in theirs.dialogues]
    for a, b in zip(ours.utterances(), theirs.utterances(), strict=True):
        for name in ("id", "speaker", "text", "label", "start", "end"):
            assert getattr(a, name) == getattr(b, name)
        assert set(a.features) == set(b.features)
        assert all(torch.equal(a.features[m], b.features[m]) for m in b.features)


def test_what_is_pushed_and_pulled_is_the_same_data(prepared, tmp_path):
    run = CliRunner()
    assert run.invoke(app, ["data", "push", str(prepared), str(tmp_path / "shared")]).exit_code == 0
    assert run.invoke(app, ["data", "pull", str(tmp_path / "shared"), "--out", str(tmp_path / "back")]).exit_code == 0
    for split in ("train", "valid", "test"):
        assert_same(read_prepared(tmp_path / "back", split), read_prepared(prepared, split))
    assert read_manifest(tmp_path / "back") == read_manifest(prepared)
    assert len(list((tmp_path / "shared" / "data").glob("train-*.parquet"))) > 1


def test_the_library_datasets_reads_the_declared_features(prepared, tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs: pip install datasets")
    push(prepared, str(tmp_path / "shared"))
    read = datasets.load_dataset(str(tmp_path / "shared"), cache_dir=str(tmp_path / "cache"))
    assert set(read) == {"train", "validation", "test"}
    expected = read_prepared(prepared, "train")
    assert read["train"].features["label"].names == expected.label_names
    assert read["train"].features["audio"].feature.length == expected.modalities["audio"]
    for row, utterance in zip(read["train"], expected.utterances(), strict=True):
        assert (row["id"], row["label"]) == (utterance.id, utterance.label)
        for modality in expected.modalities:
            tokens = utterance.features.get(modality)
            column = "text_features" if modality == "text" else modality
            assert (row[column] is None) == (tokens is None)
            assert tokens is None or torch.equal(torch.tensor(row[column]), tokens)


def test_names_of_the_hub_are_uploaded_and_downloaded(prepared, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    created = []

    class Api:
        def create_repo(self, name, repo_type, private, exist_ok):
            created.append((name, repo_type, private))

        def upload_folder(self, repo_id, repo_type, folder_path):
            shutil.copytree(folder_path, tmp_path / "hub")

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **options: str(tmp_path / "hub"))
    push(prepared, "hf:ada/talks")
    assert created == [("ada/talks", "dataset", True)]
    assert not (prepared / "parquet").exists()
    pull("hf:ada/talks", tmp_path / "back")
    assert_same(read_prepared(tmp_path / "back", "test"), read_prepared(prepared, "test"))


def test_other_folders_are_refused(prepared, tmp_path):
    push(prepared, str(tmp_path / "shared"))
    with pytest.raises(FileExistsError, match="expected a new folder"):
        push(prepared, str(tmp_path / "shared"))
    with pytest.raises(FileExistsError, match="expected a new folder"):
        pull(str(tmp_path / "shared"), prepared)
    for path in (tmp_path / "shared" / "data").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="expected Parquet files of train, validation, test"):
        pull(str(tmp_path / "shared"), tmp_path / "back")
    with pytest.raises(FileNotFoundError, match=r"manifest\.json: no such file"):
        push(Path(tmp_path / "cache"), str(tmp_path / "other"))
