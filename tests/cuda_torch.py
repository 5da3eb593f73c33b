"""`make cuda-torch`: the package beside a CUDA build of torch, on a machine that may have no driver.

Imports, runs the CPU backend, traces the CUDA backend on fake CUDA tensors, and shows what `backend="cuda"` says where
nothing can run on it. Exits with an error if any of it is not as it should be.
"""

from collections.abc import Callable

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import amuse_kernels
from amuse_kernels.dispatch import missing_gpu, native_module


def call(backend: str | None, device: str = "cpu", requires_grad: bool = True) -> list[torch.Tensor]:
    """Every op forward and backward; the outputs and the gradients."""
    results = []
    for name, inputs in {
        "adaptive_fusion": (torch.ones(4, 3, 8, device=device), torch.ones(4, 3, 3, device=device) / 2),
        "interpolation_coefficients": tuple(torch.randn(3, 4, 8, device=device).unbind()),
    }.items():
        inputs = [tensor.requires_grad_(requires_grad) for tensor in inputs]
        epsilon = () if name == "adaptive_fusion" else (0.3,)
        outputs = getattr(amuse_kernels, name)(*inputs, *epsilon, backend=backend)
        out = outputs[0] if isinstance(outputs, tuple) else outputs
        out.sum().backward()
        results += [out, *(tensor.grad for tensor in inputs)]
    return results


def main() -> None:
    native = native_module()
    assert native is not None, "the native library does not import"
    assert native.build_info()["cuda"], "the native library was built without CUDA"
    assert torch.version.cuda is not None, f"torch {torch.__version__} is no CUDA build"
    print(f"torch {torch.__version__} with CUDA {torch.version.cuda}, kernels by nvcc {native.build_info()['nvcc']}")

    for out, expected in zip(call("cpu"), call("reference"), strict=True):
        if out.dim() == 3:  # of fusion; the others are drawn anew
            torch.testing.assert_close(out, expected)
    print("backend='cpu': as the reference")

    with FakeTensorMode():
        for tensor in call("cuda", device="cuda"):
            assert tensor.device.type == "cuda"
    print("backend='cuda' on fake tensors: outputs and gradients on", tensor.device)

    if missing_gpu() is None:
        for tensor in call("cuda", device="cuda"):
            assert tensor.isfinite().all()
        print("backend='cuda': ran")
        return
    plan = native.cuda_interpolation_coefficients_forward(*(torch.ones(8).data_ptr(),) * 4, 1, 8, 0.1, 0)
    print(error_of(lambda: call("cuda"), amuse_kernels.BackendUnavailableError))
    print(error_of(lambda: plan.run(0, 0), RuntimeError))


def error_of(run: Callable[[], object], expected: type[Exception]) -> str:
    """What `run` raises, which has to name CUDA's error."""
    try:
        run()
    except expected as error:
        if "cudaError" in str(error):
            return f"{type(error).__name__}: {error}"
        raise
    raise SystemExit(f"expected {expected.__name__}, got no error")


if __name__ == "__main__":
    main()
