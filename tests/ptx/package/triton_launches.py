"""The launches of a call of the package's Triton backend, without a GPU: recorded, or run in the emulator."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch.utils._pytree import tree_leaves

from tests.ptx.emulator.report import Report
from tests.ptx.emulator.triton_kernels import launch_triton


@contextlib.contextmanager
def _launches_to(handle: Callable[[Any], None], arch: int | str) -> Iterator[None]:
    from amuse_kernels.attention.triton import plans as attention
    from amuse_kernels.launch import Launch

    def run(launch: Any, _device: torch.device) -> None:
        if launch.grid:
            handle(launch)

    with mock.patch.object(Launch, "run", run), mock.patch.object(attention, "architecture", return_value=arch):
        yield


@contextlib.contextmanager
def recorded(arch: int | str) -> Iterator[list[Any]]:
    """Inside, launches of calls on CPU tensors are not run but listed, as they would be on `arch`."""
    launches: list[Any] = []
    with _launches_to(launches.append, arch):
        yield launches


@contextlib.contextmanager
def emulated(arch: int, seed: int = 0, readonly: Sequence[torch.Tensor] = ()) -> Iterator[list[Report]]:
    """Inside, calls on CPU tensors run in the emulator, compiled for `arch`; yields the reports, one per launch.

    Args:
        readonly: Tensors that no kernel may write.
    """
    reports: list[Report] = []
    addresses = {tensor.data_ptr() for tensor in readonly if tensor.numel()}

    def run(launch: Any) -> None:
        given = [argument for argument in tree_leaves(launch.args) if isinstance(argument, torch.Tensor)]
        protected = [tensor for tensor in given if tensor.data_ptr() in addresses]
        options = {"arch": arch, "seed": seed, "readonly": protected, **launch.options}
        reports.append(launch_triton(launch.kernel, launch.grid, *launch.args, **options))

    with _launches_to(run, arch):
        yield reports
