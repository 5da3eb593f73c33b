"""The package's Triton attention kernels as subjects of mutation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from amuse_kernels.attention.buffers import Gradients
from amuse_kernels.attention.inputs import AttentionInputs
from amuse_kernels.attention.triton import plans as attention
from amuse_kernels.attention.triton.tiles import Tile
from amuse_kernels.fusion import triton as fusion_triton
from amuse_kernels.interpolation import triton as interpolation_triton
from amuse_kernels.launch import Launch
from tests.ptx.emulator import launch as emulator
from tests.ptx.emulator.fixtures import cases
from tests.ptx.emulator.mutation import Outputs
from tests.ptx.emulator.poison import poisoned
from tests.ptx.package.attention_calls import AttentionCall
from tests.ptx.package.fusion_calls import FusionCall
from tests.ptx.package.triton_launches import recorded


def forward(problem: cases.Problem, arch: int = 80) -> tuple[list[emulator.Launch], Outputs]:
    """The package's kernel with one tile for all lengths, over the problem's keys in two streams."""

    inputs = _two_streams(problem)
    out, lse = poisoned(inputs.query.shape, inputs.query.dtype), poisoned(inputs.query.shape[:3])
    attention.forget_plans()
    with mock.patch.object(attention, "choose_tile", return_value=Tile(64, 32, 4, 2)):
        launch = attention.forward_launch(inputs, out, lse, arch)
    return [_of_package(launch, arch)], {"o": out[0], "lse": lse[0]}


def backward(problem: cases.Problem, arch: int = 80) -> tuple[list[emulator.Launch], Outputs]:
    """The package's kernel for a tile that holds all queries, which here are at most 128."""

    inputs = _two_streams(problem)
    dq, dk, dv = (poisoned((1, *tensor.shape), tensor.dtype) for tensor in (problem.q, problem.k, problem.v))
    n = problem.k.shape[1] // 2
    grads = Gradients(dq, [dk[:, :, :n], dk[:, :, n:]], [dv[:, :, :n], dv[:, :, n:]], torch.empty(0))
    lse = problem.reference()["lse"].float()[None]
    attention.forget_plans()
    with mock.patch.object(attention, "choose_tile", return_value=Tile(128, 32, 8, 2)):
        [launch] = attention.backward_launches(inputs, grads, problem.do[None], lse, None, arch)
    return [_of_package(launch, arch)], {"dq": dq[0], "dk": dk[0], "dv": dv[0]}


def forward_launch(inputs: AttentionInputs, arch: int = 80) -> tuple[emulator.Launch, Tensor, Tensor]:
    """The package's kernel for any call, with one tile for all lengths; its launch, out and lse."""
    out = poisoned(inputs.query.shape, inputs.query.dtype)
    lse = poisoned((*inputs.query.shape[:3], *([] if inputs.joint else [len(inputs.keys)])))
    attention.forget_plans()
    with mock.patch.object(attention, "choose_tile", return_value=_tile(64, inputs)):
        launch = attention.forward_launch(inputs, out, lse, arch)
    return _of_package(launch, arch), out, lse


def backward_launches(
    call: AttentionCall, lse: Tensor, queries: int, arch: int = 80
) -> tuple[list[emulator.Launch], Gradients]:
    """The package's kernels for any call, with tiles of so many queries; their launches and the gradients."""
    inputs = call.inputs
    gates = torch.empty(0) if inputs.gates is None else poisoned(inputs.gates.shape)
    grads = Gradients(
        poisoned(inputs.query.shape, inputs.query.dtype),
        [poisoned(key.shape, key.dtype) for key in inputs.keys],
        [poisoned(value.shape, value.dtype) for value in inputs.values],
        gates,
    )
    attention.forget_plans()
    with mock.patch.object(attention, "choose_tile", return_value=_tile(queries, inputs)):
        launches = attention.backward_launches(inputs, grads, call.grad_out, lse, call.grad_lse, arch)
    return [_of_package(launch, arch) for launch in launches], grads


def _tile(queries: int, inputs: AttentionInputs) -> Tile:
    """One with three TF32 products where inputs are fp32."""
    if inputs.query.dtype == torch.float32:
        return Tile(queries, 32, 4, 1, products="tf32x3")
    return Tile(queries, 32, 4, 2)


def fusion(call: FusionCall, arch: int = 80) -> tuple[list[emulator.Launch], Callable[[], list[Tensor]]]:
    """The launches of a call, forward and backward, and its results once they have run."""
    with recorded(arch) as launches:
        results = call.results(fusion_triton)
    of_gate = [launch.args[2:4] for launch in launches if launch.kernel is fusion_triton.fusion_weight_backward]
    for tensor in [*results, *(tensor for pair in of_gate for tensor in pair)]:
        tensor.fill_(torch.nan)

    def completed() -> list[Tensor]:
        """With PyTorch's sums of what the last kernel leaves."""
        for grad_logits, partial in of_gate:
            diagonal = torch.eye(grad_logits.shape[-1], dtype=torch.bool)
            results[-2:] = partial.sum(0), grad_logits.sum(0)[~diagonal]
        return results

    return [_of_package(launch, arch) for launch in launches], completed


def interpolation(call: Callable[[Any], list[Tensor]], arch: int = 80) -> tuple[list[emulator.Launch], list[Tensor]]:
    """The launches of a call, forward and backward, and the tensors that they write."""
    with recorded(arch) as launches:
        results = call(interpolation_triton)
    for tensor in results:
        tensor.fill_(torch.nan)
    return [_of_package(launch, arch) for launch in launches], results


def _two_streams(problem: cases.Problem) -> AttentionInputs:
    """One softmax over two halves of the keys, all of them visible, is attention over all keys."""

    n = problem.k.shape[1] // 2
    keys = [problem.k[None, :, :n], problem.k[None, :, n:]]
    return AttentionInputs(
        query=problem.q[None],
        keys=keys,
        values=[problem.v[None, :, :n], problem.v[None, :, n:]],
        gates=None,
        key_masks=[torch.ones(1, key.shape[2], dtype=torch.bool) for key in keys],
        query_groups=None,
        key_groups=[None, None],
        relations=[0, 0],
        causal=[False, False],
        joint=True,
        softmax_scale=cases.HEAD_DIM**-0.5,
        dropout_p=0.0,
        seed=None,
    )


def _of_package(launch: Launch, arch: int) -> emulator.Launch:
    name, grid = launch.kernel.fn.__name__, (launch.grid,)
    return cases.of_triton(name, launch.kernel, grid, [*launch.args], [], arch, **launch.options)
