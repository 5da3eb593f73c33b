"""`amuse export`: the folder works without this package, with the run's own numbers."""

import json
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra: pip install amuse-kernels[hf]")

from transformers import pipeline
from typer.testing import CliRunner

from amuse.cli.main import app
from amuse.config import Config, DataConfig
from amuse.data.load import load_split
from amuse.evaluation.calibration import load_temperature
from amuse.evaluation.load import load_best
from amuse.evaluation.predict import predict
from amuse.files import load_tensors, save_tensors
from amuse.hf import AmuseProcessor, export_run
from amuse.hf.export import text_options
from amuse.hf.remote_code import remote_modules
from amuse.onnx import OnnxInputs
from amuse.training.train import train
from tests.test_training import TINY

# a process in which this package is not installed, and asks nothing from the internet
WITHOUT_PACKAGE = """
import importlib.abc, os, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("amuse", "amuse_kernels"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForTokenClassification, AutoProcessor, pipeline

folder, inputs, outputs = sys.argv[1:]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    two = "data.modalities=[text, audio]"  # a graph takes seconds for each pair of modalities
    train(Config.load(None, [*TINY, "train.epochs=1", two]), folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_run(run, folder)
    return folder


@pytest.fixture(scope="module")
def talk(run):
    """Dialogues of different lengths, in which some utterances lack a modality, and what the run predicts of them."""
    model, standardizer, config = load_best(run)
    made = load_split(config.data, "test")
    for number, utterance in enumerate(made.utterances()):
        if number % 3 == 0:
            del utterance.features["audio"]
        elif number % 4 == 0:
            del utterance.features["text"]
    return made, predict(model, standardizer.apply(made)).logits


def as_plain(dialogue):
    return [{"speaker": u.speaker, "features": dict(u.features)} for u in dialogue.utterances]


def without_package(script, folder, inputs, outputs):
    home = outputs.parent / "hf_home"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGE + script, folder, inputs, outputs],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(home), "PYTHONPATH": ""},
        cwd=outputs.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_folder_loads_without_this_package_and_gives_the_runs_outputs(exported, talk, tmp_path):
    conversations, expected = talk
    inputs = AmuseProcessor.from_pretrained(exported)(conversations.dialogues, labels=False)
    flat = {"utterances": inputs["utterances"], "speakers": inputs["speakers"]}
    for kind in ("features", "masks"):
        flat |= {f"{kind}.{name}": value for name, value in inputs[kind].items()}
    save_tensors(flat, tmp_path / "in.safetensors")
    script = """
flat = load_file(inputs)
batch = {"utterances": flat["utterances"], "speakers": flat["speakers"]}
for kind in ("features", "masks"):
    batch[kind] = {name.split(".")[1]: x for name, x in flat.items() if name.startswith(kind + ".")}
model = AutoModelForTokenClassification.from_pretrained(folder, trust_remote_code=True)
base = AutoModel.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    logits, states = model(**batch).logits, base(**batch).last_hidden_state
save_file({"logits": logits, "states": states}, outputs)
assert not {"amuse", "amuse_kernels"} & set(sys.modules)
"""
    without_package(script, exported, tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    found = load_tensors(tmp_path / "out.safetensors")
    torch.testing.assert_close(found["logits"][inputs["utterances"]], expected, rtol=0, atol=1e-5)
    assert found["states"].shape[:2] == inputs["utterances"].shape


def test_the_pipeline_works_without_this_package(exported, talk, tmp_path):
    conversations, expected = talk
    dialogue = conversations.dialogues[1]
    first = len(conversations.dialogues[0])
    tensors = {f"{i}.{name}": x for i, u in enumerate(dialogue.utterances) for name, x in u.features.items()}
    save_tensors(tensors, tmp_path / "in.safetensors")
    speakers = [utterance.speaker for utterance in dialogue.utterances]
    script = f"""
import json
flat = load_file(inputs)
dialogue = [{{"speaker": name, "features": {{}}}} for name in {speakers!r}]
for name, x in flat.items():
    number, modality = name.split(".")
    dialogue[int(number)]["features"][modality] = x
emotions = pipeline("emotion-in-conversation", model=folder, trust_remote_code=True)
print(json.dumps(emotions(dialogue)))
"""
    said = json.loads(without_package(script, exported, tmp_path / "in.safetensors", tmp_path / "out").splitlines()[-1])
    names = conversations.label_names
    chosen = expected[first : first + len(dialogue)].argmax(-1)
    assert [entry["label"] for entry in said] == [names[int(index)] for index in chosen]
    assert list(said[0]["probabilities"]) == names


def test_the_pipeline_takes_one_dialogue_or_several(exported, talk, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # which transformers sets in a pipeline
    conversations, _ = talk
    emotions = pipeline("emotion-in-conversation", model=str(exported), trust_remote_code=True)
    dialogues = [as_plain(dialogue) for dialogue in conversations.dialogues[:2]]
    several = emotions(dialogues)
    assert [len(entry) for entry in several] == [len(dialogue) for dialogue in dialogues]
    alone = emotions(dialogues[0])
    assert [u["label"] for u in alone] == [u["label"] for u in several[0]]
    with pytest.raises(ValueError, match="dialogues: expected a list of utterances"):
        emotions([])
    for wrong in ("Really?", {"text": "Really?"}, ["Really?"]):
        with pytest.raises(ValueError, match=r"dialogues: expected .*utterances such as .*Really"):
            emotions(wrong)
    with pytest.raises(ValueError, match="this model reads no words, expected features of"):
        emotions([{"speaker": "Ann", "text": "Really?"}])
    with pytest.raises(ValueError, match="top_k: the pipeline"):
        emotions(dialogues[0], top_k=3)


@pytest.mark.slow
def test_the_command_writes_a_graph_that_gives_the_runs_outputs(run, talk, tmp_path, capfd):
    pytest.importorskip("onnxscript", reason="needs the extra: pip install amuse-kernels[onnx]")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra: pip install amuse-kernels[onnx]")
    done = CliRunner().invoke(app, ["export", str(run), "--out", str(tmp_path / "out"), "--onnx"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("exported to ")
    assert "\n" not in done.output.strip()
    assert capfd.readouterr().err == ""  # no progress of saving, no warnings of the exporter
    conversations, expected = talk
    processor = AmuseProcessor(conversations.modalities, conversations.label_names)  # features as in the data
    inputs = OnnxInputs(**processor(conversations.dialogues, labels=False))
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    logits, probabilities = (torch.from_numpy(x) for x in session.run(["logits", "probabilities"], inputs.named()))
    torch.testing.assert_close(logits[inputs.utterances], expected, rtol=1e-4, atol=1e-5)
    own = (expected / load_temperature(run)).softmax(-1)
    torch.testing.assert_close(probabilities[inputs.utterances], own, rtol=1e-4, atol=1e-5)


def test_a_folder_encodes_words_as_the_run_did():
    data = DataConfig(encoder="minilm", layers=[3, 6], merge="concat", pool=True, context=2, speakers=True)
    processor = AmuseProcessor({"text": 768}, ["calm", "angry"], text=text_options(data))
    assert processor._text_config() == data


def test_remote_code_is_the_packages_own_but_for_imports():
    modules = remote_modules()
    assert "amuse_kernels.attention.reference" in modules
    assert not [name for name in modules if name.endswith((".ops", ".cpu", ".triton"))]
    for name, source in modules.items():
        compile(source, name, "exec")
        assert "from amuse" not in source, name


def test_the_card_has_scores_data_and_limits(run, exported, tmp_path):
    card = (exported / "README.md").read_text()
    for part in ("weighted F1", "synthetic", "must not be used", "trust_remote_code=True", "`audio`", "reads no words"):
        assert part in card, part
    export_run(run, tmp_path / "unscored", scores=False)
    assert "Not measured." in (tmp_path / "unscored" / "README.md").read_text()
