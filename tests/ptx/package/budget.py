"""Checks shared by the tests of emulated kernels: clean reports, and numbers within the error budget."""

from __future__ import annotations

import math

import torch

from tests.attention_cases import assert_within_budget, budget_used


def assert_clean(reports) -> None:
    for report in reports:
        report.assert_clean()


def within_budget(outputs, inputs, function, upstream) -> None:
    """Outputs and gradients of a kernel against those of `function` in fp64 and in the precision of the inputs."""
    for index, (out, low, ref64) in enumerate(_compared(outputs, inputs, function, upstream)):
        assert_within_budget(out, low, ref64, f"tensor {index}")


def worst_of_budget(outputs, inputs, function, upstream) -> tuple[float, int]:
    """The largest error in units of what `within_budget` allows, and the index of its tensor."""
    found = [
        (budget_used(out, low, ref64), index)
        for index, (out, low, ref64) in enumerate(_compared(outputs, inputs, function, upstream))
    ]
    return max(found, key=lambda pair: (math.isnan(pair[0]), pair[0]))


def _compared(outputs, inputs, function, upstream):
    """Each output with that of `function` in the precision of the inputs and in fp64."""
    results = []
    for dtype in (inputs[0].dtype, torch.float64):
        leaves = [t.detach().to(dtype, copy=True).requires_grad_() for t in inputs]
        outs = function(leaves)
        torch.autograd.backward(outs, [g.to(o.dtype) for g, o in zip(upstream, outs, strict=True)])
        results.append([*(o.detach() for o in outs), *(leaf.grad for leaf in leaves)])
    for out, low, ref64 in zip(outputs, *results, strict=True):
        yield out, low.to(out.dtype), ref64
