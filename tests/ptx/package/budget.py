"""What tests of the package's kernels in the emulator ask: clean reports, and numbers within the error budget."""

from __future__ import annotations

import torch

from tests.attention_cases import assert_within_budget


def assert_clean(reports) -> None:
    for report in reports:
        report.assert_clean()


def within_budget(outputs, inputs, function, upstream) -> None:
    """Outputs and gradients of a kernel against those of `function` in fp64 and in the precision of the inputs."""
    results = []
    for dtype in (inputs[0].dtype, torch.float64):
        leaves = [t.detach().to(dtype, copy=True).requires_grad_() for t in inputs]
        outs = function(leaves)
        torch.autograd.backward(outs, [g.to(o.dtype) for g, o in zip(upstream, outs, strict=True)])
        results.append([*(o.detach() for o in outs), *(leaf.grad for leaf in leaves)])
    for index, (out, low, ref64) in enumerate(zip(outputs, *results, strict=True)):
        assert_within_budget(out, low.to(out.dtype), ref64, f"tensor {index}")
