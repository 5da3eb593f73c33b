"""The precision of sums and losses."""

import torch
from torch import Tensor


def at_least_fp32(tensor: Tensor) -> Tensor:
    """fp16 and bf16 as fp32, in which sums and logarithms are taken; fp32 and fp64 as they are."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
