"""Promises of prepared data at a URL: the bits of the folder on disk, whole shards in a bounded cache, checked."""

import builtins
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from amuse.cli.main import app
from amuse.config import SPLITS, Config
from amuse.data import collate
from amuse.data.load import guess_dataset, load_splits
from amuse.data.prepared import default_cache, read_manifest, read_prepared, shard_block
from amuse.encoders.stored import stored_tensors
from amuse.files import LOG_FILE
from amuse.remote import FileCache, RemoteFile, read_url
from amuse.training.shuffling import Shuffling, draw_batches
from amuse.world import World
from tests.prepared_folder import seven_dialogues, write_prepared

SMALL = ["model.d_model=8", "model.num_heads=1", "model.man_layers=1", "train.epochs=2", "train.batch_size=2"]


@pytest.fixture(scope="module")
def source():
    return seven_dialogues()


@pytest.fixture
def folder(source, tmp_path):
    return write_prepared(tmp_path / "data", source)


@pytest.fixture
def store():
    """fsspec's file system in this process's memory, empty before and after."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield memory
    memory.store.clear()


@pytest.fixture
def url(folder, store):
    for path in folder.rglob("*.*"):
        store.pipe_file(f"/bucket/data/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return "memory://bucket/data"


@pytest.fixture
def cache(tmp_path):
    return FileCache(tmp_path / "cache", 1 << 30)


@pytest.fixture
def fetched(monkeypatch, store):
    """The files that are fetched whole while a test runs."""
    seen, get_file = [], type(store).get_file

    def counted(self, path, *args, **kwargs):
        seen.append(path.rpartition("/")[2])
        return get_file(self, path, *args, **kwargs)

    monkeypatch.setattr(type(store), "get_file", counted)
    return seen


def everything(conversations):
    return [(u.id, {m: u.features[m] for m in u.features}) for u in conversations.utterances()]


def assert_same(ours, theirs):
    for (name, features), (other_name, others) in zip(everything(ours), everything(theirs), strict=True):
        assert name == other_name
        assert features.keys() == others.keys()
        assert all(torch.equal(features[m], others[m]) for m in others)


def test_a_url_gives_the_features_of_the_folder(url, folder, cache):
    for split in SPLITS:
        assert_same(read_prepared(url, split, cache=cache), read_prepared(folder, split))
    assert read_manifest(url) == read_manifest(folder)
    assert read_manifest(f"{url}/") == read_manifest(folder)


def test_a_shard_is_fetched_whole_when_it_is_read_and_once(url, cache, fetched):
    split = read_prepared(url, "train", cache=cache)
    assert not fetched
    collate(split.dialogues[:2], split.modalities)
    assert fetched == ["train-000000.safetensors"]
    everything(split)
    everything(read_prepared(url, "train", cache=cache))
    assert sorted(fetched) == [f"train-{i:06d}.safetensors" for i in range(4)]


@pytest.mark.slow
def test_two_processes_of_a_host_fetch_every_shard_once(folder, tmp_path):
    context = multiprocessing.get_context("spawn")
    log, start = tmp_path / "fetched", context.Barrier(2)
    arguments = f"file://{folder}", tmp_path / "cache", log, start
    processes = [context.Process(target=read_and_note, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(log.read_text().split()) == [f"train-{i:06d}.safetensors" for i in range(4)]


def read_and_note(url, cache, log, start):
    """Reads the training split at the same time as the other process; every fetch takes a while and is noted."""
    from fsspec.implementations.local import LocalFileSystem

    get_file = LocalFileSystem.get_file

    def noted(self, path, *args, **kwargs):
        with log.open("a") as file:
            file.write(f"{Path(path).name}\n")
        time.sleep(0.1)
        return get_file(self, path, *args, **kwargs)

    LocalFileSystem.get_file = noted
    split = read_prepared(url, "train", cache=FileCache(cache, 1 << 30))
    start.wait()
    everything(split)


def test_a_header_longer_than_the_first_bytes_is_read_whole(url, folder, cache, monkeypatch):
    monkeypatch.setattr("amuse.remote.HEAD", 20)
    assert_same(read_prepared(url, "train", cache=cache), read_prepared(folder, "train"))


def test_the_cache_keeps_to_its_limit_and_drops_what_was_not_used_for_longest(url, folder, tmp_path, fetched):
    sizes = [path.stat().st_size for path in sorted((folder / "shards").glob("train-*"))]
    cache = FileCache(tmp_path / "cache", sum(sorted(sizes)[-2:]))
    split = read_prepared(url, "train", cache=cache)
    first, second, third = (next(iter(split.dialogues[i].utterances[0].entries.values())) for i in (0, 2, 4))

    for tokens, when in ((first, 1), (second, 2)):  # long ago
        tokens.read()
        os.utime(cache.copy_of(tokens.path), ns=(when, when))
    first.read()
    third.read()
    assert not cache.copy_of(second.path).exists()
    fetched.clear()
    first.read()
    assert not fetched
    everything(split)
    assert sum(path.stat().st_size for path in cache.folder.iterdir() if path.name[0] != ".") <= cache.limit
    assert_same(split, read_prepared(folder, "train"))


def test_a_file_larger_than_the_cache_is_read(url, folder, tmp_path):
    ours, theirs = (read_prepared(url, "test", cache=FileCache(tmp_path / "cache", 1)), read_prepared(folder, "test"))
    assert_same(ours.subset([1, 5]), theirs.subset([1, 5]))


def test_a_copy_that_another_process_removes_is_fetched_again(url, folder, cache):
    split = read_prepared(url, "test", cache=cache)
    everything(split)
    shutil.rmtree(cache.folder)
    assert_same(split, read_prepared(folder, "test"))


def test_a_shard_whose_content_was_changed_is_an_error_and_leaves_no_copy(url, store, cache):
    path = "/bucket/data/shards/valid-000001.safetensors"
    content = bytearray(store.cat_file(path))
    content[-1] ^= 1
    store.pipe_file(path, bytes(content))
    split = read_prepared(url, "valid", cache=cache)
    with pytest.raises(
        ValueError, match=r"memory://bucket/data/shards/valid-000001\.safetensors: its content does not"
    ):
        everything(split)
    first = json.loads(store.cat_file("/bucket/data/index.json"))["splits"]["valid"]["shards"][0]
    assert [path.name for path in cache.folder.iterdir() if path.name[0] != "."] == [first["sha256"]]


def test_verify_fetches_and_compares_again(url, cache, fetched):
    everything(read_prepared(url, "valid", cache=cache))
    everything(read_prepared(url, "valid", cache=cache, verify=True))
    assert sorted(fetched) == sorted(2 * [f"valid-{i:06d}.safetensors" for i in range(4)])


def test_what_is_missing_is_named(url, store, cache):
    store.rm("/bucket/data/shards/valid-000001.safetensors")
    with pytest.raises(FileNotFoundError, match=r"memory://bucket/data/shards/valid-000001\.safetensors: no such file"):
        read_prepared(url, "valid", cache=cache)
    with pytest.raises(FileNotFoundError, match=r"memory://bucket/other/index\.json: no such file; expected a folder"):
        read_prepared("memory://bucket/other", "valid", cache=cache)
    with pytest.raises(ValueError, match=r"expected one of its splits"):
        read_prepared(url, "dev", cache=cache)
    store.pipe_file("/bucket/data/index.json", b"{")
    with pytest.raises(ValueError, match=r"memory://bucket/data/index\.json: not a complete JSON file"):
        read_prepared(url, "valid", cache=cache)


def test_a_damaged_header_is_an_error(store, cache):
    for content in (b"", b"abc", (1 << 60).to_bytes(8, "little"), (2).to_bytes(8, "little") + b"[]"):
        store.pipe_file("/bucket/a", content)
        with pytest.raises(ValueError, match="memory://bucket/a: not a safetensors file of features"):
            stored_tensors(RemoteFile("memory://bucket/a", "0", cache))


def test_a_missing_driver_or_an_unknown_kind_of_url_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"tape://a/index\.json: expected a URL that fsspec opens"):
        read_prepared("tape://a", "train")
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("s3fs"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"s3://bucket/index\.json: Install s3fs"):
        read_prepared("s3://bucket", "train")
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    with pytest.raises(ImportError, match="needs fsspec"):
        read_url("memory://bucket/a")


def test_only_prepared_data_are_read_from_a_url():
    assert guess_dataset("s3://bucket/data") == "prepared"
    with pytest.raises(ValueError, match=r"data\.path: expected a folder for the data set 'meld', got the URL s3://b"):
        load_splits(Config.load(None, ["data.dataset=meld", "data.path=s3://b"]).data)


def test_shuffling_is_by_shards_where_they_are_remote_unless_it_is_chosen(url, folder, cache):
    remote, local = (read_prepared(place, "train", cache=cache) for place in (url, folder))
    assert shard_block(remote) == 2  # 7 dialogues in 4 shards
    assert shard_block(local) == 0
    chosen = {None: 2, 0: 0, 3: 3}
    for block, expected in chosen.items():
        value = "null" if block is None else block
        assert shuffling(remote, f"train.shuffle_block={value}") == Shuffling(expected, expected > 0)
    assert shuffling(remote, "train.balance=1") == shuffling(local) == Shuffling(0, False)
    assert shuffling(local, "train.shuffle_block=2") == Shuffling(2, False)
    assert shuffling(local, "train.shuffle_block=2", "train.own_blocks=true") == Shuffling(2, True)
    assert shuffling(remote, "train.own_blocks=false") == Shuffling(2, False)
    with pytest.raises(ValueError, match=r"own_blocks: expected train\.shuffle_block above 0 with it, got 0"):
        shuffling(local, "train.own_blocks=true")


def shuffling(conversations, *settings, processes=1):
    return Shuffling.of(conversations, Config.load(None, settings).train, World(torch.device("cpu"), size=processes))


def test_processes_at_a_url_share_all_blocks_where_they_cannot_have_their_own_unless_told_to(url, cache, caplog):
    remote = read_prepared(url, "train", cache=cache)
    assert shuffling(remote, "train.batch_size=6", processes=3) == Shuffling(2, True)
    assert not caplog.messages
    for problem, processes in (("train.batch_size: expected a multiple of the 3", 3), ("for each of 8 processes", 8)):
        assert shuffling(remote, "train.batch_size=32", processes=processes) == Shuffling(2, False)
        (message,) = caplog.messages
        assert problem in message
        caplog.clear()
        config = Config.load(None, ["train.batch_size=32", "train.own_blocks=true"]).train
        world = World(torch.device("cpu"), size=processes)
        with pytest.raises(ValueError, match=problem):
            draw_batches(remote, config, Shuffling.of(remote, config, world), world)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_training_from_a_url_has_the_losses_of_the_folder_to_the_last_bit(url, folder, tmp_path, workers):
    size = max(path.stat().st_size for path in folder.glob("shards/*"))
    cache = [f"data.shard_cache_gib={2 * size / 2**30}", f"data.cache_dir={tmp_path / 'cache'}"]
    common = [*SMALL, *cache, f"train.workers={workers}"]
    settings = [part for setting in common for part in ("--set", setting)]
    runs = {"url": (url, []), "disk": (str(folder), ["--set", "train.shuffle_block=2"])}
    for name, (data, own) in runs.items():
        result = CliRunner().invoke(app, ["train", "--data", data, "--out", str(tmp_path / name), *settings, *own])
        assert result.exit_code == 0, result.exception
    one, other = (load_file(tmp_path / name / "best" / "model.safetensors") for name in runs)
    assert all(torch.equal(one[key], other[key]) for key in one)
    one, other = (losses(tmp_path / name) for name in runs)
    assert one == other


def losses(run: Path) -> list:
    records = [json.loads(line) for line in (run / LOG_FILE).read_text().splitlines()]
    return [(record["train"], record["valid"]) for record in records]


def test_the_default_cache_is_in_the_users_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("AMUSE_CACHE", str(tmp_path))
    assert default_cache() == FileCache(tmp_path / "shards", 8 << 30)
    assert default_cache(tmp_path / "own", 0.5) == FileCache(tmp_path / "own" / "shards", 1 << 29)
