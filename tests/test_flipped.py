"""Promises of the selection of III-E2: utterances that fusion flips count more in the epoch that follows."""

import json
import re
from itertools import pairwise

import pytest
import torch

from amuse.config import Config, LossConfig
from amuse.data import collate, synthetic_conversations
from amuse.data.load import Splits, load_splits
from amuse.model.output import Output
from amuse.training import run as training_run
from amuse.training.augmentation import draw_mix
from amuse.training.losses import LossDenominators, amuse_loss
from amuse.training.train import train_on
from tests import paper_equations as paper
from tests.test_paper_equations import CONVERSATIONS as MADE
from tests.test_paper_equations import EPSILON, PRESENT, make_model

TINY = ["model.d_model=16", "model.num_heads=2", "model.man_layers=1", "data.num_dialogues=6", "train.batch_size=2"]
TINY += ["model.epsilon=0.02"]  # larger steps flip nearly every utterance


def test_an_utterance_is_flipped_where_the_mixed_descriptor_gets_another_class():
    model = make_model(fusion="closed_form")
    output, weights = model(collate(MADE.dialogues, MADE.modalities)), paper.double(model.state_dict())
    flipped = model.flipped(output.descriptors, output.present)
    for row, present in enumerate(PRESENT):
        f = output.descriptors[row].double()
        alpha = paper.closed_form(weights, f, present, EPSILON)
        expected = False
        for m in range(3):
            for n in range(3):
                if m != n and present[m] and present[n]:
                    mixed = alpha[m, n] * f[n] + (1 - alpha[m, n]) * f[m]
                    before, after = (paper.linear(weights, f"heads.{m}", x).argmax() for x in (f[m], mixed))
                    expected |= bool(before != after)
        assert bool(flipped[row]) == expected
    assert flipped.any()
    assert not flipped.all()


def test_an_utterance_of_weight_2_counts_as_if_it_were_there_twice():
    torch.manual_seed(0)
    rows = torch.tensor([0, 1, 1, 2, 3])
    present = torch.tensor([[True, True], [True, True], [True, False], [True, True]])
    labels, classes = torch.tensor([0, 1, 2, 1]), torch.tensor([1.0, 2.0, 0.5])
    logits, heads, f = torch.randn(4, 3), torch.randn(4, 2, 3), torch.randn(4, 2, 8)
    config = LossConfig(contrastive_kind="none")

    def parts(rows, **options):
        output = Output(logits[rows], heads[rows], f[rows], None, present[rows])
        return amuse_loss(output, labels[rows], config, classes, **options)

    once, twice = parts(torch.arange(4), utterance_weights=torch.tensor([1.0, 2.0, 1.0, 1.0])), parts(rows)
    for name in ("final", "modality", "loss"):
        torch.testing.assert_close(once[name], twice[name])


def test_weights_and_mixup_go_together():
    labels, weights = torch.tensor([0, 1, 2, 1]), torch.tensor([1.0, 3.0, 1.0, 2.0])
    present, logits = torch.ones(4, 1, dtype=torch.bool), torch.randn(4, 3)
    mix = draw_mix(labels, 0.4)
    output = Output(logits, logits[:, None], torch.randn(4, 1, 8), None, present)
    loss = amuse_loss(output, labels, LossConfig(gamma=0.0), mix=mix, utterance_weights=weights)["final"]
    cost = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    partner = torch.nn.functional.cross_entropy(logits, labels[mix.partner], reduction="none")
    own, others = mix.share * weights, (1 - mix.share) * weights[mix.partner]
    torch.testing.assert_close(loss, (own * cost + others * partner).sum() / (own + others).sum())
    totals = LossDenominators.of(labels, present, None, mix, None, weights)
    torch.testing.assert_close(totals.final, (own + others).sum())


def test_the_size_of_the_step_decides_how_many_are_flipped():
    batch = collate(MADE.dialogues, MADE.modalities)
    shares = []
    for epsilon in (0.0, 0.02, 1.0):
        model = make_model(fusion="closed_form", epsilon=epsilon)
        output = model(batch)
        shares.append(model.flipped(output.descriptors, output.present).float().mean())
    assert shares[0] == 0
    assert shares[0] < shares[1] < shares[2]


def test_an_epoch_weighs_what_the_epoch_before_flipped(tmp_path, monkeypatch):
    config = Config.load(None, [*TINY, "train.epochs=3", "train.flipped=2.0"])
    epochs, weighed = [], []

    def noted(output, labels, *args, **options):
        weights = options["utterance_weights"]
        weighed.append({name for (_, name), w in zip(options["batch"].ids, weights.tolist(), strict=True) if w == 3})
        assert set(weights.tolist()) <= {1.0, 3.0}
        return amuse_loss(output, labels, *args, **options)

    class Watched(training_run.Run):
        def run_epoch(self, progress):
            weighed.clear()
            before = set(self.history.flipped)
            losses = super().run_epoch(progress)
            epochs.append((before, set().union(*weighed), set(self.history.flipped)))
            return losses

    monkeypatch.setattr(training_run, "amuse_loss", noted)
    monkeypatch.setattr("amuse.training.train.Run", Watched)
    train_on(load_splits(config.data, progress=False), config, tmp_path, progress=False)
    assert epochs[0][0] == epochs[0][1] == set()
    for (_, _, found), (before, used, _) in pairwise(epochs):
        assert found
        assert found == before == used


def test_a_training_with_flips_resumes_to_the_same_bits(tmp_path):
    config = Config.load(None, [*TINY, "train.epochs=3", "train.flipped=1.0"])
    splits = load_splits(config.data, progress=False)
    train_on(splits, config, tmp_path / "whole", progress=False)

    class Killed(Exception):
        pass

    def interrupted(run, *args):
        if run.history.epoch == 1:
            raise Killed
        return original(run, *args)

    original = training_run.Run.run_epoch
    training_run.Run.run_epoch = interrupted
    try:
        with pytest.raises(Killed):
            train_on(splits, config, tmp_path / "parts", progress=False)
    finally:
        training_run.Run.run_epoch = original
    train_on(splits, config, tmp_path / "parts", resume=True, progress=False)
    losses = [
        [json.loads(line)["train"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]
    plain = Config.load(None, [*TINY, "train.epochs=3"])
    train_on(splits, plain, tmp_path / "plain", progress=False)
    unweighted = [json.loads(line)["train"] for line in (tmp_path / "plain" / "log.jsonl").read_text().splitlines()]
    assert unweighted[0] == losses[0][0]
    assert unweighted[1] != losses[0][1]


def test_regression_and_sharded_classifiers_are_refused(tmp_path):
    made = synthetic_conversations("train", num_dialogues=2)
    for utterance in made.utterances():
        utterance.label = float(utterance.label)
    made.label_names = None
    splits = Splits(made, made, made, None)
    message = "train.flipped: expected 0 for regression, which has no predicted class to flip"
    with pytest.raises(ValueError, match=re.escape(message)):
        train_on(splits, Config.load(None, [*TINY, "train.flipped=1"]), tmp_path)
    with pytest.raises(ValueError, match="flipped: reads the classifiers between steps, which strategy 'fsdp' shards"):
        Config.load(None, ["train.flipped=1", "train.strategy=fsdp"])
