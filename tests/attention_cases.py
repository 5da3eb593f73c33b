"""Inputs for attention tests, and an oracle that shares no code with the package: loops over the formula in fp64."""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from amuse_kernels import p2c_attention
from tests.ptx.emulator.sparse_memory import sparse_memory


@dataclass
class Case:
    query: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    options: dict = field(default_factory=dict)

    def run(self, **extra):
        return p2c_attention(self.query, self.keys, self.values, **self.options, **extra)

    def floating(self) -> list[Tensor]:
        gates = self.options.get("gates")
        return [self.query, *self.keys, *self.values, *([] if gates is None else [gates])]

    def to(self, dtype: torch.dtype) -> "Case":
        options = {k: v.to(dtype) if k == "gates" and v is not None else v for k, v in self.options.items()}
        keys, values = [k.to(dtype) for k in self.keys], [v.to(dtype) for v in self.values]
        return replace(self, query=self.query.to(dtype), keys=keys, values=values, options=options)

    def leaves(self) -> "Case":
        """A copy whose floating tensors are leaves that require gradients."""
        options = {k: _leaf(v) if k == "gates" and v is not None else v for k, v in self.options.items()}
        keys, values = [_leaf(k) for k in self.keys], [_leaf(v) for v in self.values]
        return replace(self, query=_leaf(self.query), keys=keys, values=values, options=options)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def make_case(
    batch=2,
    heads=2,
    queries=5,
    lengths=(7, 3),
    head_dim=8,
    dtype=torch.float64,
    gates=True,
    masks=True,
    groups=False,
    seed=0,
    layouts=False,
    score_offsets=None,
    **options,
) -> Case:
    """A random case.

    Args:
        masks: Each source has ragged key lengths and the last source is absent for sample 0; "holes": see `holes_in`.
        layouts: Queries, keys and values are laid out unlike each other in memory.
        score_offsets: For each source what is added to all its scores.
    """
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    query = randn(batch, heads, queries, head_dim)
    keys = [randn(batch, heads, length, head_dim) for length in lengths]
    values = [randn(batch, heads, length, head_dim) for length in lengths]
    if gates:
        options["gates"] = torch.rand(batch, heads, len(lengths), generator=g, dtype=torch.float64).to(dtype) + 0.1
    if score_offsets:
        query[..., 0] = head_dim**0.5
        for key, offset in zip(keys, score_offsets, strict=True):
            key[..., 0] = offset
    if layouts:
        keys = [torch.cat([key, key], 2)[:, :, : key.shape[2]] for key in keys]  # rows of a longer tensor
        values = [value.transpose(1, 2).contiguous().transpose(1, 2) for value in values]  # heads inside of tokens
    if masks == "holes":
        options["key_masks"] = [
            torch.stack([holes_in(length, source + 2 * sample) for sample in range(batch)])
            for source, length in enumerate(lengths)
        ]
    elif masks:
        options["key_masks"] = []
        for p, length in enumerate(lengths):
            kept = torch.randint(length // 2, length + 1, (batch, 1), generator=g) if length else torch.zeros(batch, 1)
            mask = torch.arange(length) < kept
            if p == len(lengths) - 1 and batch:
                mask[0] = False
            options["key_masks"].append(mask)
    if groups:
        options["query_groups"] = torch.randint(0, 2, (batch, queries), generator=g)
        options["key_groups"] = [torch.randint(0, 2, (batch, length), generator=g) for length in lengths]
        options.setdefault("relations", [("same", "different", "any")[p % 3] for p in range(len(lengths))])
    return Case(query, keys, values, options)


def holes_in(length: int, kind: int) -> Tensor:
    """A key mask that an off-by-one bound at the edge of a tile would break, for tiles of 128, 64, 32 or 16 keys.

    In turn: all keys visible but the last of a tile; none behind the first of a tile; all but the first of a tile; and
    a hole in each tile.
    """
    keys = torch.arange(length)
    edge = min(128, 1 << max(0, (length - 1).bit_length() - 1))  # a power of two: where a tile of any size starts
    return (keys != edge - 1, keys <= edge, keys != edge, keys % 16 != 15)[kind % 4]


def spread_out(tensor: Tensor, dim: int, unit: int = 64) -> Tensor:
    """The same values with offsets above 2^31 elements along `dim`, in strides of multiples of `unit`."""
    strides = list(tensor.contiguous().stride())
    strides[dim] = (2**31 // max(1, tensor.shape[dim] - 1) // unit + 1) * unit
    elements = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    memory = sparse_memory(elements * tensor.element_size())
    return torch.frombuffer(memory, dtype=tensor.dtype).as_strided(tensor.shape, strides).copy_(tensor)


def oracle(case: Case) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Output, lse and weights of a case without dropout, one row at a time."""
    o = case.options
    query = case.query.double()
    batch, heads, queries, head_dim = query.shape
    sources = len(case.keys)
    joint = o.get("normalization", "per_source") == "joint"
    scale = o.get("softmax_scale") or head_dim**-0.5
    gates = o.get("gates")
    gates = torch.ones(batch, heads, sources) if gates is None else gates
    gates = gates.detach().double().expand(batch, heads, sources)
    causal = o.get("causal", False)
    causal = [causal] * sources if isinstance(causal, bool) else causal
    masks = o.get("key_masks") or [None] * sources
    relations = o.get("relations") or ["any"] * sources

    out = torch.zeros(batch, heads, queries, head_dim, dtype=torch.float64)
    lse = torch.zeros(batch, heads, queries, sources, dtype=torch.float64)
    weights = [torch.zeros(batch, heads, queries, k.shape[2], dtype=torch.float64) for k in case.keys]
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                total = 0.0
                for p in range(sources):
                    mass = 0.0
                    for j in range(case.keys[p].shape[2]):
                        seen = masks[p] is None or bool(masks[p][b, j])
                        if relations[p] != "any":
                            same = bool(o["query_groups"][b, i] == o["key_groups"][p][b, j])
                            seen = seen and same == (relations[p] == "same")
                        seen = seen and not (causal[p] and j > i)
                        if seen:
                            weights[p][b, h, i, j] = math.exp(
                                scale * float(query[b, h, i] @ case.keys[p][b, h, j].double())
                            )
                            mass += float(weights[p][b, h, i, j])
                    lse[b, h, i, p] = math.log(mass) if mass else -math.inf
                    if not joint and mass:
                        weights[p][b, h, i] *= gates[b, h, p] / mass
                    total += float(gates[b, h, p]) * mass
                for p in range(sources):
                    if joint and total:
                        weights[p][b, h, i] *= gates[b, h, p] / total
                    for j in range(case.keys[p].shape[2]):
                        if weights[p][b, h, i, j]:
                            out[b, h, i] += weights[p][b, h, i, j] * case.values[p][b, h, j].double()
    if joint:
        lse = (lse + gates.log()[:, :, None, :]).logsumexp(-1)
    return out, lse, weights


def assert_within_budget(out: Tensor, low: Tensor, ref64: Tensor, name: str = "output") -> None:
    """The error budget (docs/numerics.md): max|out - ref64| <= 2 max|low - ref64| + 1e-5 max|ref64|."""
    if ref64.numel() == 0:
        return
    error, budget = _error_and_budget(out, low, ref64)
    assert error <= budget, f"{name}: error {error:.3g} above the budget {budget:.3g}"


def budget_used(out: Tensor, low: Tensor, ref64: Tensor) -> float:
    """The error in units of what `assert_within_budget` allows."""
    if ref64.numel() == 0:
        return 0.0
    error, budget = _error_and_budget(out, low, ref64)
    return error / budget if budget else math.inf * error if error else 0.0


def _error_and_budget(out: Tensor, low: Tensor, ref64: Tensor) -> tuple[float, float]:
    error = float((out.double() - ref64).abs().max())
    return error, float(2 * (low.double() - ref64).abs().max() + 1e-5 * ref64.abs().max())


def assert_close(out: Tensor, expected: Tensor, roundings: int = 8) -> None:
    """Equal up to a few roundings of the output's dtype, relative to the largest entry; infinities exactly."""
    finite = expected[expected.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    tolerance = roundings * torch.finfo(out.dtype).eps * max(scale, 1.0)
    torch.testing.assert_close(out.double(), expected.double(), rtol=0, atol=tolerance)
