"""Shared parts of the op definitions: the library, kernels by device, rules of autograd.

An op is defined by schema and implemented per device by calls into a kernel library; its derivative is a second op,
joined by an `autograd.Function` outside, which costs a fraction of `custom_op` per call and is skipped when no input
needs a gradient. On CUDA tensors an op runs Triton's kernels, or with `cuda_cpp` those in CUDA C++. Where a derivative
is differentiated again (`create_graph=True`, or dual numbers as its upstream), it comes from the reference.
"""

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from amuse_kernels.dispatch import has_tangent

library = torch.library.Library("amuse_kernels", "DEF")


def implement(package: str, kernels: Callable[[ModuleType], dict[str, Callable[..., Any]]]) -> None:
    """Give the ops of a package the kernels that its modules `cpu`, `cuda` and `triton` have.

    Args:
        package: Its name.
        kernels: From such a module to its functions by the name of the op.
    """
    on_cuda = kernels(importlib.import_module(f"{package}.cuda"))
    for name, kernel in kernels(importlib.import_module(f"{package}.cpu")).items():
        library.impl(name, kernel, "CPU")
        library.impl(name, _on_cuda(name, on_cuda[name], package, kernels), "CUDA")
        # torch's own fallback, which warns of a missing derivative, takes 20 us; derivatives are joined on outside.
        library.impl(name, torch.library.fallthrough_kernel, "Autograd")


def _on_cuda(
    name: str,
    cuda_kernel: Callable[..., Any],
    package: str,
    kernels: Callable[[ModuleType], dict[str, Callable[..., Any]]],
) -> Callable[..., Any]:
    """Imports triton, which is optional and slow to import, with the first call that needs it."""
    triton_kernel: Callable[..., Any] | None = None

    def run(*arguments: Any, cuda_cpp: bool = False) -> Any:
        nonlocal triton_kernel
        if cuda_cpp:
            return cuda_kernel(*arguments)
        if triton_kernel is None:
            triton_kernel = kernels(importlib.import_module(f"{package}.triton"))[name]
        return triton_kernel(*arguments)

    return run


def needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def needs_a_graph(*grad_outputs: Tensor | None) -> bool:
    """Inside a backward: whether its result is differentiated again, in reverse or (dual numbers) in forward mode."""
    return (torch.is_grad_enabled() and not torch.compiler.is_compiling()) or has_tangent(*grad_outputs)


def graph_gradients(
    reference: Callable[[], Sequence[Tensor]], grad_outputs: Sequence[Tensor | None], inputs: Sequence[Any]
) -> list[Tensor | None]:
    """Differentiable gradients of the reference's outputs; None for inputs that need none or are no tensors."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        outputs = reference()
    given = [(out, grad) for out, grad in zip(outputs, grad_outputs, strict=True) if grad is not None]
    used_outputs, used_grads = zip(*given, strict=True)
    wanted = [entry for entry in inputs if isinstance(entry, Tensor) and entry.requires_grad]
    grads = torch.autograd.grad(used_outputs, wanted, used_grads, create_graph=create_graph, allow_unused=True)
    found = iter(grads)
    return [next(found) if isinstance(entry, Tensor) and entry.requires_grad else None for entry in inputs]
