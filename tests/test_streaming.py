"""Promises of real-time use: a pushed utterance gets the batch's prediction."""

import pytest
import torch

from amuse.config import Config, DataConfig, ModelConfig
from amuse.data import Dialogue, Utterance, collate, synthetic_conversations
from amuse.data.spec import DataSpec
from amuse.evaluation.load import load_run
from amuse.evaluation.predict import predict
from amuse.inference.rereading import open_session
from amuse.inference.streaming import StreamingSession
from amuse.model.amuse import Amuse
from amuse.training.train import train
from tests.batches import without

CONVERSATIONS = synthetic_conversations("test", num_dialogues=2, absent_rate=0.2, turns=(12, 14))


def causal_model(**options) -> Amuse:
    base = {"d_model": 16, "num_heads": 2, "man_layers": 1, "temporal": "attention", "causal": True}
    return Amuse(
        ModelConfig(**{**base, **options}), DataSpec(CONVERSATIONS.modalities, CONVERSATIONS.label_names)
    ).eval()


def batch_logits(model: Amuse, dialogue: Dialogue) -> torch.Tensor:
    with torch.inference_mode():
        return model(collate([dialogue], model.spec.modalities)).logits


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temporal_layers": 3},
        {"temporal_layers": 2, "context_window": 4},
        {"temporal": "none", "causal": False},
        {"fusion": "closed_form"},
    ],
)
def test_pushed_utterances_get_the_batchs_predictions(options):
    session = StreamingSession(model := causal_model(**options))
    for dialogue in CONVERSATIONS.dialogues:  # two conversations, so that a reset forgets
        expected = batch_logits(model, dialogue)
        for utterance, logits in zip(dialogue.utterances, expected, strict=True):
            torch.testing.assert_close(session.push(utterance).logits, logits, atol=1e-5, rtol=1e-5)
        session.reset()


def test_the_context_is_as_long_as_the_window_and_no_longer():
    model, dialogue = causal_model(context_window=3), CONVERSATIONS.dialogues[0]
    expected = batch_logits(model, dialogue)[-1]
    for dropped, same in ((len(dialogue) - 3, True), (len(dialogue) - 2, False)):
        batch = collate([dialogue], model.spec.modalities)
        for name in batch.tokens:  # what an utterance said no longer matters, but its place in the dialogue does
            batch = without(batch, name, slice(dropped))
        with torch.inference_mode():
            found = model(batch).logits[-1]
        assert torch.allclose(found, expected, atol=1e-6) == same


def test_the_cache_does_not_grow_beyond_the_window():
    session = StreamingSession(causal_model(context_window=4))
    for utterance in CONVERSATIONS.dialogues[0].utterances:
        session.push(utterance)
    assert session.layers[0].heads.shape[3] == 4


def test_a_new_conversation_takes_the_models_weights_as_they_are_then():
    model, dialogue = causal_model(), CONVERSATIONS.dialogues[0]
    session = StreamingSession(model)
    session.push(dialogue.utterances[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    session.reset()
    expected = batch_logits(model, dialogue)[0]
    torch.testing.assert_close(session.push(dialogue.utterances[0]).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"causal": False}, "looks into the future"),
        ({"temporal": "bilstm", "causal": False}, "looks into the future"),
        ({"fusion": "random"}, "draws new"),
    ],
)
def test_models_that_cannot_stream_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        StreamingSession(causal_model(**options))


@pytest.mark.parametrize("options", [{"temporal": "bilstm", "causal": False}, {"causal": False, "temporal_layers": 2}])
def test_a_model_that_looks_ahead_predicts_from_the_utterances_so_far(options):
    session = open_session(model := causal_model(**options), None, 1.0, None)
    for dialogue in CONVERSATIONS.dialogues:
        for count, utterance in enumerate(dialogue.utterances, 1):
            expected = batch_logits(model, Dialogue("d", dialogue.utterances[:count]))[-1]
            torch.testing.assert_close(session.push(utterance).logits, expected, atol=1e-5, rtol=1e-5)
        session.reset()


def test_of_an_endless_conversation_the_last_utterances_are_read(monkeypatch):
    monkeypatch.setattr("amuse.inference.rereading.MOST_UTTERANCES", 5)
    session = open_session(model := causal_model(temporal="bilstm", causal=False), None, 1.0, None)
    dialogue = CONVERSATIONS.dialogues[0]
    *_, last = [session.push(utterance) for utterance in dialogue.utterances]
    expected = batch_logits(model, Dialogue("d", dialogue.utterances[-5:]))[-1]
    torch.testing.assert_close(last.logits, expected, atol=1e-5, rtol=1e-5)


def test_a_causal_model_is_not_read_again():
    assert type(open_session(causal_model(), None, 1.0, None)) is StreamingSession


def test_a_saved_run_streams_with_its_standardizer_and_temperature(tmp_path):
    tiny = ["data.num_dialogues=24", "model.d_model=16", "model.num_heads=2", "model.man_layers=1", "train.epochs=1"]
    train(Config.load(None, [*tiny, "model.temporal=attention", "model.causal=true"]), tmp_path, progress=False)
    model, standardised, config = load_run(tmp_path, "test")
    expected = predict(model, standardised).logits
    session = StreamingSession.from_run(tmp_path)
    raw = synthetic_conversations("test", num_dialogues=12, seed=config.data.seed)
    first = [session.push(utterance) for utterance in raw.dialogues[0].utterances]
    torch.testing.assert_close(torch.stack([p.logits for p in first]), expected[: len(first)], atol=1e-5, rtol=1e-5)
    assert first[0].confidence == max(first[0].probabilities.values())
    assert session.temperature != 1.0


def test_words_without_a_sound_are_heard(monkeypatch):
    """Their features are those of the run's text encoder, with the context that it reads in training."""
    read = []

    class Reader:
        def __init__(self, config, device):
            self.config = config

        def newest(self, words):
            read.append([entry.text for entry in words])
            return torch.full((3, 24), float(len(words[-1].text)))

    monkeypatch.setattr("amuse.inference.streaming.WordReader", Reader)
    torch.manual_seed(0)
    config = ModelConfig(d_model=16, num_heads=2, man_layers=1, temporal="attention", causal=True)
    model = Amuse(config, DataSpec({"text": 24, "audio": 4}, ["calm", "angry"])).eval()
    data = DataConfig(dataset="prepared", path=".", context=1)
    session = StreamingSession(model, text=data)
    angry = session.push(Utterance("0", "Ann", {}, text="I hate you!")).logits
    session.reset()
    happy = session.push(Utterance("0", "Ann", {}, text="I am so very happy!")).logits
    assert not torch.equal(angry, happy)
    session.push(Utterance("1", "Bob", {"audio": torch.ones(2, 4)}, text="Me too."))
    session.push(Utterance("2", "Ann", {}, text="Good."))
    assert read == [["I hate you!"], ["I am so very happy!"], ["I am so very happy!", "Me too."], ["Me too.", "Good."]]
    with pytest.raises(ValueError, match="expected features of some of text, audio, got none"):
        session.push(Utterance("3", "Ann", {}))
    with pytest.raises(ValueError, match="got none; this session cannot encode words"):
        StreamingSession(model).push(Utterance("0", "Ann", {}, text="I hate you!"))
