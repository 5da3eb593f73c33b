"""The error budget of p2c_attention at large scores: the share of it that each backend uses.

With ref64 the formula in fp64 and low the same formula run eagerly in the low precision, the share of a tensor is
max|found - ref64| / (2 max|low - ref64| + 1e-5 max|ref64|); 1 is the limit. The table lists the largest share of the
output, the lse and all gradients, with a gradient of the lse, over several draws.

python -m benchmarks.large_scores                                  the CPU kernels
TRITON_INTERPRET=1 python -m benchmarks.large_scores triton        in Triton's interpreter
python -m benchmarks.large_scores cuda                             in the PTX emulator, as compiled by nvcc
python -m benchmarks.large_scores triton                           in the PTX emulator, as compiled by Triton
"""

import argparse
import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from amuse_kernels.attention import reference
from amuse_kernels.attention.inputs import AttentionInputs, check_attention

SCORES = (10, 100, 1_000, 15_000)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NORMALIZATIONS = ("per_source", "joint")
HEADS, QUERIES, LENGTHS, HEAD_DIM = 2, 64, (64, 40), 64
ARCHITECTURE = 80  # that kernels are compiled for where they are emulated


class Call(NamedTuple):
    """One call and its upstream gradients."""

    inputs: AttentionInputs
    grad_out: Tensor
    grad_lse: Tensor

    @classmethod
    def draw(
        cls, largest: float, normalization: str, dtype: torch.dtype, seed: int = 0, lengths: tuple[int, ...] = LENGTHS
    ) -> "Call":
        """Gaussian tokens, the queries scaled so that the largest |score| is `largest`."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        query = draw(1, HEADS, QUERIES, HEAD_DIM)
        keys, values = ([draw(1, HEADS, length, HEAD_DIM).to(dtype) for length in lengths] for _ in range(2))
        scores = query @ torch.cat(keys, 2).double().mT * HEAD_DIM**-0.5
        query = (query * (largest / scores.abs().max())).to(dtype)
        gates = torch.rand(1, HEADS, len(lengths), generator=generator, dtype=torch.float64).to(dtype) + 0.1
        inputs = check_attention(query, keys, values, gates=gates, normalization=normalization)
        rows = (1, HEADS, QUERIES) if inputs.joint else (1, HEADS, QUERIES, len(lengths))
        return cls(inputs, draw(*query.shape).to(dtype), draw(*rows).to(_accumulated_in(dtype)))

    def found(self, backend: str) -> list[Tensor]:
        """Output, lse and the gradients of query, keys, values and gates."""
        kernels = importlib.import_module(f"amuse_kernels.attention.{backend}")
        out, lse = kernels.p2c_attention_forward(self.inputs)
        grads = kernels.p2c_attention_backward(self.grad_out, self.grad_lse, out, lse, self.inputs)
        return [out, lse, grads.query, *grads.keys, *grads.values, grads.gates]

    def differentiated(
        self, attention: Callable[[AttentionInputs], tuple[Tensor, Tensor]], dtype: torch.dtype
    ) -> list[Tensor]:
        """The same of a function that autograd differentiates, on the inputs in `dtype`."""
        given = self.inputs
        assert given.gates is not None
        sources = len(given.keys)
        leaves = [t.detach().to(dtype).requires_grad_() for t in (given.query, *given.keys, *given.values, given.gates)]
        inputs = given._replace(
            query=leaves[0], keys=leaves[1 : 1 + sources], values=leaves[1 + sources : -1], gates=leaves[-1]
        )
        outputs = attention(inputs)
        upstream = [g.to(out.dtype) for g, out in zip((self.grad_out, self.grad_lse), outputs, strict=True)]
        torch.autograd.backward(outputs, upstream)
        return [*(out.detach() for out in outputs), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    def shares(self, found: list[Tensor]) -> list[float]:
        """The share of the error budget that each tensor of `found` uses."""
        exact = self.differentiated(reference.p2c_attention, torch.float64)
        low = self.differentiated(eager_attention, self.inputs.query.dtype)
        return [_share(*tensors) for tensors in zip(found, low, exact, strict=True)]


def _accumulated_in(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _share(found: Tensor, low: Tensor, exact: Tensor) -> float:
    budget = 2 * (low.double() - exact).abs().max() + 1e-5 * exact.abs().max()
    return float((found.double() - exact).abs().max() / budget)


def eager_attention(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """Output and lse as a user would write them, in the precision of the inputs; all pairs are visible."""
    assert inputs.gates is not None
    query = inputs.softmax_scale * inputs.query  # first: the product of the others may not fit into fp16
    scores = [query @ key.mT for key in inputs.keys]
    gates = [gate[..., None, None] for gate in inputs.gates.unbind(-1)]
    if inputs.joint:
        gated = torch.cat([score + gate.log() for score, gate in zip(scores, gates, strict=True)], -1)
        return gated.softmax(-1) @ torch.cat([*inputs.values], 2), gated.logsumexp(-1)
    parts = [g * (s.softmax(-1) @ v) for g, s, v in zip(gates, scores, inputs.values, strict=True)]
    return torch.stack(parts).sum(0), torch.stack([score.logsumexp(-1) for score in scores], -1)


@contextlib.contextmanager
def runnable(backend: str) -> Iterator[None]:
    """Inside, the kernels of a GPU backend run on CPU tensors."""
    if backend == "cuda":
        from tests.ptx.package import cuda_launches

        with cuda_launches.emulated(f"sm_{ARCHITECTURE}"):
            yield
    elif backend == "triton":
        from tests import triton_interpreter
        from tests.ptx.package import triton_launches

        if triton_interpreter.requested():
            triton_interpreter.prepare()
            yield
        else:
            with triton_launches.emulated(ARCHITECTURE):
                yield
    else:
        yield


def table(backend: str, draws: int) -> str:
    head = " | ".join(f"{score:,}" for score in SCORES)
    lines = [f"| backend | normalization, dtype | largest score: {head} |", "|---" * (len(SCORES) + 2) + "|"]
    dtypes = (torch.float64, *DTYPES) if backend == "cpu" else DTYPES
    for normalization in NORMALIZATIONS:
        for dtype in dtypes:
            cells = []
            for score in SCORES:
                calls = [Call.draw(score, normalization, dtype, seed) for seed in range(draws)]
                cells.append(max(max(call.shares(call.found(backend))) for call in calls))
            name = f"{normalization}, {str(dtype).removeprefix('torch.')}"
            lines.append(f"| {backend} | {name} | {' | '.join(f'{cell:.2g}' for cell in cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backend", nargs="?", default="cpu", choices=["cpu", "triton", "cuda"])
    parser.add_argument("--draws", type=int, default=4)
    options = parser.parse_args()
    with runnable(options.backend):
        print(table(options.backend, options.draws))
