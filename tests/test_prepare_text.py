"""`amuse data prepare --text`: words as shards, with the losses of words that training encodes."""

import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")
pytest.importorskip("transformers", reason="needs the extra: pip install amuse-kernels[text]")

from typer.testing import CliRunner

from amuse.cli.main import app
from amuse.config import Config
from amuse.data.load import load_splits, read_splits
from amuse.data.parquet import pull, push
from amuse.data.prepared import read_manifest, read_prepared
from amuse.encoders.stored import StoredTokens
from amuse.encoders.text import FrozenTextEncoder
from amuse.encoders.words import TextOptions
from amuse.files import LOG_FILE
from amuse.inference.recording import Recognizer
from amuse.inference.streaming import StreamingSession
from amuse.media.extract import Extractor, Options
from amuse.media.prepare import prepare
from amuse.media.sources import folder_source
from amuse.report.from_run import explain_run
from tests.media_files import write_talks
from tests.test_prepare import assert_same
from tests.tiny_encoders import write_tiny_text_encoder

SMALL = ["model.d_model=16", "model.num_heads=2", "model.man_layers=1", "train.epochs=2", "train.batch_size=2"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_tiny_text_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def words(encoder):
    return TextOptions(str(encoder), layers=(1, 2), context=2, speakers=True)


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    """Six conversations; an utterance has no words."""
    folder = write_talks(tmp_path_factory.mktemp("talks"), count=6, utterances=5)
    table = folder / "talk0.csv"
    table.write_text(table.read_text().replace("word 2", ""))
    return folder


@pytest.fixture(scope="module")
def prepared(talks, words, tmp_path_factory):
    """Shards of three utterances, so that a conversation is in several."""
    return make(talks, tmp_path_factory.mktemp("prepared"), words)


def make(talks, out, words, **how):
    options = Options(text=words)
    prepare(folder_source(talks), out, options, **{"shard_size": 3, "progress": False, **how})
    return out


def config(data, encoder, cache, *more):
    own = ["data.layers=[1,2]", "data.context=2", "data.speakers=true", f"data.cache_dir={cache}"]
    return Config.load(
        None, ["data.dataset=prepared", f"data.path={data}", f"data.encoder={encoder}", *own, *SMALL, *more]
    )


def entries(conversations):
    return [(u.id, u.entries.get("text")) for u in conversations.utterances()]


def test_words_in_shards_are_those_that_training_encodes_up_to_rounding(talks, prepared, encoder, tmp_path):
    apart = make(talks, tmp_path / "apart", None)
    ours = load_splits(config(prepared, encoder, tmp_path / "cache").data, progress=False)
    theirs = load_splits(config(apart, encoder, tmp_path / "cache").data, progress=False)
    assert list(ours.train.modalities) == list(theirs.train.modalities) == ["audio", "video", "text"]
    for split in ("train", "valid", "test"):
        for one, other in zip(getattr(ours, split).utterances(), getattr(theirs, split).utterances(), strict=True):
            assert one.features.keys() == other.features.keys()
            for modality in other.features:
                torch.testing.assert_close(one.features[modality], other.features[modality], atol=1e-5, rtol=1e-5)
    without = [
        name
        for split in read_manifest(prepared)["counts"]
        for name, x in entries(read_prepared(prepared, split))
        if x is None
    ]
    assert without == ["talk0_2"]


def test_training_reads_words_from_their_shards_and_encodes_nothing(prepared, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(FrozenTextEncoder, "encode", lambda *_: pytest.fail("words were encoded"))
    splits = load_splits(config(prepared, encoder, tmp_path / "cache").data, progress=False)
    stored = [entry for _, entry in entries(splits.train) if entry is not None]
    assert all(isinstance(entry, StoredTokens) and entry.path.parent == prepared / "shards" for entry in stored)
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_training_on_words_in_shards_has_the_losses_of_words_encoded_by_training(talks, encoder, tmp_path):
    amuse("data", "prepare", talks, "--out", tmp_path / "apart", "--no-faces")
    own = [part for key in ("layers=[1,2]", "context=2", "speakers=true") for part in ("--set", f"data.{key}")]
    amuse("data", "prepare", talks, "--out", tmp_path / "together", "--no-faces", "--text", encoder, *own)
    settings = [*SMALL, f"data.encoder={encoder}", f"data.cache_dir={tmp_path / 'cache'}"]
    settings = [*own, *(part for setting in settings for part in ("--set", setting))]
    losses = []
    for name in ("apart", "together"):
        amuse("train", "--data", tmp_path / name, "--out", tmp_path / f"run {name}", *settings)
        records = [json.loads(line) for line in (tmp_path / f"run {name}" / LOG_FILE).read_text().splitlines()]
        losses.append([record["train"]["loss"] for record in records])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def amuse(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_other_settings_than_those_of_the_shards_encode_the_words_again_and_say_so(prepared, encoder, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        splits = load_splits(config(prepared, encoder, tmp_path / "cache", "data.context=0").data, progress=False)
    assert "the prepared data have them with context = 2, the configuration says 0" in caplog.text
    stored = [entry for _, entry in entries(splits.train) if entry is not None]
    assert all(entry.path.parent == tmp_path / "cache" for entry in stored)


@pytest.mark.parametrize(
    "more", [[], ["data.folds=2", "data.fold_splits=[train,valid,test]", "data.valid_fraction=0.3"]]
)
def test_other_settings_are_logged_once_for_all_splits(prepared, encoder, tmp_path, caplog, monkeypatch, more):
    monkeypatch.setattr("amuse.data.load.add_text", lambda _, conversations, *__: conversations)
    read_splits(config(prepared, encoder, tmp_path, "data.context=0", *more).data, progress=False)
    assert ["the words are encoded again" in message for message in caplog.messages] == [True]


def test_an_encoder_that_is_trained_reads_the_words_themselves(prepared, encoder, tmp_path):
    splits = load_splits(config(prepared, encoder, tmp_path, "data.encoder_mode=finetune").data, progress=False)
    assert splits.train.modalities["text"] == 0
    assert splits.train[0].utterances[0].features["text"].dtype == torch.int64


def test_words_alone_are_prepared_too(talks, words, tmp_path):
    options = Options(audio=None, vision=None, text=words)
    prepare(folder_source(talks), tmp_path, options, progress=False)
    assert read_prepared(tmp_path, "train").modalities == {"text": 8}
    with pytest.raises(ValueError, match="audio, vision, text: expected at least one encoder, got none"):
        replace(options, text=None)


def test_changed_words_are_encoded_again_in_every_shard_that_reads_them(talks, words, tmp_path):
    raw = shutil.copytree(talks, tmp_path / "raw")
    out = make(raw, tmp_path / "out", words)
    before = {path.name: path.read_bytes() for path in (out / "shards").iterdir()}
    table = raw / "talk1.csv"
    table.write_text(table.read_text().replace("word 1", "word 3"))
    make(raw, out, words)
    changed = {path.name for path in (out / "shards").iterdir() if path.read_bytes() != before[path.name]}
    assert 0 < len(changed) < len(before)
    assert_same(out, make(raw, tmp_path / "fresh", words))


@pytest.mark.slow
def test_processes_that_share_the_work_make_the_same_bytes(talks, words, prepared, tmp_path):
    assert_same(make(talks, tmp_path, words, workers=2), prepared)


def test_folders_prepared_without_words_stay_as_they_are(talks, tmp_path, monkeypatch):
    out = make(talks, tmp_path, None)
    assert "text" not in read_manifest(out)["options"]
    monkeypatch.setattr("amuse.media.local.make_shard", lambda *_: pytest.fail("encoded again"))
    make(talks, out, None)


def test_words_are_encoded_on_the_device_that_is_named(words):
    extractor = Extractor(Options(text=words), "meta")
    assert extractor.encoders["text"]._frozen.model.network.device.type == "meta"


def test_words_are_pushed_and_pulled_with_the_rest(prepared, tmp_path):
    pytest.importorskip("pyarrow")
    push(prepared, str(tmp_path / "shared"))
    pull(str(tmp_path / "shared"), tmp_path / "back")
    for split in ("train", "valid", "test"):
        ours, theirs = (read_prepared(folder, split) for folder in (tmp_path / "back", prepared))
        assert ours.modalities == theirs.modalities
        for a, b in zip(ours.utterances(), theirs.utterances(), strict=True):
            assert a.text == b.text
            assert all(torch.equal(a.features[m], b.features[m]) for m in b.features)


def test_a_run_predicts_and_explains_with_the_weights_that_made_its_words(talks, words, tmp_path):
    encoder = shutil.copytree(words.encoder, tmp_path / "encoder")
    out = make(talks, tmp_path / "data", replace(words, encoder=str(encoder), pool=True))
    settings = [
        "data.pool=true",
        "data.layers=[1,2]",
        "data.context=2",
        "data.speakers=true",
        f"data.encoder={encoder}",
        *SMALL,
    ]
    settings = [part for setting in settings for part in ("--set", setting)]
    amuse("train", "--data", out, "--out", tmp_path / "run", *settings)
    assert Recognizer(tmp_path / "run").wanted == ["audio", "video"]
    torch.manual_seed(1)
    import transformers

    network = transformers.AutoModel.from_pretrained(encoder)
    transformers.BertModel(network.config).save_pretrained(encoder)
    for use in (Recognizer, StreamingSession.from_run, explain_run):
        with pytest.raises(ValueError, match=r"text: encoder .* has different weights here than where the data was pr"):
            use(tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "data.context=1"], "--set data.context=1: expected --text with it, which was not given"),
        (["--text", "minilm", "--set", "model.d_model=8"], "--set model.d_model=8: expected one of data.layers, data"),
        (["--text", "minilm", "--set", "data.context=-1"], "context: expected 0 or more, got -1"),
        (["--text", "nowhere"], "encoder: expected 'minilm' or a folder"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(talks, tmp_path, arguments, message):
    result = CliRunner().invoke(app, ["data", "prepare", str(talks), "--out", str(tmp_path / "out"), *arguments])
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()
