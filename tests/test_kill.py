"""A run killed at any moment resumes to the same bits, and leaves no damaged or stray file."""

from pathlib import Path

import pytest
import torch

from amuse.model.amuse import Amuse
from tests.processes import run_module

pytestmark = pytest.mark.slow


def test_a_run_killed_at_many_moments_ends_like_one_that_was_not(tmp_path):
    deaths = dict(line.split() for line in run_module("tests.kill_worker", str(tmp_path)).splitlines())
    assert deaths["random"] == "10"
    assert int(deaths["files"]) >= 6
    whole = tmp_path / "whole"
    expected = Amuse.from_pretrained(whole / "best")
    for name in ("random", "files"):
        folder = tmp_path / name
        for a, b in zip(expected.parameters(), Amuse.from_pretrained(folder / "best").parameters(), strict=True):
            assert torch.equal(a, b)
        states = [torch.load(f / "state.pt", weights_only=True) for f in (whole, folder)]
        assert all(torch.equal(states[0]["model"][key], states[1]["model"][key]) for key in states[0]["model"])
        assert (folder / "config.yaml").read_bytes() == (whole / "config.yaml").read_bytes()
        assert files(folder) == files(whole)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "tensorboard" not in str(path))
