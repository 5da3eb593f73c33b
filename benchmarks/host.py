"""CPU cost of a call of p2c_attention on a machine with a GPU, up to the driver; needs no GPU.

    python -m benchmarks.host

Kernels of AMuSE's sizes run for a few microseconds, so an eager loop may well wait for Python. This times the launch
code of the GPU backends on CPU tensors (fp16, B 2, H 4, Lq 32, Lp 50 and 16, D 64, gates and masks), outputs
allocated, with the driver's own work left out: the launch, and what PyTorch's dispatcher and the argument checks take.
"""

from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton

from amuse_kernels.attention import cuda
from amuse_kernels.attention.inputs import AttentionInputs, check_attention
from amuse_kernels.attention.triton import plans as attention
from amuse_kernels.dispatch import native_module
from benchmarks.measure import alternate, machine
from tests.ptx.emulator.triton_kernels import chip

CALLS, REPEATS = 100, 40


def inputs() -> AttentionInputs:
    query, *keys = (torch.randn(2, 4, length, 64, dtype=torch.float16) for length in (32, 50, 16))
    masks = [torch.ones(2, key.shape[2], dtype=torch.bool) for key in keys]
    gates = torch.full((2, 4, 2), 1 / 3)
    return check_attention(query, keys, keys, gates=gates, key_masks=masks)


def runs() -> dict[str, Callable[[], object]]:
    given = inputs()
    query = given.query
    lse = torch.zeros(*query.shape[:3], 2)

    def both(module: Any) -> dict[str, Callable[[], object]]:
        return {
            "forward": lambda: module.p2c_attention_forward(given),
            "backward": lambda: module.p2c_attention_backward(query, None, None, lse, given),
        }

    def new_layout(run: Callable[[], object]) -> Callable[[], object]:
        def call() -> None:
            attention.forget_plans()
            run()

        return call

    found = {f"Triton, {name}": run for name, run in both(attention).items()}
    found |= {f"{name}, layout not seen before": new_layout(run) for name, run in found.items()}
    module = native_module()
    if module is not None and module.build_info()["cuda"]:
        found |= {f"CUDA C++, {name}": run for name, run in both(cuda).items()}
    return found


def without_a_driver() -> ExitStack:
    """Launches end where the driver would begin."""
    stack = ExitStack()
    stack.enter_context(chip(80))
    compiled = SimpleNamespace(function=None, packed_metadata=None, run=_nothing, launch_metadata=_nothing)

    def compile_nothing(self: Any, key: Any, _signature: Any, device: Any, *_rest: Any) -> Any:
        return self.device_caches[device][0].setdefault(key, compiled)

    stack.enter_context(mock.patch.object(triton.JITFunction, "_do_compile", compile_nothing))
    stack.enter_context(mock.patch.object(cuda, "run", _nothing))
    return stack


def _nothing(*_arguments: object) -> None:
    pass


def repeated(run: Callable[[], object]) -> Callable[[], None]:
    def call() -> None:
        for _ in range(CALLS):
            run()

    return call


def main() -> None:
    torch.set_num_threads(1)
    with without_a_driver():
        seconds = alternate({name: repeated(run) for name, run in runs().items()}, REPEATS)
    print(f"{machine()['processor']}, torch {torch.__version__}, triton {triton.__version__}; medians")
    for name, total in seconds.items():
        print(f"{name:45} {1e6 * total / CALLS:7.1f} us")


if __name__ == "__main__":
    main()
