"""Calls of p2c_attention that the emulator's tests make of every backend, and what their results have to be."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amuse_kernels import reference
from amuse_kernels.attention.inputs import AttentionInputs, check_attention
from amuse_kernels.dropout import keep_mask
from tests.attention_cases import Case, make_case, spread_out
from tests.ptx.package.budget import within_budget, worst_of_budget

DIALOGUE: dict[str, Any] = {"causal": True, "groups": True, "dropout_p": 0.3, "seed": 5}
HOLES: dict[str, Any] = {"masks": "holes", "layouts": True}
# name -> lengths (queries, keys of each source), head dim, options of make_case
ATTENTION: dict[str, Any] = {
    "plain": ((64, (64, 64, 64)), 64, {"gates": False, "masks": False}),
    "ragged": ((17, (33, 1, 0)), 64, {}),
    "groups": ((70, (45, 129)), 32, {"groups": True}),
    "causal": ((77, (77, 77)), 64, {"causal": True, "groups": True}),
    "joint": ((33, (100, 7)), 64, {"normalization": "joint"}),
    "dropout": ((65, (40, 70)), 32, {"dropout_p": 0.3, "seed": 5}),
    "holes": ((70, (130, 150)), 64, HOLES),
    "holes, groups": ((130, (130, 130)), 32, {**HOLES, **DIALOGUE, "batch": 1}),
    "holes, joint": ((70, (150, 70)), 40, {**HOLES, "normalization": "joint"}),
    "joint, all options": ((70, (70, 70)), 40, {"normalization": "joint", **DIALOGUE}),
}
# as above; differences of scores whose exp is 0, which needs the range of fp32
FAR_APART: dict[str, Any] = {
    "far apart": ((70, (100, 130)), 64, {"masks": "holes", "batch": 1, "score_offsets": (60, -60)})
}
ONE_SAMPLE: dict[str, Any] = {"batch": 1, "heads": 1, "masks": False}
# as above: more than 32 tiles of queries; in fp32, whose budget one of them exceeds
GATE_SUMS: dict[str, Any] = {
    "gates of many tiles": ((2100, (3,)), 8, ONE_SAMPLE),
    "gates of many tiles, joint": ((2100, (3, 2)), 8, {**ONE_SAMPLE, "normalization": "joint"}),
}
# as above: one tile of queries and several of keys, which CUDA C++ serves by kernels of their own, up to 32 queries by
# the smallest; a tile of keys that no query sees lies between others
FEW_QUERIES: dict[str, Any] = {
    f"{queries} queries, {name}": ((queries, lengths), 64, options)
    for queries in (20, 50)
    for name, lengths, options in (
        ("holes", (200, 33), HOLES),
        ("holes, joint", (150, 70), {**HOLES, "normalization": "joint"}),
        ("all options", (queries, 130), {**HOLES, **DIALOGUE, "causal": [True, False]}),
        ("joint, all options", (130, queries), {"normalization": "joint", **DIALOGUE, "causal": [False, True]}),
    )
}
# as above: no query of sample 0 sees any key
NOTHING_IN_SIGHT: dict[str, Any] = {
    **{f"{queries} queries, nothing in sight": ((queries, (40,)), 64, {}) for queries in (20, 50, 70)},
    "70 queries, nothing in sight, groups": ((70, (40,)), 64, {"groups": True}),
}
# as above: as many sources as CUDA C++ takes; sample 0 sees no key of the last
EIGHT = (5, 3, 40, 1, 0, 7, 2, 33)
MANY_SOURCES: dict[str, Any] = {
    **{f"{queries} queries, eight sources": ((queries, EIGHT), 32, {}) for queries in (20, 70)},
    "70 queries, eight sources, groups": ((70, EIGHT), 32, {"groups": True}),
}
# as above: Triton has tiles of more queries for them on sm_80
MANY_QUERIES: dict[str, Any] = {
    "many queries, plain": ((150, (40, 129)), 64, {"gates": False, "masks": False}),
    "many queries, masks": ((150, (40, 129)), 64, {}),
}


def inputs_of(case: Case) -> AttentionInputs:
    return check_attention(case.query, case.keys, case.values, **case.options)


def hide_what_is_masked(case: Case) -> None:
    """NaN in every key and value behind a mask."""
    for mask, *tokens in zip(case.options.get("key_masks") or [], case.keys, case.values, strict=False):
        for tensor in tokens:
            tensor.masked_fill_(~mask[:, None, :, None], torch.nan)


def eager_attention(inputs: AttentionInputs):
    """The formula as a user would write it, in the precision of the inputs."""
    weights, sums = [], []
    for p, key in enumerate(inputs.keys):
        visible = reference.visible_pairs(inputs, p)
        scores = inputs.softmax_scale * (inputs.query @ key.transpose(-1, -2))
        weights.append(torch.where(visible, scores.exp(), 0.0))
        sums.append(weights[-1].sum(-1, keepdim=True))
    gates = [1.0] * len(weights) if inputs.gates is None else [g[..., None, None] for g in inputs.gates.unbind(-1)]
    total = sum(g * s for g, s in zip(gates, sums, strict=True))
    out = 0
    for p, (gate, weight, value) in enumerate(zip(gates, weights, inputs.values, strict=True)):
        norm = total if inputs.joint else sums[p]
        weight = gate * weight / torch.where(norm == 0, 1.0, norm)
        if inputs.dropout_p:
            kept = keep_mask(inputs.seed, inputs.dropout_p, weight.shape, p)
            weight = weight * kept / (1 - inputs.dropout_p)
        out = out + weight @ value
    sums = total if inputs.joint else torch.cat(sums, -1)
    lse = torch.where(sums == 0, 1.0, sums).log()  # of rows without a visible key the caller takes no lse
    return out, lse[..., 0] if inputs.joint else lse


@dataclass
class AttentionCall:
    """A call, its upstream gradients, and whether results are within the error budget."""

    inputs: AttentionInputs
    grad_out: Tensor
    grad_lse: Tensor | None = None

    @staticmethod
    def of(name: str, dtype: torch.dtype, head_dim: int | None = None) -> AttentionCall:
        """The call of that name above, with NaN behind the masks."""
        (queries, lengths), width, options = (
            ATTENTION | FEW_QUERIES | NOTHING_IN_SIGHT | MANY_SOURCES | MANY_QUERIES | FAR_APART | GATE_SUMS
        )[name]
        return AttentionCall.make(queries, lengths, head_dim or width, dtype, **options)

    @staticmethod
    def make(
        queries: int,
        lengths: tuple[int, ...],
        head_dim: int,
        dtype: torch.dtype,
        batch: int = 2,
        heads: int = 2,
        **options: Any,
    ) -> AttentionCall:
        case = make_case(batch, heads, queries, lengths, head_dim, dtype, **options)
        hide_what_is_masked(case)
        inputs = inputs_of(case)
        return AttentionCall(inputs, torch.randn(inputs.query.shape).to(dtype))

    def spread_out(self, dim: int, unit: int = 64) -> AttentionCall:
        """The same with offsets above 2^31 elements along `dim` in every tensor that is read by strides."""
        inputs, far = self.inputs, functools.partial(spread_out, dim=dim, unit=unit)
        spread = inputs._replace(
            query=far(inputs.query), keys=[*map(far, inputs.keys)], values=[*map(far, inputs.values)]
        )
        return AttentionCall(spread, far(self.grad_out), self.grad_lse)

    def read_only(self) -> list[Tensor]:
        return [self.inputs.query, *self.inputs.keys, *self.inputs.values, self.grad_out]

    def draw_upstream(self, lse: Tensor) -> None:
        """Draws the gradient of lse, 0 where nothing is visible."""
        self.grad_lse = torch.randn(lse.shape) * (lse > -torch.inf)

    def assert_within_budget(
        self, out: Tensor, lse: Tensor, query: Tensor, keys: list[Tensor], values: list[Tensor], gates: Tensor | None
    ) -> None:
        """Outputs and gradients against the eager formula."""
        within_budget(*self._compared(out, lse, query, keys, values, gates))

    def worst(self, *results: Any) -> tuple[float, str]:
        """The largest error of these arguments of `assert_within_budget`, in units of what it allows, and where."""
        error, index = worst_of_budget(*self._compared(*results))
        sources = range(len(self.inputs.keys))
        names = ["out", "lse", "dq", *(f"dk{p}" for p in sources), *(f"dv{p}" for p in sources), "dgates"]
        return error, names[index]

    def _compared(
        self, out: Tensor, lse: Tensor, query: Tensor, keys: list[Tensor], values: list[Tensor], gates: Tensor | None
    ) -> tuple[Any, ...]:
        """The arguments of `within_budget`."""
        inputs, sources = self.inputs, len(keys)
        visible = lse > -torch.inf

        def function(leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
            tensors = [v.masked_fill(~v.isfinite(), 0) for v in leaves]
            low = inputs._replace(
                query=tensors[0],
                keys=tuple(tensors[1 : 1 + sources]),
                values=tuple(tensors[1 + sources : 1 + 2 * sources]),
                gates=tensors[-1] if inputs.gates is not None else None,
            )
            out, lse = eager_attention(low)
            return out, torch.where(visible, lse, 0.0)

        tensors = [inputs.query, *inputs.keys, *inputs.values, *([] if inputs.gates is None else [inputs.gates])]
        found = [out, torch.where(visible, lse, 0.0), query, *keys, *values, *([] if inputs.gates is None else [gates])]
        upstream = self.grad_out, torch.zeros_like(lse) if self.grad_lse is None else self.grad_lse
        return found, tensors, function, upstream
