"""Building a model of a configuration that came with a file: the file's weights say how large it may become."""

import math
from typing import Any

from torch import Tensor, ops
from torch.utils._python_dispatch import TorchDispatchMode

# a model is built once or, around a pretrained encoder, twice, and has tables and masks that no file keeps
TIMES, NUMBERS_BESIDE, TENSORS_BESIDE = 4, 2**24, 2**10
_BY_SHAPE = {ops.aten.empty, ops.aten.zeros, ops.aten.ones, ops.aten.full, ops.aten.rand, ops.aten.randn}


class AllocationLimit(TorchDispatchMode):
    """Inside, tensors are made until they are more, or have more numbers, than the weights of a file allow.

    Raises:
        ValueError: In place of the allocation that would go beyond.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.numbers = TIMES * sum(tensor.numel() for tensor in weights.values()) + NUMBERS_BESIDE
        self.tensors = TIMES * len(weights) + TENSORS_BESIDE
        self.made_numbers = self.made_tensors = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket in _BY_SHAPE:
            self.made_tensors += 1
            self.made_numbers += math.prod(args[0])
            if self.made_tensors > self.tensors or self.made_numbers > self.numbers:
                raise ValueError(f"expected at most {self.tensors} tensors of {self.numbers} numbers for such weights")
        return function(*args, **(kwargs or {}))

    def check_integers(self, tree: Any) -> None:
        """Refuses a JSON tree with an integer that no size in such a model can be, such as a number of classes."""
        for entry in tree.values() if isinstance(tree, dict) else tree:
            if isinstance(entry, dict | list):
                self.check_integers(entry)
            elif isinstance(entry, int) and entry > self.numbers:
                raise ValueError(f"expected integers up to {self.numbers} for such weights, got {entry}")
