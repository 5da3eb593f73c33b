"""Promises of the rivals: each is what its paper says, trains and loads like AMuSE, and is tuned on validation data."""

import csv
import dataclasses
from functools import reduce

import pytest
import torch

from amuse.config import Config, ModelConfig
from amuse.data import collate, synthetic_conversations
from amuse.data.conversation import Conversations
from amuse.data.load import Splits
from amuse.data.spec import DataSpec
from amuse.experiments.comparison import compare, spread
from amuse.experiments.rivals import RIVALS
from amuse.experiments.rivals.low_rank import RANK
from amuse.experiments.search import SPACE, draw, search
from amuse.training.optimization import centre_outputs
from amuse.training.train import train_on

CONVERSATIONS = synthetic_conversations("train", num_dialogues=4, seed=2, absent_rate=0.2)
SPEC = DataSpec(CONVERSATIONS.modalities, CONVERSATIONS.label_names)
SMALL = ModelConfig(d_model=16, num_heads=2, man_layers=1, dropout=0.0)
TINY = ["model.d_model=16", "model.num_heads=2", "model.man_layers=1", "train.epochs=1"]


def built(name):
    torch.manual_seed(0)
    return RIVALS[name](SMALL, SPEC).eval()


def batch_of(dialogues=CONVERSATIONS.dialogues):
    return collate(dialogues, CONVERSATIONS.modalities)


@pytest.mark.parametrize("name", RIVALS)
def test_outputs_have_amuses_shapes_and_every_weight_learns(name):
    model, batch = built(name), batch_of()
    output = model(batch)
    assert output.logits.shape == (len(batch), len(SPEC.label_names))
    assert output.modality_logits.shape == (len(batch), 3, len(SPEC.label_names))
    (output.logits.square().sum() + output.modality_logits.square().sum()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.numel() and p.grad is None]
    assert not without


@pytest.mark.parametrize("name", RIVALS)
def test_a_regression_starts_at_the_mean_of_its_training_labels(name):
    dialogues = synthetic_conversations("train", num_dialogues=4, seed=2).dialogues
    for dialogue in dialogues:
        for utterance in dialogue.utterances:
            utterance.label = 500.0
    numbers = Conversations(dialogues, None, CONVERSATIONS.modalities)
    torch.manual_seed(0)
    model = RIVALS[name](SMALL, DataSpec(numbers.modalities, None)).eval()
    centre_outputs(model, numbers)
    output = model(collate(numbers.dialogues, numbers.modalities))
    for predicted in (output.logits, output.modality_logits):
        assert (predicted - 500).abs().max() < 50


@pytest.mark.parametrize("name", RIVALS)
def test_every_modality_counts_and_one_may_be_absent(name):
    model = built(name)
    dialogue = synthetic_conversations("test", num_dialogues=1)[0]
    full = model(batch_of([dialogue])).logits[0]
    for modality in SPEC.modalities:
        changed = dataclasses.replace(
            dialogue.utterances[0],
            features={m: x + 3.0 if m == modality else x for m, x in dialogue.utterances[0].features.items()},
        )
        talk = dataclasses.replace(dialogue, utterances=[changed, *dialogue.utterances[1:]])
        assert (model(batch_of([talk])).logits[0] - full).abs().max() > 1e-5, modality
    logits = model(batch_of()).logits
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", RIVALS)
def test_dialogues_do_not_see_each_other(name):
    model = built(name)
    alone = torch.cat([model(batch_of([dialogue])).logits for dialogue in CONVERSATIONS.dialogues])
    torch.testing.assert_close(model(batch_of()).logits, alone, atol=1e-5, rtol=1e-5)


def test_tensor_fusion_is_the_outer_product():
    model = built("tensor fusion")
    f, present = torch.randn(5, 3, 16), torch.ones(5, 3, dtype=torch.bool)
    present[0, 1] = False
    fused, _ = model.fuse(f, present)
    for u in range(5):
        factors = [
            torch.cat([torch.ones(1), narrow(f[u, m]) if present[u, m] else torch.zeros(narrow.out_features)])
            for m, narrow in enumerate(model.narrow)
        ]
        expected = torch.einsum("a,b,c->abc", *factors).flatten()
        torch.testing.assert_close(fused[u], expected)


def test_low_rank_fusion_is_the_outer_product_times_a_weight_of_that_rank():
    model = built("low-rank fusion")
    f, present = torch.randn(5, 3, 16), torch.ones(5, 3, dtype=torch.bool)
    fused, _ = model.fuse(f, present)
    # W[a, b, c, k] = sum_r w_r W_0^r[a, k] W_1^r[b, k] W_2^r[c, k], the inputs extended by a 1 for the bias
    maps = [torch.cat([factor.weight.view(RANK, 16, 16), factor.bias.view(RANK, 16, 1)], 2) for factor in model.factors]
    weight = torch.einsum("r,rka,rkb,rkc->abck", model.weights, *maps)
    ones = torch.cat([f, torch.ones(5, 3, 1)], 2)
    expected = torch.einsum("ua,ub,uc,abck->uk", *ones.unbind(1), weight)
    torch.testing.assert_close(fused, expected, atol=1e-4, rtol=1e-4)


def test_late_fusion_averages_the_modalities_that_are_present():
    model, batch = built("late fusion"), batch_of()
    output = model(batch)
    parts = [
        classifier(temporal(output.descriptors[:, m], batch))
        for m, (temporal, classifier) in enumerate(zip(model.temporal, model.classifier, strict=True))
    ]
    for u in range(len(batch)):
        there = [parts[m][u] for m in range(3) if output.present[u, m]]
        torch.testing.assert_close(output.logits[u], reduce(torch.add, there) / len(there))


def test_early_fusion_reads_averages_of_features():
    model, batch = built("early fusion"), batch_of()
    before = model(batch).logits
    flipped = [
        dataclasses.replace(
            d,
            utterances=[
                dataclasses.replace(u, features={m: x.flip(0) for m, x in u.features.items()}) for u in d.utterances
            ],
        )
        for d in CONVERSATIONS.dialogues
    ]
    torch.testing.assert_close(model(batch_of(flipped)).logits, before, atol=1e-5, rtol=1e-5)


def test_speaker_states_are_recurrent_and_listeners_keep_theirs():
    states = built("DialogueRNN").temporal.forwards
    x, speaker = torch.randn(5, 48), torch.tensor([0, 1, 0, 1, 1])
    out = states(x, speaker)
    later = x.clone()
    later[3:] = 0
    torch.testing.assert_close(states(later, speaker)[:3], out[:3])
    nothing = torch.zeros(1, 16)
    world = states.world(torch.cat([x[:1], nothing], 1), nothing)
    party = states.party(torch.cat([x[:1], nothing], 1), nothing)
    torch.testing.assert_close(out[0], states.emotion(party, nothing)[0])
    # the second utterance is another speaker's: their state begins at 0, and there is one global state to attend to
    other = states.party(torch.cat([x[1:2], world], 1), nothing)
    torch.testing.assert_close(out[1], states.emotion(other, out[:1])[0])


@pytest.mark.parametrize("name", ["late fusion", "MulT"])
def test_a_rival_trains_and_loads_like_amuse(name, tmp_path):
    splits = Splits(*(synthetic_conversations(s, num_dialogues=4) for s in ("train", "valid", "test")), None)
    config = Config.load(None, TINY)
    model = train_on(splits, config, tmp_path, progress=False, kind=RIVALS[name])
    again = RIVALS[name].from_pretrained(tmp_path / "best")
    batch = collate(splits.test.dialogues, splits.test.modalities)
    torch.testing.assert_close(model.eval()(batch).logits, again(batch).logits)


def test_search_draws_the_same_trials_for_everyone_and_never_looks_at_the_test_split(tmp_path, monkeypatch):
    assert draw(0) == []
    assert draw(1) != draw(2)
    assert draw(2) == draw(2)
    assert {setting.split("=")[0] for setting in draw(1)} == set(SPACE)
    splits = Splits(*(synthetic_conversations(s, num_dialogues=4) for s in ("train", "valid", "test")), None)
    config = Config.load(None, TINY)
    seen = []
    scores = iter([0.3, 0.9, 0.5])

    def trained(part, settings, folder, **_):
        seen.append(settings)
        return settings

    monkeypatch.setattr("amuse.experiments.search.train_on", trained)
    monkeypatch.setattr("amuse.experiments.search.evaluate", lambda model, part, _: part)
    monkeypatch.setattr("amuse.experiments.search.score", lambda part: next(scores) if part is splits.valid else 1 / 0)
    best, model, trials = search("x", splits, config, tmp_path, 3)
    assert seen[0] == config
    assert best is seen[1] is model
    assert [trial.score for trial in trials] == [0.3, 0.9, 0.5]
    assert [trial.settings for trial in trials] == [draw(0), draw(1), draw(2)]


@pytest.mark.slow
def test_compare_with_a_rival_searches_for_everyone(tmp_path):
    table = compare(None, tmp_path, None, ["data.num_dialogues=4", *TINY], rivals=["tensor fusion"], trials=2, seeds=2)
    contenders = ["AMuSE, all modalities", "concatenation", "text alone", "audio alone", "video alone", "tensor fusion"]
    for name in contenders:
        row = next(line for line in table.splitlines() if line.startswith(name))
        assert row.count("±") == 2
    rows = list(csv.DictReader((tmp_path / "search.csv").open()))
    assert [row["contender"] for row in rows] == [name for name in contenders for _ in range(2)]
    assert {row["settings"] for row in rows} == {"", " ".join(draw(1))}


def test_spread_is_the_sample_deviation():
    assert spread([1.0]) == "1.00"
    assert spread([1.0, 2.0, 3.0]) == "2.00 ± 1.00"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rivals": ["MISA"]}, "rivals: expected names out of early fusion, .*, or all, got 'MISA'"),
        ({"trials": 0}, "trials: expected at least 1, got 0"),
        ({"seeds": 0}, "seeds: expected at least 1, got 0"),
    ],
)
def test_faulty_options_are_refused_before_anything_is_trained(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        compare(None, tmp_path, None, TINY, **options)
    assert not list(tmp_path.iterdir())
