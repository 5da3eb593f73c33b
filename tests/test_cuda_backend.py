"""backend="cuda" on machines without a GPU: it traces, and says clearly why it cannot run."""

import importlib.util

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from amuse_kernels import BackendUnavailableError, adaptive_fusion, interpolation_coefficients, p2c_attention
from amuse_kernels.dispatch import choose_backend, missing_gpu, native_module, unavailable_reason

ROWS, MODALITIES, WIDTH = 4, 3, 16

needs_cuda_build = pytest.mark.skipif(
    native_module() is None or not native_module().build_info()["cuda"],
    reason="the native library was built without CUDA",
)


class Fuse(torch.nn.Module):
    def forward(self, descriptors, alpha, a):
        fused, used = adaptive_fusion(descriptors, alpha, backend="cuda")
        return fused, used, interpolation_coefficients(a, 2 * a, a, 0.3, backend="cuda")


def fake_inputs():
    descriptors = torch.empty(ROWS, MODALITIES, WIDTH, device="cuda")
    return (
        descriptors,
        torch.empty(ROWS, MODALITIES, MODALITIES, device="cuda"),
        torch.empty(ROWS, WIDTH, device="cuda"),
    )


def test_tensors_on_the_cpu_are_refused_and_a_missing_gpu_is_named():
    with pytest.raises(BackendUnavailableError) as error:
        adaptive_fusion(torch.ones(2, 3, 4), torch.ones(2, 3, 3), backend="cuda")
    message = str(error.value)
    assert message.startswith("backend='cuda' cannot run adaptive_fusion: it runs on cuda tensors, these are on cpu")
    if missing_gpu() is not None:
        assert message.endswith(f"this machine has no usable GPU: {missing_gpu()}")
        assert "cudaError" in message


@needs_cuda_build
@torch.no_grad()  # torch's autograd itself aborts on CUDA tensors where torch was built without CUDA
def test_it_traces_on_cuda_tensors_without_a_gpu():
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode():
        descriptors, alpha, a = fake_inputs()
        fused, used, coefficients = Fuse()(descriptors, alpha, a)
        graph = make_fx(Fuse())(descriptors, alpha, a)
        gradients = torch.ops.amuse_kernels.adaptive_fusion_backward(
            fused, None, descriptors, alpha, None, None, None, cuda_cpp=True
        )
    assert fused.device.type == used.device.type == coefficients.device.type == "cuda"
    assert fused.shape == descriptors.shape
    calls = [node for node in graph.graph.nodes if "amuse_kernels" in str(node.target)]
    assert len(calls) == 2
    assert all(node.kwargs == {"cuda_cpp": True} for node in calls)
    assert [gradient.shape for gradient in gradients[:2]] == [descriptors.shape, alpha.shape]


@needs_cuda_build
@torch.no_grad()
def test_attention_traces_on_cuda_tensors_without_a_gpu():
    with FakeTensorMode():
        query, key = (torch.empty(2, 4, length, WIDTH, device="cuda", dtype=torch.float16) for length in (5, 7))
        out, lse = p2c_attention(query, [key], [key], dropout_p=0.1, seed=3, return_lse=True, backend="cuda")
        gradients = torch.ops.amuse_kernels.p2c_attention_backward(
            *(
                out,
                None,
                None,
                lse,
                query,
                [key],
                [key],
                None,
                [None],
                None,
                [None],
                [0],
                [False],
                False,
                0.2,
                0.0,
                None,
            ),
            cuda_cpp=True,
        )
    assert out.device.type == lse.device.type == "cuda"
    assert lse.shape == (2, 4, 5, 1)
    assert [gradients[0].shape, gradients[1][0].shape] == [query.shape, key.shape]


@needs_cuda_build
@torch.no_grad()
def test_it_compiles_to_one_graph_on_cuda_tensors_without_a_gpu():
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = fake_inputs()
        torch.compile(Fuse(), fullgraph=True, backend=backend)(*inputs)
    assert len(graphs) == 1


@needs_cuda_build
def test_a_launch_without_a_driver_is_an_error_with_cudas_name_for_it():
    if missing_gpu() is None:
        pytest.skip("this machine has a GPU")
    native = native_module()
    plan = native.cuda_interpolation_coefficients_forward(*(torch.ones(1, 8),) * 4, 0.1)
    with pytest.raises(RuntimeError, match=r"cudaError\w+ \(.+\)"):
        plan.run(0, 0)


@needs_cuda_build
def test_unsupported_calls_are_errors_before_any_launch():
    native = native_module()
    with pytest.raises(RuntimeError, match="cudaErrorInvalidValue"):
        native.cuda_interpolation_coefficients_forward(*(torch.ones(1, 8, dtype=torch.float64),) * 4, 0.1)


def test_triton_comes_first_on_a_gpu_and_fp64_has_no_kernel():
    with FakeTensorMode():
        tensor = torch.empty(1, device="cuda")
        found = choose_backend("adaptive_fusion", tensor, None)
    if importlib.util.find_spec("triton"):
        assert found == "triton"
    else:
        assert found == ("reference" if unavailable_reason("cuda", "cuda") else "cuda")
    assert "fp64" in unavailable_reason("cuda", "cuda", torch.float64)
