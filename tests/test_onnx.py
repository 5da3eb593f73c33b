"""AMuSE as an ONNX graph: the ops decompose, and ONNX Runtime gives the model's outputs."""

import importlib.util

import pytest
import torch
from torch import nn

pytest.importorskip("onnx", reason="needs the extra: pip install amuse-kernels[onnx]")
pytest.importorskip("onnxscript", reason="needs the extra: pip install amuse-kernels[onnx]")
pytest.importorskip("onnxruntime", reason="needs the extra: pip install amuse-kernels[onnx]")

import onnx
import onnxruntime

import amuse_kernels
from amuse.config import ModelConfig
from amuse.data import Standardizer, collate, synthetic_conversations
from amuse.data.conversation import Conversations, Dialogue
from amuse.data.spec import DataSpec
from amuse.model.amuse import Amuse
from amuse.onnx import OnnxInputs, check_onnx, export_onnx
from amuse.onnx.padded import PaddedAmuse
from amuse_kernels.decompositions import DECOMPOSITIONS

SMALL = {"d_model": 16, "num_heads": 2, "man_layers": 1, "unimodal_layers": 1}
TEMPERATURE = 1.5


@pytest.fixture(scope="module")
def conversations():
    """Dialogues of different lengths, one of a single utterance; some utterances lack a modality."""
    made = synthetic_conversations("train", num_dialogues=5, seed=0)
    for number, utterance in enumerate(made.utterances()):
        if number % 3 == 0:
            del utterance.features["audio"]
        if number % 4 == 0:
            del utterance.features["video"]
    dialogues = [*made.dialogues[:-1], Dialogue("short", made.dialogues[-1].utterances[1:2])]
    return Conversations(dialogues, made.label_names, made.modalities)


def network(conversations, **options):
    torch.manual_seed(0)
    spec = DataSpec(conversations.modalities, conversations.label_names)
    return Amuse(ModelConfig(**{**SMALL, **options}), spec).eval()


def padded(dialogues, modalities):
    """`OnnxInputs` of dialogues, padded here by hand; what is in the padding does not matter."""
    longest = max(len(dialogue) for dialogue in dialogues)
    shape = len(dialogues), longest
    features, masks = {}, {}
    for name, width in modalities.items():
        tokens = max(len(u.features[name]) for d in dialogues for u in d.utterances if name in u.features)
        features[name] = torch.full((*shape, tokens, width), 1e3)
        masks[name] = torch.zeros(*shape, tokens, dtype=torch.bool)
    utterances, speakers = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.int64)
    for d, dialogue in enumerate(dialogues):
        names = list(dict.fromkeys(u.speaker for u in dialogue.utterances))
        for u, utterance in enumerate(dialogue.utterances):
            utterances[d, u], speakers[d, u] = True, names.index(utterance.speaker)
            for name, x in utterance.features.items():
                features[name][d, u, : len(x)], masks[name][d, u, : len(x)] = x, True
    return OnnxInputs(features, masks, utterances, speakers)


def assert_runs_as_the_model(model, conversations, file):
    standardizer = Standardizer.fit(conversations)
    export_onnx(model, file, standardizer, TEMPERATURE)
    session = onnxruntime.InferenceSession(file)
    whole = conversations.dialogues
    for dialogues in (whole, whole[:1], whole[-1:]):
        part = Conversations(dialogues, conversations.label_names, conversations.modalities)
        with torch.no_grad():
            expected = model(collate(standardizer.apply(part).dialogues, conversations.modalities))
        inputs = padded(dialogues, conversations.modalities)
        found = session.run(["logits", "probabilities", "modality_logits"], inputs.named())
        logits, probabilities, own = (torch.from_numpy(x)[inputs.utterances] for x in found)
        torch.testing.assert_close(logits, expected.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(probabilities, (expected.logits / TEMPERATURE).softmax(-1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own, expected.modality_logits, rtol=1e-4, atol=1e-5)


class Ops(nn.Module):
    """Every op once, as a model calls it, without a word about backends."""

    def forward(self, x, mask, descriptors, alpha):
        attended = amuse_kernels.p2c_attention(x, [x, x], [x, x], key_masks=[mask, None], causal=[False, True])
        fused, _ = amuse_kernels.adaptive_fusion(descriptors, alpha)
        a, b, c = descriptors.unbind(1)
        return attended, fused, amuse_kernels.interpolation_coefficients(a, b, c, 0.2)


class PackedOp(nn.Module):
    def forward(self, x, offsets):
        return amuse_kernels.p2c_attention_varlen(x, [x], [x], offsets, [offsets], 4, [4])


def op_inputs():
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    return torch.randn(2, 2, 5, 8), mask, torch.randn(4, 3, 8), torch.rand(4, 3, 3)


def own_ops(graph):
    return [node for node in graph.nodes if "amuse_kernels" in str(node.target)]


@pytest.mark.parametrize(
    ("module", "inputs"),
    [(Ops(), op_inputs()), (PackedOp(), (torch.randn(7, 2, 8), torch.tensor([0, 3, 7], dtype=torch.int32)))],
    ids=["dense", "packed"],
)
def test_exported_programs_decompose_into_aten_ops(module, inputs):
    program = torch.export.export(module, inputs)
    assert own_ops(program.graph)
    decomposed = program.run_decompositions({**torch.export.default_decompositions(), **DECOMPOSITIONS})
    assert not own_ops(decomposed.graph)
    torch.testing.assert_close(decomposed.module()(*inputs), module(*inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_torch_onnx_export_decomposes_the_ops_by_itself(tmp_path):
    inputs = op_inputs()
    torch.onnx.export(Ops().eval(), inputs, str(tmp_path / "ops.onnx"), verbose=False)
    assert {node.domain for node in onnx.load(tmp_path / "ops.onnx").graph.node} <= {""}
    session = onnxruntime.InferenceSession(tmp_path / "ops.onnx")
    names = [each.name for each in session.get_inputs()]
    found = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    torch.testing.assert_close(tuple(map(torch.from_numpy, found)), Ops()(*inputs), rtol=1e-4, atol=1e-5)


# without the networks below it the graph, and the time of its export, is a third as large
ATTENDED = {"temporal": "attention", "causal": True, "man": False, "unimodal_lstm": False, "unimodal_layers": 0}
BARE = {"temporal": "none", "unimodal_lstm": False, "unimodal_layers": 0}


# seconds of an export go into each modality, and into each pair of them
ALL, TWO = ["text", "audio", "video"], ["text", "audio"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modalities", "options"),
    [
        (TWO, {}),
        (TWO, ATTENDED),
        (TWO, {**ATTENDED, "man": True, "man_gate": "input", "context_window": 3, "fusion": "closed_form"}),
        (ALL, {**BARE, "man": False, "fusion": "chain"}),
        (ALL, {**BARE, "man_score_map": True, "man_lstm": True, "streams": {"seen": ["audio", "video"]}}),
    ],
    ids=["paper", "attention", "window", "chain", "parts"],
)
def test_onnx_runtime_gives_the_models_outputs(conversations, modalities, options, tmp_path):
    part = conversations.select(modalities)
    assert_runs_as_the_model(network(part, **options), part, tmp_path / "model.onnx")


@pytest.mark.slow
def test_a_regression_has_no_probabilities(conversations, tmp_path):
    options = {"temporal": "none", "unimodal_lstm": False, "fusion": "concat", "man": False, "unimodal_layers": 0}
    model = Amuse(ModelConfig(**{**SMALL, **options}), DataSpec(conversations.modalities, None)).eval()
    export_onnx(model, tmp_path / "model.onnx")
    outputs = onnxruntime.InferenceSession(tmp_path / "model.onnx").get_outputs()
    assert [each.name for each in outputs] == ["logits", "modality_logits"]
    assert outputs[0].shape[-1] == 1


@pytest.mark.slow
def test_a_graph_with_other_numbers_is_refused(conversations, tmp_path):
    options = {"temporal": "none", "unimodal_lstm": False, "fusion": "concat", "man": False, "unimodal_layers": 0}
    model = network(conversations, **options)
    export_onnx(model, tmp_path / "model.onnx")
    with torch.no_grad():
        model.classifier.bias += 0.1
    with pytest.raises(RuntimeError, match=r"differ from the model's by 0\.1"):
        check_onnx(model, tmp_path / "model.onnx")


def test_models_that_cannot_be_exported_are_refused(conversations, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="fusion: 'random' gives other numbers"):
        PaddedAmuse(network(conversations, fusion="random"))
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    with pytest.raises(ImportError, match=r"needs onnxscript: pip install amuse-kernels\[onnx\]"):
        export_onnx(network(conversations), tmp_path / "model.onnx")
