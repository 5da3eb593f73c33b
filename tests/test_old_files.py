"""Files of version 0.1, which kept in the model's configuration what the data decide, are still read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from amuse.config import Config
from amuse.evaluation.load import load_run
from amuse.model.amuse import MODEL_CONFIG_FILE, Amuse
from amuse.training.state import STATE_FILE
from amuse.training.train import train
from tests.test_training import TINY


def in_old_form(model: dict, data: dict) -> dict:
    """Modalities and label names came first, the encoders among the other settings."""
    first = {key: data[key] for key in ("modalities", "label_names")}
    return {**first, **model, "text_encoder": data["text_encoder"], "raw": data["raw"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run, the same in the form of version 0.1, and its model."""
    new, old = (tmp_path_factory.mktemp(name) for name in ("new", "old"))
    config = Config.load(None, [*TINY, "train.epochs=1"])
    model = train(config, new, progress=False)
    for file in new.rglob("*"):
        if file.is_file():
            (old / file.relative_to(new)).parent.mkdir(exist_ok=True)
            (old / file.relative_to(new)).write_bytes(file.read_bytes())
    checkpoint = json.loads((new / "best" / MODEL_CONFIG_FILE).read_text())
    data = checkpoint.pop("data")
    checkpoint["model"] = in_old_form(checkpoint["model"], data)
    (old / "best" / MODEL_CONFIG_FILE).write_text(json.dumps(checkpoint))
    settings = yaml.safe_load((new / "config.yaml").read_text())
    settings["model"] = in_old_form(settings["model"], data)
    (old / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    state = torch.load(new / STATE_FILE, weights_only=True)
    del state["data"]
    state["config"]["model"] = in_old_form(state["config"]["model"], data)
    torch.save(state, old / STATE_FILE)
    return new, old, model


def test_a_checkpoint_of_version_0_1_is_the_same_model(runs):
    _, old, model = runs
    loaded = Amuse.from_pretrained(old / "best")
    assert loaded.config == model.config
    assert loaded.spec == model.spec
    for ours, theirs in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_run_folder_of_version_0_1_is_read(runs):
    new, old, _ = runs
    model, conversations, config = load_run(old, "test")
    assert config == load_run(new, "test")[2]
    assert conversations.modalities == model.spec.modalities


def test_a_run_of_version_0_1_is_resumed(runs):
    _, old, model = runs
    config = Config.load(old / "config.yaml")
    again = train(config, old, resume=True, progress=False)
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_run_of_version_0_1_is_not_resumed_with_other_data(runs, tmp_path):
    old = Path(shutil.copytree(runs[1], tmp_path / "old"))
    state = torch.load(old / STATE_FILE, weights_only=True)
    state["config"]["model"]["label_names"] = ["yes", "no"]
    torch.save(state, old / STATE_FILE)
    with pytest.raises(ValueError, match=r"DataSpec.label_names: the run was started with \['yes', 'no'\]"):
        train(Config.load(old / "config.yaml"), old, resume=True, progress=False)


@pytest.mark.parametrize("saved", ["missing", 0, None])
def test_a_run_that_knew_no_blocks_is_resumed_without_them(runs, tmp_path, saved):
    """States of versions without `shuffle_block`, with 0 as its default, and with None, but not as it was decided."""
    old = Path(shutil.copytree(runs[0], tmp_path / "old"))
    state = torch.load(old / STATE_FILE, weights_only=True)
    del state["shuffling"], state["config"]["train"]["own_blocks"], state["config"]["train"]["shuffle_block"]
    if saved != "missing":
        state["config"]["train"]["shuffle_block"] = saved
    torch.save(state, old / STATE_FILE)
    again = train(Config.load(old / "config.yaml"), old, resume=True, progress=False)
    for ours, theirs in zip(again.parameters(), runs[2].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    if saved is not None:
        blocks = Config.load(old / "config.yaml", ["train.shuffle_block=2"])
        message = r"train\.shuffle_block: the run was started with 0, .* 2; resume with --set train\.shuffle_block=0$"
        with pytest.raises(ValueError, match=message):
            train(blocks, old, resume=True, progress=False)


def test_a_transformers_configuration_of_version_0_1_is_read(runs):
    pytest.importorskip("transformers")
    from amuse.hf import AmuseConfig

    new = AmuseConfig.of(runs[2])
    old = AmuseConfig(network=in_old_form(new.network, new.data), encoder_configs=new.encoder_configs)
    assert (old.network, old.data, old.modality_order) == (new.network, new.data, new.modality_order)
    assert old.data_spec() == runs[2].spec
