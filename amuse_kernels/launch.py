"""One kernel launch as a value: run on a GPU, interpreted, compiled ahead of time or given to an emulator alike."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch


class Launch(NamedTuple):
    """A kernel with its grid, arguments and options.

    Attributes:
        kernel: A function under `triton.jit`.
        grid: Programs along axis 0.
        args: Positional arguments: tensors, numbers, None, and tuples of tensors or numbers.
        constexprs: Compile-time arguments by name.
        num_warps, num_stages: Triton's launch options.
        max_registers: The most that a thread may have. None leaves it to ptxas, which may spill a few for more warps.
    """

    kernel: Any
    grid: int
    args: tuple[Any, ...]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int
    max_registers: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the launch."""
        limit = {} if self.max_registers is None else {"maxnreg": self.max_registers}
        return {**self.constexprs, "num_warps": self.num_warps, "num_stages": self.num_stages, **limit}

    def run(self, device: torch.device) -> None:
        """Launch on the current stream of `device`; an empty grid launches nothing."""
        if self.grid == 0:
            return
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                self.kernel[(self.grid,)](*self.args, **self.options)
        else:
            self.kernel[(self.grid,)](*self.args, **self.options)


def architecture(device: torch.device) -> int | str:
    """Compute capability of an NVIDIA GPU as an integer, such as 80 or 90, or an AMD GPU's name, such as "gfx942".

    80 for CPU tensors, which are interpreted.
    """
    if device.type != "cuda":
        return 80
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def pack(numbers: Sequence[int]) -> tuple[int, ...]:
    """Sizes or strides as a tuple argument of a kernel, which reads them back with `>> 2`.

    Triton recompiles for an integer in a tuple that is 1 or a multiple of 16, in spite of do_not_specialize; 4 n + 2 is
    neither.
    """
    return tuple([4 * number + 2 for number in numbers])
