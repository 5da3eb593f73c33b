"""Promises of the model: what the authors' public code got wrong, absent modalities, every ablation, checkpoints."""

import json
import pickle
import resource
from dataclasses import replace

import pytest
import torch

from amuse.config import ModelConfig
from amuse.data import Dialogue, collate, synthetic_conversations
from amuse.data.spec import DataSpec
from amuse.model.amuse import MODEL_CONFIG_FILE, WEIGHTS_FILE, Amuse
from amuse.training.augmentation import augment
from tests.batches import repadded

CONVERSATIONS = synthetic_conversations("train", num_dialogues=4, seed=0, absent_rate=0.2)


def make_model(**options) -> Amuse:
    torch.manual_seed(0)
    spec = DataSpec(CONVERSATIONS.modalities, options.pop("label_names", CONVERSATIONS.label_names))
    config = ModelConfig(**{"d_model": 16, "num_heads": 2, "man_layers": 2, "head_merge": "concat", **options})
    return Amuse(config, spec).eval()


def make_batch(dialogues=CONVERSATIONS.dialogues):
    return collate(dialogues, CONVERSATIONS.modalities)


ABLATIONS = {
    "as in the paper": {"head_merge": "mean"},
    "closed form": {"fusion": "closed_form"},
    "chain": {"fusion": "chain"},
    "equal alpha (Test-2)": {"fusion": "equal"},
    "random alpha (Test-1)": {"fusion": "random"},
    "MAN + concatenation": {"fusion": "concat"},
    "unimodal + concatenation": {"man": False, "fusion": "concat"},
    "context by attention": {"temporal": "attention", "temporal_layers": 2},
    "causal": {"temporal": "attention", "causal": True},
    "no context": {"temporal": "none"},
    "no Bi-LSTM": {"unimodal_lstm": False, "unimodal_layers": 2},
    "linear map around the scores": {"man_score_map": True},
    "Bi-LSTM before fusion": {"man_lstm": True},
    "learned gates": {"man_gate": "learned"},
    "input gates": {"man_gate": "input"},
    "one softmax over all sources": {"man_normalization": "joint"},
    "no layer norms of descriptors": {"descriptor_norm": False},
}


@pytest.fixture(params=ABLATIONS)
def model(request) -> Amuse:
    return make_model(**ABLATIONS[request.param])


def test_one_dialogues_output_never_depends_on_which_others_share_its_batch(model):
    if model.config.fusion == "random":
        model.config.fusion = "equal"  # coefficients are drawn again in each call
    together = model(make_batch())
    for index, dialogue in enumerate(CONVERSATIONS.dialogues):
        rows = make_batch().dialogue == index
        alone = model(make_batch([dialogue]))
        torch.testing.assert_close(alone.logits, together.logits[rows], atol=1e-5, rtol=1e-5)


def test_nothing_at_initialisation_is_nan_or_huge(model):
    output = model(make_batch())
    for name in ("logits", "modality_logits", "descriptors"):
        values = getattr(output, name)
        assert values.isfinite().all()
        assert values.abs().max() < 20, name
    assert all(p.abs().max() < 10 for p in model.parameters() if p.numel())


def test_every_parameter_learns(model):
    model.train()
    output = model(make_batch())
    loss = output.logits.square().sum() + output.modality_logits.square().sum()
    loss.backward()
    idle = [name for name, p in model.named_parameters() if p.numel() and (p.grad is None or not p.grad.any())]
    assert not idle


def test_values_of_an_absent_modality_never_matter(model):
    batch, dirty = make_batch(), repadded(make_batch(), float("nan"))
    torch.manual_seed(1)
    expected = model(batch)
    torch.manual_seed(1)
    output = model(dirty)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.descriptors, expected.descriptors)
    assert (output.descriptors[~output.present] == 0).all()


@pytest.mark.parametrize("fusion", ["learned", "closed_form", "equal", "random"])
def test_coefficients_lie_between_0_and_1_and_differ_between_instances(fusion):
    output = make_model(fusion=fusion)(make_batch())
    assert ((output.alpha >= 0) & (output.alpha <= 1)).all()
    if fusion != "equal":
        whole = output.present.all(-1)
        assert output.alpha[whole].flatten(1).std(0).max() > 1e-3


def test_no_label_is_needed_or_looked_at():
    model = make_model(fusion="closed_form")
    labelled, unlabelled = make_batch(), make_batch()
    unlabelled.labels = None
    with torch.inference_mode():
        assert torch.equal(model(labelled).logits, model(unlabelled).logits)


@pytest.mark.parametrize("temporal", ["bilstm", "attention"])
def test_the_speaker_context_reacts_to_who_speaks(temporal):
    model = make_model(temporal=temporal)
    lone = [Dialogue(d.id, [replace(u, speaker="Ada") for u in d.utterances]) for d in CONVERSATIONS.dialogues]
    batch, other = make_batch(), make_batch(lone)
    assert (model(batch).logits - model(other).logits).abs().max() > 1e-4


def test_the_speaker_context_carries_the_speakers_words():
    model = make_model()
    batch, changed = make_batch(), make_batch()
    changed.tokens["text"][: changed.layouts["text"].lengths[0]] += 1.0
    before, after = model.temporal.speaker_lstm, []
    before.register_forward_hook(lambda *call: after.append(call[2]))
    model(batch)
    model(changed)
    assert (after[0] - after[1]).abs().max() > 1e-4


def test_a_causal_model_does_not_see_the_future():
    model = make_model(temporal="attention", causal=True)
    dialogue = CONVERSATIONS.dialogues[0]
    whole = model(make_batch([dialogue])).logits
    for length in (1, 3):
        part = model(make_batch([Dialogue(dialogue.id, dialogue.utterances[:length])])).logits
        torch.testing.assert_close(part, whole[:length], atol=1e-5, rtol=1e-5)


def test_other_modalities_reach_a_modalitys_descriptor_only_through_the_man():
    batch, changed = make_batch(), make_batch()
    changed.tokens["audio"] += 1.0
    for man, reacts in ((True, True), (False, False)):
        model = make_model(man=man)
        a, b = model(batch).descriptors[:, 0], model(changed).descriptors[:, 0]
        assert ((a - b).abs().max() > 1e-5) == reacts


@pytest.mark.parametrize("modalities", [["text"], ["text", "audio"]])
def test_any_number_of_modalities(modalities):
    part = CONVERSATIONS.select(modalities)
    spec = DataSpec(part.modalities, part.label_names)
    output = Amuse(ModelConfig(d_model=16, num_heads=2), spec).eval()(collate(part.dialogues, part.modalities))
    assert output.logits.isfinite().all()
    assert output.descriptors.shape[1] == len(modalities)


def test_eight_modalities():
    widths = {f"m{i}": 4 for i in range(8)}
    config = ModelConfig(d_model=16, num_heads=2, man_layers=1)
    batch = make_batch()
    tokens = {name: torch.randn(3 * len(batch), 4) for name in widths}
    batch = batch.with_tokens(tokens, {name: torch.full((len(batch),), 3) for name in widths})
    assert Amuse(config, DataSpec(widths, ["a", "b"])).eval()(batch).logits.isfinite().all()


def test_modality_dropout_never_takes_the_last_modality():
    model = make_model(modality_dropout=dict.fromkeys(CONVERSATIONS.modalities, 0.9))
    batch = make_batch()
    output = model(augment(batch, model.config, model.groups))
    assert output.present.any(-1).all()
    assert output.present.sum() < model(batch).present.sum()


def test_save_and_load_give_the_same_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = Amuse.from_pretrained(tmp_path)
    assert loaded.config == model.config
    torch.manual_seed(2)
    expected = model(make_batch()).logits
    torch.manual_seed(2)
    assert torch.equal(loaded(make_batch()).logits, expected)


def _truncate(folder):
    file = folder / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


class _Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was run')",))


def _edit_config(folder, **changes):
    file = folder / MODEL_CONFIG_FILE
    tree = json.loads(file.read_text())
    tree["model"].update(changes)
    file.write_text(json.dumps(tree))


DAMAGE = {
    "truncated": (_truncate, ValueError, "not a complete safetensors file"),
    "empty": (lambda f: (f / WEIGHTS_FILE).write_bytes(b""), ValueError, "not a complete safetensors file"),
    "pickle": (lambda f: (f / WEIGHTS_FILE).write_bytes(pickle.dumps(_Malicious())), ValueError, "safetensors"),
    "missing": (lambda f: (f / WEIGHTS_FILE).unlink(), FileNotFoundError, WEIGHTS_FILE),
    "other size": (lambda f: _edit_config(f, d_model=32), ValueError, "do not fit"),
    "unknown key": (lambda f: _edit_config(f, colour="red"), ValueError, "colour"),
    "not json": (lambda f: (f / MODEL_CONFIG_FILE).write_text("{"), ValueError, "not a complete JSON file"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_never_run(name, tmp_path):
    make_model().save_pretrained(tmp_path)
    damage, error, message = DAMAGE[name]
    damage(tmp_path)
    with pytest.raises(error, match=message):
        Amuse.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 16 * 10**11}, "expected integers up to"),
        ({"d_model": 16 * 10**4}, "expected at most"),
        ({"man_layers": 10**7}, "expected at most"),
        ({"temporal_layers": 10**7}, "expected at most"),
    ],
)
def test_a_configuration_far_larger_than_its_weights_is_refused_before_memory_is_taken(changes, message, tmp_path):
    make_model().save_pretrained(tmp_path)
    _edit_config(tmp_path, **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=f"{MODEL_CONFIG_FILE}: not a model configuration.*{message}"):
        Amuse.from_pretrained(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def test_an_encoder_far_larger_than_its_weights_is_refused(tmp_path):
    pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    bert = {"model_type": "bert", "vocab_size": 50, **sizes}
    spec = DataSpec({"text": 0}, ["a", "b"], text_encoder="minilm")
    Amuse(ModelConfig(d_model=16, num_heads=2), spec, {"text": bert}).save_pretrained(tmp_path)
    Amuse.from_pretrained(tmp_path)
    file = tmp_path / MODEL_CONFIG_FILE
    sound = json.loads(file.read_text())
    for changes in ({"vocab_size": 10**7}, {"num_hidden_layers": 10**7}, {"num_labels": 10**9}):
        file.write_text(json.dumps(sound | {"encoder_configs": {"text": bert | changes}}))
        with pytest.raises(ValueError, match=r"not a model configuration.*for such weights"):
            Amuse.from_pretrained(tmp_path)


def test_regression():
    model = Amuse(ModelConfig(d_model=16, num_heads=2, man_layers=1), DataSpec(CONVERSATIONS.modalities))
    assert model.eval()(make_batch()).logits.shape == (len(make_batch()), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 20}, "d_model: expected a multiple of 8"),
        ({"fusion": "sum"}, "fusion: expected one of .*'sum'"),
        ({"causal": True}, "causal: a Bi-LSTM sees the future"),
        ({"man_score_map": True, "man_gate": "learned"}, "man_score_map: needs man_gate 'mean', got 'learned'"),
        ({"man_score_map": True, "d_model": 512}, "man_score_map: needs d_model up to 256, got 512"),
        ({"dropout": 1.0}, r"dropout: expected a number in \[0, 1\)"),
        ({"label_names": None, "fusion": "closed_form"}, "needs classes"),
    ],
)
def test_bad_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_model(**options)
