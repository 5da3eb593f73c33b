"""Promises of features that stay in their files: the same numbers as in memory, read when asked for, verified once."""

import json
import os
import threading
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from amuse.cli.main import app
from amuse.config import Config
from amuse.data import Conversations, Dialogue, Standardizer, collate
from amuse.data import standardize as standardize_module
from amuse.data.batch import DialogueBatches
from amuse.data.load import Splits, load_splits
from amuse.data.prepared import read_prepared
from amuse.encoders import stored
from amuse.encoders.stored import StoredTokens, stored_tensors
from amuse.training.micro_batches import MicroBatchSampler, micro_batch_loader, read_ahead
from amuse.training.train import train_on
from amuse.world import World
from tests.batches import missing_counts
from tests.prepared_folder import seven_dialogues, write_prepared


@pytest.fixture(scope="module")
def source():
    return seven_dialogues()


@pytest.fixture
def folder(source, tmp_path):
    return write_prepared(tmp_path / "data", source)


@pytest.fixture
def reads(monkeypatch):
    """The tokens that are read while a test runs."""
    seen, read = [], StoredTokens.read

    def counted(self):
        seen.append(self)
        return read(self)

    monkeypatch.setattr(StoredTokens, "read", counted)
    return seen


def in_memory(conversations):
    """The same conversations with everything read."""
    dialogues = [
        Dialogue(d.id, [replace(u, features=dict(u.features.items())) for u in d.utterances])
        for d in conversations.dialogues
    ]
    return Conversations(dialogues, conversations.label_names, conversations.modalities)


def same(ours, theirs):
    for a, b in zip(ours.utterances(), theirs.utterances(), strict=True):
        assert a.id == b.id
        assert set(a.features) == set(b.features)
        assert all(torch.equal(a.features[m], b.features[m]) for m in b.features)


def test_features_are_those_of_the_files_and_are_read_when_they_are_looked_up(folder, source, reads):
    read = read_prepared(folder, "train")
    assert missing_counts(read) == missing_counts(source["train"])
    counts = [[u.num_tokens(m) for m in read.modalities] for u in read.utterances()]
    assert counts == [[u.num_tokens(m) for m in read.modalities] for u in source["train"].utterances()]
    chosen = read.select(["video", "text"]).subset([2, 0])
    assert not reads
    utterance = next(u for u in chosen.utterances() if "text" in u.features)
    assert not reads
    _ = utterance.features["text"], utterance.features["text"]
    assert len(reads) == 2  # nothing is kept
    same(chosen, source["train"].select(["video", "text"]).subset([2, 0]))
    same(read, source["train"])


def test_standardising_reads_nothing_and_gives_what_it_gives_in_memory(folder, source, reads):
    stored_split = read_prepared(folder, "train")
    standardizer = Standardizer.fit(stored_split)
    others = Standardizer.fit(source["train"])
    for modality in standardizer.mean:
        assert torch.equal(standardizer.mean[modality], others.mean[modality])
        assert torch.equal(standardizer.std[modality], others.std[modality])
    before = len(reads)
    applied = standardizer.apply(stored_split)
    assert len(reads) == before
    same(applied, others.apply(source["train"]))


@pytest.mark.parametrize("part", [1, 1000, 4_000_000])
def test_moments_do_not_depend_on_the_parts_they_are_merged_from(source, monkeypatch, part):
    monkeypatch.setattr(standardize_module, "PART", part)
    fitted = Standardizer.fit(source["train"])
    for modality in fitted.mean:
        tokens = [u.features[modality] for u in source["train"].utterances() if modality in u.features]
        tokens = torch.cat(tokens).double()
        torch.testing.assert_close(fitted.mean[modality], tokens.mean(0).float(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(fitted.std[modality], tokens.std(0, correction=0).float(), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_training_from_files_is_training_from_memory_to_the_last_bit(folder, tmp_path):
    settings = ["model.d_model=16", "model.num_heads=2", "model.man_layers=1", "train.epochs=2", "train.ema=0.9"]
    config = Config.load(None, ["data.dataset=prepared", f"data.path={folder}", *settings])
    from_files = load_splits(config.data, progress=False)
    from_memory = Splits(
        in_memory(from_files.train), in_memory(from_files.valid), in_memory(from_files.test), from_files.standardizer
    )
    for name, splits in (("files", from_files), ("memory", from_memory)):
        train_on(splits, config, tmp_path / name, progress=False)
    one, other = (load_file(tmp_path / name / "best" / "model.safetensors") for name in ("files", "memory"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_workers_make_the_same_batches(folder):
    data = read_prepared(folder, "train")
    loaders = []
    for workers in (0, 2):
        sampler = DialogueBatches([len(d) for d in data.dialogues], 2, shuffle=True, seed=1)
        sampler = MicroBatchSampler(sampler, 1, World(torch.device("cpu")))
        loaders.append(micro_batch_loader(data, sampler, workers))
    batches = list(zip(*loaders, strict=True))
    assert len(batches) == 4
    for one, other in batches:
        assert one.ids == other.ids
        assert all(torch.equal(one.tokens[m], other.tokens[m]) for m in data.modalities)


def test_a_thread_makes_the_same_batches_and_no_more_than_it_may_ahead():
    made = []

    def batches():
        for number in range(6):
            made.append(number)
            yield number

    for taken, number in enumerate(read_ahead(batches(), 2)):
        assert number == taken
        deadline = time.monotonic() + 5
        while len(made) < min(taken + 3, 6) and time.monotonic() < deadline:  # it does not wait to be asked
            time.sleep(0.001)
        time.sleep(0.01)
        assert made == list(range(min(taken + 3, 6)))


def test_what_a_thread_that_reads_ahead_raises_is_raised_where_the_batch_is_needed():
    def batches():
        yield 0
        raise FileNotFoundError("shard")

    ahead = read_ahead(batches(), 1)
    assert next(ahead) == 0
    with pytest.raises(FileNotFoundError, match="shard"):
        next(ahead)
    threads = threading.active_count()
    abandoned = read_ahead(iter(range(9)), 2)
    next(abandoned)
    abandoned.close()
    assert threading.active_count() == threads


def test_train_verifies_again_on_request(folder, tmp_path):
    settings = ["train.epochs=1", "model.d_model=8", "model.num_heads=1", "model.man_layers=1"]
    arguments = ["train", "--data", str(folder), *(part for setting in settings for part in ("--set", setting))]
    read_prepared(folder, "train")
    change(folder / "shards" / "train-000000.safetensors")
    assert CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "once")]).exit_code == 0
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "again"), "--verify"])
    assert "its content does not match the index" in str(result.exception)


def change(path, at=-1):
    """Changes one byte, size and time of change kept."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_hashes_are_compared_once_and_again_on_request(folder, monkeypatch):
    shard = folder / "shards" / "valid-000001.safetensors"
    change(shard)
    with pytest.raises(ValueError, match=r"valid-000001\.safetensors: its content does not match the index"):
        read_prepared(folder, "valid")
    change(shard)
    read_prepared(folder, "valid")
    assert set(json.loads((folder / "verified.json").read_text())) == {f"valid-{i:06d}.safetensors" for i in range(4)}
    change(shard)
    read_prepared(folder, "valid")  # size and time of change are what they were
    with pytest.raises(ValueError, match="does not match the index"):
        read_prepared(folder, "valid", verify=True)
    os.utime(shard)
    with pytest.raises(ValueError, match="does not match the index"):
        read_prepared(folder, "valid")
    change(shard)
    (folder / "verified.json").write_text("{")
    read_prepared(folder, "valid")


def test_a_file_that_ends_early_after_it_was_opened_is_an_error(folder):
    split = read_prepared(folder, "test")
    shard = folder / "shards" / "test-000000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"test-000000\.safetensors: expected \d+ bytes from \d+ on, got \d+"):
        collate(split.dialogues, split.modalities)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="test-000000"):
        next(split.utterances()).features["text"]


def test_places_are_those_of_the_library(tmp_path):
    tensors = {"a/text": torch.randn(3, 5), "b/text": torch.randn(0, 5), "c/audio": torch.randn(1, 2)}
    save_file(tensors, tmp_path / "a.safetensors", {"note": "x"})
    places = stored_tensors(tmp_path / "a.safetensors")
    assert places.keys() == tensors.keys()
    assert all(torch.equal(places[name].read(), tensors[name]) for name in tensors)
    doubled = replace(places["a/text"], transforms=(lambda x: x + 1, lambda x: x * 2))
    assert torch.equal(doubled.read(), (tensors["a/text"] + 1) * 2)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.zeros(2, 2, dtype=torch.float64)}, "tensor 'a': expected F32 with two dimensions, got F64"),
        ({"a": torch.zeros(2)}, r"tensor 'a': expected F32 with two dimensions, got F32 \[2\]"),
    ],
)
def test_other_tensors_are_refused(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message):
        stored_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("cut", [0, 4, 8, 30, 200])
def test_other_files_than_safetensors_are_refused(tmp_path, cut):
    save_file({"a": torch.zeros(20, 2)}, tmp_path / "a.safetensors")
    (tmp_path / "b").write_bytes((tmp_path / "a.safetensors").read_bytes()[:cut])
    with pytest.raises(ValueError, match="b: not a safetensors file of features"):
        stored_tensors(tmp_path / "b")


def test_numbers_that_are_not_finite_are_refused_when_they_are_read(tmp_path):
    save_file({"a": torch.tensor([[0.0, float("nan")]]), "b": torch.tensor([[3e38, 3e38]])}, tmp_path / "a.safetensors")
    places = stored.stored_tensors(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors: expected finite numbers from byte \d+ on"):
        places["a"].read()
    assert places["b"].read().isfinite().all()  # their sum overflows, they do not
