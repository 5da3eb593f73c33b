"""Promises of the Triton launches of p2c_attention alone; tests/test_p2c_attention.py checks their results."""

import random
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from amuse_kernels import p2c_attention
from amuse_kernels.attention.inputs import AttentionInputs
from amuse_kernels.buffers import multiplies_as_tf32
from tests import global_state, triton_interpreter

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(triton_interpreter.requested(), reason="about compiled kernels")

HEADS, WIDTH = 2, 32


def arguments(lengths, queries, *, layout="bhld", dtype=torch.float16, **options):
    def tensor(length):
        if layout == "bhld":
            return torch.empty(2, HEADS, length, WIDTH, dtype=dtype)
        return torch.empty(2, length, HEADS, WIDTH, dtype=dtype).transpose(1, 2)

    count = len(lengths)
    attention = AttentionInputs(
        query=tensor(queries),
        keys=[tensor(n) for n in lengths],
        values=[tensor(n) for n in lengths],
        gates=torch.empty(2, HEADS, count),
        key_masks=[torch.ones(2, n, dtype=torch.bool) for n in lengths],
        query_groups=None,
        key_groups=[None] * count,
        relations=[0] * count,
        causal=[False] * count,
        joint=False,
        softmax_scale=0.2,
        dropout_p=0.0,
        seed=None,
    )
    return attention._replace(**options)


def launches(attention, arch=80):
    from amuse_kernels.attention.buffers import Gradients
    from amuse_kernels.attention.triton.plans import backward_launches, forward_launch

    query = attention.query
    batch, heads, queries, width = query.shape
    out = query.new_empty((batch, queries, heads, width)).transpose(1, 2)
    lse = torch.empty(batch, heads, queries, len(attention.keys))
    keys, values = map(torch.empty_like, attention.keys), map(torch.empty_like, attention.values)
    grads = Gradients(torch.empty_like(query), [*keys], [*values], torch.empty_like(attention.gates))
    return [
        forward_launch(attention, out, lse, arch),
        *backward_launches(attention, grads, torch.empty_like(out), lse, None, arch),
    ]


def test_lengths_and_layouts_do_not_recompile():
    from tests.ptx.emulator.triton_kernels import chip

    draw, compiled = random.Random(0), set()
    for _ in range(50):
        lengths = [draw.randint(1, 300) for _ in range(3)]
        for launch in launches(arguments(lengths, draw.randint(1, 200), layout=draw.choice(["bhld", "blhd"]))):
            jit = type(launch.kernel)

            def record(self, key, *_, tile=launch.constexprs):
                compiled.add((self.fn.__name__, str(tile), key))

            with chip(80), mock.patch.object(jit, "_do_compile", record):
                launch.kernel.warmup(*launch.args, grid=(1,), **launch.options)
    tiles = {key[:2] for key in compiled}
    assert len(compiled) == len(tiles), "compiled more than once for one choice of tiles"
    assert len(tiles) <= 12


@pytest.mark.parametrize("queries", [16, 500])
def test_one_launch_forward_and_at_most_two_backward(queries):
    assert len(launches(arguments([70, 0], queries))) == (2 if queries == 16 else 3)


def test_rows_that_start_anywhere_get_no_vector_loads():
    attention = arguments([20], 20)
    odd = torch.empty(2, HEADS, 20, WIDTH + 1, dtype=torch.float16)[..., 1:]
    assert launches(attention)[0].constexprs["UNIT"] == 8
    assert launches(attention._replace(query=odd))[0].constexprs["UNIT"] == 1


@pytest.mark.parametrize(
    ("where", "switch", "value", "expected"),
    [
        (None, None, None, "tf32x3"),
        (torch.backends.cuda.matmul, "fp32_precision", "tf32", "tf32"),
        (torch.backends.cuda.matmul, "allow_tf32", True, "tf32"),
        (torch.backends.cuda.matmul, "fp32_precision", "ieee", "ieee"),
        (torch.backends, "fp32_precision", "tf32", "tf32"),
    ],
)
def test_fp32_products_are_three_of_tf32_unless_torch_is_told_otherwise(where, switch, value, expected):
    with global_state.restored():
        if switch:
            setattr(where, switch, value)
        assert products_of(queries=70) == [expected] * 3
        assert multiplies_as_tf32() == (expected == "tf32")  # what the CUDA C++ backend reads


def test_fp32_products_are_exact_where_three_of_tf32_would_spill_and_on_amd():
    assert products_of(queries=70, arch=90) == ["tf32x3", "ieee", "tf32x3"]  # the queries' kernel spills on sm_90
    assert products_of(queries=70, arch="gfx942") == ["ieee"] * 3


def products_of(queries, arch=80):
    call = arguments([70], queries, dtype=torch.float32)
    return [launch.constexprs["PRECISION"] for launch in launches(call, arch)]


def test_rows_beyond_32_bits_are_refused():
    from amuse_kernels.attention.triton.plans import _strides

    assert _strides((1, 1, 3, 8), (0, 0, 2**29, 1), 1)
    with pytest.raises(ValueError, match=r"within 2\^31 elements, got shape \(1, 1, 4, 8\)"):
        _strides((1, 1, 4, 8), (0, 0, 2**29, 1), 1)


class Attend(torch.nn.Module):
    def forward(self, query, keys):
        return p2c_attention(query, keys, keys, dropout_p=0.1, seed=3, return_lse=True, backend="triton")


@torch.no_grad()  # torch's autograd itself aborts on CUDA tensors where torch was built without CUDA
def test_it_traces_on_cuda_tensors_without_a_gpu():
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode():
        query = torch.empty(2, HEADS, 5, WIDTH, device="cuda")
        keys = [torch.empty(2, HEADS, n, WIDTH, device="cuda") for n in (7, 3)]
        out, lse = Attend()(query, keys)
        graph = make_fx(Attend())(query, keys)
        gradients = torch.ops.amuse_kernels.p2c_attention_backward(
            *(out, None, None, lse, query, keys, keys, None, [None] * 2, None, [None] * 2),
            *([0, 0], [False, False], False, 0.2, 0.0, None),
        )
    assert out.device.type == lse.device.type == "cuda"
    assert out.transpose(1, 2).is_contiguous()
    assert lse.shape == (2, HEADS, 5, 2)
    assert "amuse_kernels.p2c_attention_forward.default" in [str(node.target) for node in graph.graph.nodes]
    assert gradients[0].shape == query.shape
    assert [g.shape for g in gradients[1]] == [k.shape for k in keys]


@torch.no_grad()
def test_it_compiles_and_exports_to_one_graph_on_cuda_tensors_without_a_gpu():
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    with FakeTensorMode(allow_non_fake_inputs=True):
        query = torch.empty(2, HEADS, 5, WIDTH, device="cuda")
        keys = [torch.empty(2, HEADS, n, WIDTH, device="cuda") for n in (7, 3)]
        out, _lse = torch.compile(Attend(), fullgraph=True, backend=backend)(query, keys)
        exported = torch.export.export(Attend(), (query, keys))
    assert out.shape == query.shape
    assert len(graphs) == 1
    assert "amuse_kernels.p2c_attention_forward.default" in [str(node.target) for node in exported.graph.nodes]


def test_fp64_on_a_gpu_is_for_the_reference():
    from amuse_kernels.dispatch import choose_backend, unavailable_reason

    with FakeTensorMode():
        assert choose_backend("p2c_attention", torch.empty(1, device="cuda"), None) == "triton"
        assert choose_backend("p2c_attention", torch.empty(1, device="cuda", dtype=torch.float64), None) == "reference"
    assert "fp64" in unavailable_reason("triton", "cuda", torch.float64)
