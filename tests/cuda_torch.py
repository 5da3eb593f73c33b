"""`make cuda-torch`: the package with a CUDA build of torch, on a machine that may have no driver.

Imports, runs the CPU backend, traces the CUDA backend on fake CUDA tensors, and shows what `backend="cuda"` says where
nothing can run on it. Fails if any of it is not as it should be.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import amuse_kernels
from amuse_kernels.dispatch import missing_gpu, native_module


def compute(backend: str, device: str) -> list[Tensor]:
    """Every op, forward and backward: the outputs and the gradients."""
    query, key = (torch.linspace(-1, 1, 48, device=device).reshape(1, 2, 3, 8).requires_grad_() for _ in range(2))
    out = amuse_kernels.p2c_attention(query, [key], [key * 2], backend=backend)
    leaves = [
        torch.linspace(0, 1, 24, device=device).reshape(2, 3, 4).requires_grad_(),
        torch.ones(2, 3, 3, device=device),
    ]
    fused, alpha = amuse_kernels.adaptive_fusion(*leaves, backend=backend)
    a = leaves[0].flatten(0, 1)
    coefficients = amuse_kernels.interpolation_coefficients(a, a.flip(0), a * a, 0.3, backend=backend)
    (out.sum() + fused.sum() + coefficients.sum()).backward()
    return [out, fused, alpha, coefficients, query.grad, key.grad, leaves[0].grad]


@torch.no_grad()  # torch's autograd itself needs a device
def trace() -> list[Tensor]:
    """The ops and their derivatives on fake CUDA tensors."""
    ops = torch.ops.amuse_kernels
    with FakeTensorMode():
        query = torch.empty(1, 2, 3, 8, device="cuda")
        out, lse = amuse_kernels.p2c_attention(query, [query], [query], return_lse=True, backend="cuda")
        options = (None, [None], None, [None], [0], [False], False, 1.0, 0.0, None)
        attention = ops.p2c_attention_backward(out, lse, out, lse, query, [query], [query], *options, cuda_cpp=True)
        descriptors, alpha = torch.empty(2, 3, 4, device="cuda"), torch.empty(2, 3, 3, device="cuda")
        fused, used = amuse_kernels.adaptive_fusion(descriptors, alpha, backend="cuda")
        grads = ops.adaptive_fusion_backward(fused, None, descriptors, alpha, None, None, None, cuda_cpp=True)
        a = descriptors[0]
        coefficients = amuse_kernels.interpolation_coefficients(a, a, a, 0.3, backend="cuda")
        more = ops.interpolation_coefficients_backward(coefficients, a, a, a, 0.3, cuda_cpp=True)
    return [out, attention[0], *attention[1], *attention[2], fused, used, coefficients, *grads[:2], *more]


def error_of(run: Callable[[], object], expected: type[Exception]) -> str:
    """The error that `run` raises, as text; it has to name CUDA's."""
    try:
        run()
    except expected as error:
        if "cudaError" in str(error):
            return f"{type(error).__name__}: {error}"
        raise
    raise SystemExit(f"expected {expected.__name__}, got no error")


def main() -> None:
    native = native_module()
    assert native is not None, "the native library does not import"
    assert native.build_info()["cuda"], "the native library was built without CUDA"
    assert torch.version.cuda is not None, f"torch {torch.__version__} is no CUDA build"
    print(f"torch {torch.__version__} with CUDA {torch.version.cuda}, kernels by nvcc {native.build_info()['nvcc']}")

    expected = compute("reference", "cpu")
    torch.testing.assert_close(compute("cpu", "cpu"), expected)
    print("backend='cpu': as the reference")

    assert {tensor.device.type for tensor in trace()} == {"cuda"}
    print("backend='cuda': traced on fake tensors, both directions")

    if missing_gpu() is None:
        torch.testing.assert_close([tensor.cpu() for tensor in compute("cuda", "cuda")], expected)
        print("backend='cuda': as the reference")
        return
    plan = native.cuda_interpolation_coefficients_forward(*(torch.ones(8).data_ptr(),) * 4, 1, 8, 0.1, 0)
    print(error_of(lambda: compute("cuda", "cpu"), amuse_kernels.BackendUnavailableError))
    print(error_of(lambda: plan.run(0, 0), RuntimeError))


if __name__ == "__main__":
    main()
