"""docs/paper.md: every row names a test that is there, and what it says of defaults and configurations is true."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from amuse.config import Config, LossConfig, ModelConfig, TrainConfig
from amuse.data import collate, synthetic_conversations
from amuse.data.load import load_splits
from amuse.data.spec import DataSpec
from amuse.model.amuse import Amuse
from amuse.model.focal import focal_loss
from amuse.training.losses import amuse_loss
from amuse.training.train import train_on

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "amuse" / "configs"
PAGE = (ROOT / "docs" / "paper.md").read_text()
ROWS = [
    line
    for line, above in zip(PAGE.splitlines()[1:], PAGE.splitlines(), strict=False)
    if line.startswith("| ") and above.startswith("|")
]
TEST = re.compile(r"`(tests/\w+\.py)::(test_\w+)`")
CONVERSATIONS = synthetic_conversations("train", num_dialogues=3)


def functions_of(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_row_names_a_test_that_is_there():
    assert len(ROWS) > 60
    for row in ROWS:
        named = TEST.findall(row.rsplit(" | ", 1)[1])
        assert named, f"no test in: {row}"
        for file, name in named:
            assert name in functions_of(ROOT / file), f"{file}::{name}"


def test_every_table_has_a_column_of_tests():
    heads = [line for line, below in zip(PAGE.splitlines(), PAGE.splitlines()[1:], strict=False) if below[:4] == "|---"]
    assert len(heads) == 5
    assert all(head.endswith("| test |") for head in heads)


def make_model(**options):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "num_heads": 2, "man_layers": 1, "dropout": 0.0}
    return Amuse(ModelConfig(**{**sizes, **options}), DataSpec(CONVERSATIONS.modalities, CONVERSATIONS.label_names))


def batch():
    return collate(CONVERSATIONS.dialogues, CONVERSATIONS.modalities)


def test_the_defaults_of_the_loss_are_as_stated():
    loss, model, train = LossConfig(), ModelConfig(), TrainConfig()
    assert (loss.final, loss.modality, loss.contrastive, loss.gamma) == (1.0, 1.0, 0.1, 1.0)
    assert (loss.class_weights, loss.label_smoothing) == (0.0, 0.0)
    assert (model.epsilon, model.fusion, model.gate_teacher) == (0.2, "learned", False)
    assert (model.man_score_map, model.man_lstm) == (False, False)
    assert (model.modality_dropout, model.modality_swap) == ({}, {})
    assert (train.mixup, train.flipped, train.ema) == (0.0, 0.0, 0.0)


def test_the_configurations_differ_from_the_recipe_as_stated():
    shipped = {path.stem: Config.load(path, ["data.path=DATA"]) for path in CONFIGS.glob("*.yaml")}
    assert [name for name, config in shipped.items() if config.model.gate_teacher] == ["iemocap"]
    paper = shipped["paper"]
    assert (paper.model.unimodal_lstm, paper.model.unimodal_layers >= 1, paper.model.man) == (True, True, True)
    assert (paper.model.man_layers, paper.model.man_gate, paper.model.head_merge) == (4, "mean", "mean")
    assert (paper.model.fusion, paper.model.temporal) == ("closed_form", "bilstm")
    assert (paper.loss.contrastive_kind, paper.loss.gamma) == ("nce", 1.0)
    assert (paper.loss.final, paper.loss.modality, paper.loss.contrastive) == (1.0, 1.0, 1.0)
    guards = {field.name: getattr(paper.train, field.name) for field in fields(paper.train)}
    assert (guards["mixup"], guards["ema"], guards["balance"]) == (0, 0, 0)


def test_the_papers_recipe_trains(tmp_path):
    small = ["data.num_dialogues=6", "train.epochs=1", "model.d_model=32"]
    config = Config.load(CONFIGS / "paper.yaml", small)
    splits = load_splits(config.data, progress=False)
    assert train_on(splits, config, tmp_path, progress=False).config.fusion == "closed_form"


def test_the_focal_loss_is_averaged_over_the_modalities_classifiers():
    made = batch()
    output = make_model()(made)
    config = LossConfig(gamma=1.5)
    expected = sum(focal_loss(output.modality_logits[:, m], made.labels, 1.5).mean() for m in range(3)) / 3
    torch.testing.assert_close(amuse_loss(output, made.labels, config)["modality"], expected)


@pytest.mark.parametrize("final", [0.0, 1.0])
def test_only_the_final_loss_trains_contexts_and_classifier(final):
    model, made = make_model(), batch()
    amuse_loss(model(made), made.labels, LossConfig(final=final))["loss"].backward()
    for part in (model.classifier, model.temporal):
        assert any(p.grad is not None and p.grad.any() for p in part.parameters()) == bool(final)
    assert all(p.grad.any() for head in model.heads for p in head.parameters())


def test_dropout_acts_in_training_only():
    for place in ("descriptors", "context"):
        model = make_model(dropout=0.5)
        first, second = (getattr(model.eval()(batch()), place) for _ in range(2))
        assert torch.equal(first, second)
        first, second = (getattr(model.train()(batch()), place) for _ in range(2))
        assert not torch.equal(first, second)
    never = make_model(dropout=0.0).train()
    assert torch.equal(never(batch()).context, never(batch()).context)
