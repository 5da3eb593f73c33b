"""Runs whose files are cut, overwritten or foreign are opened right or refused with an error that names the file."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amuse.evaluation.calibration import load_temperature
from amuse.evaluation.load import load_best
from amuse.training.state import STATE_FILE
from amuse.training.train import train
from tests.fuzz.corruption import corrupted, corrupted_json
from tests.test_training import tiny

LOADED = ("config.yaml", "best/config.json", "best/model.safetensors", "best/standardizer.safetensors")
OPTIONS = ("data.standardize=true", "train.epochs=1")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(tiny(*OPTIONS), folder, progress=False)
    return folder


def broken_copy(run, place, content):
    folder = Path(tempfile.mkdtemp(dir=run.parent))
    shutil.copytree(run, folder, dirs_exist_ok=True)
    (folder / place).write_bytes(content)
    return folder


def opened(call, folder):
    try:
        call()
    except (ValueError, FileNotFoundError) as error:
        assert str(folder) in str(error), f"names no file: {error!r}"  # noqa: PT017  (only some files are refused)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("place", LOADED)
@settings(max_examples=settings.default.max_examples // 5)  # an example takes some 50 ms
@given(data=st.data())
def test_a_broken_model_is_opened_right_or_refused_by_name(run, place, data):
    change = corrupted_json if place.endswith(".json") else corrupted
    folder = broken_copy(run, place, data.draw(change((run / place).read_bytes())))
    opened(lambda: load_best(folder), folder)


@settings(max_examples=settings.default.max_examples // 5)  # an example takes some 50 ms
@given(data=st.data())
def test_a_broken_calibration_is_read_right_or_refused_by_name(run, data):
    place = "best/calibration.json"
    folder = broken_copy(run, place, data.draw(corrupted_json((run / place).read_bytes())))
    opened(lambda: load_temperature(folder), folder)


@settings(max_examples=settings.default.max_examples // 5)  # an example takes some 50 ms
@given(data=st.data())
def test_a_broken_training_state_is_resumed_right_or_refused_by_name(run, data):
    folder = broken_copy(run, STATE_FILE, data.draw(corrupted((run / STATE_FILE).read_bytes())))
    opened(lambda: train(tiny(*OPTIONS), folder, resume=True, progress=False), folder)
