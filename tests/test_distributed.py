"""Promises of training in several processes: the gradients and the scores of a single one."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from amuse.config import Config
from amuse.data.load import load_split
from amuse.evaluation.predict import predict
from amuse.files import LOG_FILE
from amuse.model.amuse import Amuse
from amuse.training.train import train
from tests.distributed_worker import CASES, TINY, WAYS, first_gradients
from tests.processes import run_module

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    """The files of two processes, made once, by the first of pytest's workers that needs them."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two_processes"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
            run_module(*torchrun, "-m", "tests.distributed_worker", str(unfinished))
            os.replace(unfinished, folder)
    return folder


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_gradient_of_one(two_processes, case, way, tmp_path):
    expected = first_gradients(CASES[case], tmp_path)
    found = torch.load(two_processes / f"{case}, {way}.pt")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-6, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("case", CASES)
def test_accumulation_has_the_gradient_of_the_whole_batch(case, tmp_path):
    expected = first_gradients(CASES[case], tmp_path)
    found = first_gradients([*CASES[case], "train.accumulate=3"], tmp_path)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-6, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_run_of_two_processes_is_a_run_of_one(two_processes, way, tmp_path):
    one = train(Config.load(None, [*TINY, "train.ema=0.5"]), tmp_path, progress=False)
    two = Amuse.from_pretrained(two_processes / way / "best")
    test = load_split(Config.load(None, TINY).data, "test")
    torch.testing.assert_close(predict(two, test).logits, predict(one, test).logits, atol=1e-3, rtol=1e-3)
    logs = [
        [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
        for folder in (tmp_path, two_processes / way)
    ]
    for a, b in zip(*logs, strict=True):
        assert b["train"] == pytest.approx(a["train"], rel=1e-3)
        assert b["valid"] == pytest.approx(a["valid"], abs=0.05)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_resume_to_the_same_bits_and_one_finishes_their_run(two_processes, way, tmp_path):
    whole, cut = (Amuse.from_pretrained(two_processes / name / "best") for name in (way, f"{way} cut"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))
    config = Config.load(None, [*TINY, "train.ema=0.5"])
    shutil.copytree(two_processes / f"{way} to one", tmp_path / "one")
    finished = train(config, tmp_path / "one", resume=True, progress=False)
    test = load_split(config.data, "test")
    torch.testing.assert_close(predict(finished, test).logits, predict(whole, test).logits, atol=1e-3, rtol=1e-3)
