"""Promises of the ops for CUDA tensors, seen without a GPU: on tensors that have a device and no memory."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from amuse_kernels import adaptive_fusion, interpolation_coefficients
from tests import triton_interpreter
from tests.backends import kernels

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(triton_interpreter.requested(), reason="about compiled kernels")

OPS = torch.ops.amuse_kernels
OPTIONS = {
    "plain": {},
    "every option, per_source": {"every": True},
    "every option, joint": {"every": True, "joint": True},
    "per_source, several tiles": {"queries": 500},
    "joint, several tiles": {"queries": 500, "joint": True},
}


def attention_calls(device, every=False, joint=False, queries=6):
    """(op, arguments) of forward and backward."""
    query = torch.empty(2, 2, queries, 32, device=device)
    keys = [torch.empty(2, 2, queries, 32, device=device) for _ in range(2)]
    gates = torch.empty(2, 2, 2, device=device) if every else None
    masks = [torch.empty(2, queries, dtype=torch.bool, device=device) if every else None, None]
    groups = torch.empty(2, queries, dtype=torch.int64, device=device) if every else None
    seed = torch.empty((), dtype=torch.int64, device=device) if every else None
    options = ([1, 2] if every else [0, 0], [every, False], joint, 0.3, 0.25 if every else 0.0, seed)
    arguments = (query, keys, keys, gates, masks, groups, [groups, groups], *options)
    lse = torch.empty((2, 2, queries) if joint else (2, 2, queries, 2), device=device)
    upstream = (query, lse if every else None, query if joint else None, lse)
    return [(OPS.p2c_attention_forward, arguments), (OPS.p2c_attention_backward, (*upstream, *arguments))]


def fusion_calls(device):
    x, present = torch.empty(4, 3, 5, device=device), torch.empty(4, 3, dtype=torch.bool, device=device)
    alpha, wide = torch.empty(4, 3, 3, device=device), torch.empty(4, 3, 3, 5, device=device)
    gate = (torch.empty(6, 2, 5, device=device), torch.empty(6, device=device))
    calls = []
    for inputs in ((x, alpha, None, None, present), (x, wide, None, None, None), (x, None, *gate, present)):
        grad_alpha = wide if inputs[1] is wide else alpha
        calls += [(OPS.adaptive_fusion_forward, inputs), (OPS.adaptive_fusion_backward, (x, grad_alpha, *inputs))]
    rows = torch.empty(4, 6, device=device)
    calls.append((OPS.interpolation_coefficients_forward, (rows, rows, rows, 0.5)))
    calls.append((OPS.interpolation_coefficients_backward, (rows, rows, rows, rows, 0.5)))
    return calls


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS)
def test_attention_passes_opcheck_on_cuda_tensors(options):
    with FakeTensorMode():
        for op, arguments in attention_calls("cuda", **OPTIONS[options]):
            torch.library.opcheck(op.default, arguments)


@torch.no_grad()
def test_fusion_passes_opcheck_on_cuda_tensors():
    with FakeTensorMode():
        for op, arguments in fusion_calls("cuda"):
            torch.library.opcheck(op.default, arguments)


def test_launches_depend_on_no_value():
    """So a call never waits for the GPU, and a CUDA graph can hold it. Meta tensors have no values to be read."""
    from tests.ptx.package.triton_launches import recorded

    run = kernels("triton")
    calls = [call for options in OPTIONS.values() for call in attention_calls("meta", **options)] + fusion_calls("meta")
    with recorded(80) as launches:
        for op, arguments in calls:
            run[op._qualified_op_name.partition("::")[2]](*arguments)
    assert len(launches) >= len(calls)


class Fuse(torch.nn.Module):
    def forward(self, descriptors, weight, bias):
        fused, alpha = adaptive_fusion(descriptors, pair_weight=weight, pair_bias=bias, backend="triton")
        return fused, alpha, interpolation_coefficients(*descriptors.unbind(1), 0.2, backend="triton")


@torch.no_grad()
def test_fusion_compiles_and_exports_to_one_graph_on_cuda_tensors():
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = [torch.empty(*shape, device="cuda") for shape in ((4, 3, 5), (6, 2, 5), (6,))]
        fused, alpha, coefficients = torch.compile(Fuse(), fullgraph=True, backend=backend)(*inputs)
        exported = torch.export.export(Fuse(), tuple(inputs))
    assert len(graphs) == 1
    assert (fused.shape, alpha.shape, coefficients.shape) == ((4, 3, 5), (4, 3, 3), (4, 5))
    called = {str(node.target) for node in exported.graph.nodes}
    assert {f"amuse_kernels.{op}_forward.default" for op in ("adaptive_fusion", "interpolation_coefficients")} <= called
