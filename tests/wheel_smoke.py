"""Tries an installed wheel, away from the checkout: `make wheel` runs this in a clean environment."""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import amuse_kernels
from amuse.config import Config
from amuse.evaluation.load import load_run
from amuse.evaluation.predict import evaluate
from amuse.training.train import train
from amuse_kernels.info import info

SMALL = ["data.num_dialogues=4", "model.d_model=16", "model.num_heads=2", "train.epochs=1"]


def main() -> None:
    assert "site-packages" in amuse_kernels.__file__, amuse_kernels.__file__
    facts = info()
    assert facts["version"] == amuse_kernels.__version__
    assert facts["native"]["built"], facts["native"]["reason"]

    query, key, value = (torch.randn(2, 2, 9, 16, requires_grad=True) for _ in range(3))
    results = []
    for backend in ("cpu", "reference"):
        out = amuse_kernels.p2c_attention(query, [key, key], [value, value], backend=backend)
        results.append([out, *torch.autograd.grad(out.sum(), [query, key, value])])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    with tempfile.TemporaryDirectory() as folder:
        train(Config.load(None, SMALL), Path(folder, "run"), progress=False)
        model, conversations, _ = load_run(Path(folder, "run"), "test")
        print(evaluate(model, conversations).report())
    command = Path(sys.executable).with_name("amuse")
    printed = subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "train" in printed
    print(f"amuse_kernels {facts['version']} works, instruction set {facts['native']['isa']}")


if __name__ == "__main__":
    main()
