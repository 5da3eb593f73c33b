"""The promises on real hardware, `pytest -m gpu`, for each backend that has GPU kernels; skipped without a GPU."""

import os

import pytest
import torch

from amuse_kernels import adaptive_fusion, p2c_attention
from amuse_kernels.dispatch import BACKENDS, unavailable_reason
from tests import on_gpu
from tests.attention_cases import make_case
from tests.processes import run_module

ON_GPU = [name for name in BACKENDS if name != "reference" and not unavailable_reason(name, "cuda")]
PROMISES = ["tests/test_adaptive_fusion.py", "tests/test_p2c_attention.py"]

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use"),
]


def on_every_gpu_backend(test):
    for mark in (*needs_gpu, pytest.mark.parametrize("backend", ON_GPU)):
        test = mark(test)
    return test


@pytest.mark.parametrize("promises", PROMISES)
@on_every_gpu_backend
def test_promises(backend, promises, monkeypatch):
    monkeypatch.setenv("AMUSE_TEST_GPU", backend)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    print(run_module("pytest", "-q", promises, timeout=1800))


@pytest.mark.parametrize("normalization", ["per_source", "joint"])
@on_every_gpu_backend
def test_gradients_of_cuda_tensors_equal_those_of_the_cpu(normalization, backend):
    case = make_case(queries=70, lengths=(130, 9), head_dim=64, normalization=normalization, dtype=torch.float32)
    results = []
    for device, name in (("cuda", backend), ("cpu", "reference")):
        query, *tokens = (t.to(device).requires_grad_() for t in (case.query, *case.keys, *case.values))
        options = {
            "gates": case.options["gates"].to(device).requires_grad_(),
            "key_masks": [mask.to(device) for mask in case.options["key_masks"]],
            "normalization": normalization,
        }
        out = p2c_attention(query, tokens[:2], tokens[2:], **options, dropout_p=0.2, seed=5, backend=name)
        out.square().sum().backward()
        results.append([t.cpu() for t in (out.detach(), query.grad, *(t.grad for t in tokens), options["gates"].grad)])
    for gpu, cpu in zip(*results, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-4, atol=1e-4)


@on_every_gpu_backend
def test_calls_can_be_captured_in_a_cuda_graph(backend):
    query, key, value = (torch.randn(2, 2, 40, 32, device="cuda") for _ in range(3))
    descriptors, alpha = torch.randn(5, 3, 16, device="cuda"), torch.rand(5, 3, 3, device="cuda")

    def calls():
        attended = p2c_attention(query, [key], [value], dropout_p=0.3, seed=1, backend=backend)
        return attended, adaptive_fusion(descriptors, alpha, backend=backend)[0]

    calls()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = calls()
    for tensor in (query, key, value, descriptors, alpha):
        tensor.uniform_(0, 1)
    graph.replay()
    for replayed, expected in zip(captured, calls(), strict=True):
        assert torch.equal(replayed, expected)


def test_gpu_runs_cover_every_promise_that_the_interpreter_covers():
    with open("Makefile", encoding="utf-8") as file:
        [interpreted] = [line for line in file if line.startswith("INTERPRETED")]
    assert sorted(interpreted.split("=")[1].split()) == PROMISES
    assert "triton" in ON_GPU or not os.environ.get("CI")


def test_tensors_are_carried_with_their_strides():
    seen = []

    def kernel(first, others, number):
        seen.append([first.stride(), others[1], number])
        return first.transpose(0, 1), [others[0] * 2]

    strided = torch.randn(4, 12)[:, ::2]
    out, [double] = on_gpu.carried(kernel, "cpu")(strided, [torch.ones(3).expand(2, 3), None], 7)
    assert seen == [[(12, 2), None, 7]]
    assert out.stride() == (2, 12)
    torch.testing.assert_close(out, strided.T)
    assert double.tolist() == [[2.0] * 3] * 2
