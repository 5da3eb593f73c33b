"""The guard of `tests/conftest.py`: a test that leaves global state changed is named and fails, and only that one."""

import logging
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests import global_state
from tests.processes import ROOT


def _tf32_by_both_switches() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cuda.matmul.fp32_precision = "none"  # now reading allow_tf32 raises


CHANGES = {
    "torch.backends.cuda.matmul.allow_tf32": _tf32_by_both_switches,
    "torch.backends.cuda.matmul.fp32_precision": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "torch.backends.cudnn.allow_tf32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "torch.backends.cudnn.deterministic": lambda: setattr(torch.backends.cudnn, "deterministic", True),
    "torch.utils.deterministic.fill_uninitialized_memory": lambda: setattr(
        torch.utils.deterministic, "fill_uninitialized_memory", False
    ),
    "torch.use_deterministic_algorithms": lambda: torch.use_deterministic_algorithms(True),
    "torch.set_default_dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch.set_num_threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "torch.set_grad_enabled": lambda: torch.set_grad_enabled(False),
    "os.environ: AMUSE_LEFT was None, is '1'": lambda: os.environ.update(AMUSE_LEFT="1"),
    "the working directory": lambda: os.chdir("/"),
    "the log levels": lambda: logging.getLogger("amuse").setLevel(logging.CRITICAL),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_switch_is_named_and_restored(name):
    before = [switch.read() for switch in global_state.SWITCHES]
    with pytest.raises(AssertionError, match="test_b left global state changed") as caught, global_state.kept("test_b"):
        CHANGES[name]()
    assert name in str(caught.value)
    assert [switch.read() for switch in global_state.SWITCHES] == before


@pytest.mark.parametrize("name", CHANGES)
def test_a_block_with_restored_state_may_change_any_switch(name):
    with global_state.kept("the block"), global_state.restored():
        CHANGES[name]()


def test_every_test_starts_from_the_same_generators():
    drawn = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
    global_state.seed_generators()
    assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002


LEAKING = """
import random
import warnings
import pytest
import torch

IMPORTED = torch.rand(1, dtype=torch.float32).item(), random.random()

@pytest.fixture(scope="module")
def shared():
    torch.set_default_dtype(torch.float64)
    return torch.rand(1, dtype=torch.float32).item(), random.random()

def test_leaves_a_dtype():
    torch.rand(3)
    warnings.simplefilter("error")
    torch.set_default_dtype(torch.float64)

def test_runs_afterwards(shared):
    assert shared == IMPORTED
    warnings.warn("no error: pytest restored the filters")

def test_leaves_nothing():
    assert torch.get_default_dtype() is torch.float64  # set by the module's fixture, which is still in use
"""


@pytest.mark.slow
def test_only_the_test_or_the_module_that_leaves_state_fails(tmp_path):
    (tmp_path / "test_leaking.py").write_text(LEAKING, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-c", "/dev/null", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "test_leaves_a_dtype left global state changed" in done.stdout, done.stdout + done.stderr
    assert "a fixture of " in done.stdout
    assert "test_leaking.py left global state changed" in done.stdout
    assert "3 passed" in done.stdout
    assert "2 errors" in done.stdout
