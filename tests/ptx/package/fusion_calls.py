"""Calls of the adaptive fusion in the emulator, CUDA's unless it says otherwise, and what their results have to be."""

from __future__ import annotations

import torch

from amuse_kernels import reference
from amuse_kernels.fusion import cuda
from tests.ptx.package.budget import within_budget
from tests.ptx.package.cuda_launches import emulated, prepared
from tests.test_adaptive_fusion import make_inputs


class FusionCall:
    """One problem: what the op takes, and a call of both directions."""

    def __init__(self, kind, rows, modalities, width, dtype, absent=True, strided=False):
        inputs = make_inputs(kind, rows, modalities, width, dtype, absent)
        self.present = inputs.pop("present", None)
        if strided:  # rows of another, wider tensor
            wide = torch.zeros(rows, modalities + 1, width + 8 if width % 8 == 0 else width + 1, dtype=dtype)
            inputs["descriptors"] = wide[:, 1:, :width].copy_(inputs["descriptors"])
        if self.present is not None:
            inputs["descriptors"][~self.present] = torch.nan
        self.inputs = inputs
        given = {name: t.float() if "pair" in name else t for name, t in inputs.items()}
        self.arguments = [given.get(name) for name in ("descriptors", "alpha", "pair_weight", "pair_bias")]
        alpha = self.arguments[1]
        shapes = (rows, modalities, width), (rows, modalities, modalities) if alpha is None else alpha.shape
        self.upstream = [torch.randn(shape).to(dtype) for shape in shapes]

    def run(self, grad_alpha=True, **options):
        """Outputs and gradients, and the reports."""
        with emulated(readonly=self._given(), **options) as reports:
            results = self.results(cuda, grad_alpha)
        return results, reports

    def launches(self):
        """Outputs and gradients still without values, and the launches that give them."""
        with prepared(readonly=self._given()) as launches:
            results = self.results(cuda)
        return results, launches

    def _given(self):
        return [t for t in (*self.arguments, self.present, *self.upstream) if t is not None]

    def results(self, backend, grad_alpha=True):
        """Outputs and gradients of a backend's module."""
        arguments = (*self.arguments, self.present)
        outputs = backend.adaptive_fusion_forward(*arguments)
        grads = backend.adaptive_fusion_backward(self.upstream[0], self.upstream[1] if grad_alpha else None, *arguments)
        return [*outputs, *(grad for grad, given in zip(grads, self.arguments, strict=True) if given is not None)]

    def check(self, found):
        names = list(self.inputs)

        def function(leaves):
            given = dict(zip(names, leaves, strict=True))
            rest = (given.get("alpha"), given.get("pair_weight"), given.get("pair_bias"), self.present)
            return reference.adaptive_fusion(given["descriptors"], *rest)

        within_budget(found, list(self.inputs.values()), function, self.upstream)
