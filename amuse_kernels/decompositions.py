"""The fused ops in terms of ATen, for exporters: the reference of each.

Importing this registers them with PyTorch's own decompositions, where `torch.onnx.export` looks them up. For
`torch.export`, pass `DECOMPOSITIONS` on: `program.run_decompositions({**default_decompositions(), **DECOMPOSITIONS})`.
torch.compile is not affected. Backward ops have none.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition

from amuse_kernels.attention import ops as attention_ops  # noqa: F401  (defines the ops)
from amuse_kernels.attention import reference as attention_reference
from amuse_kernels.attention.inputs import AttentionInputs
from amuse_kernels.fusion import ops as fusion_ops  # noqa: F401
from amuse_kernels.fusion import reference as fusion_reference
from amuse_kernels.interpolation import ops as interpolation_ops  # noqa: F401
from amuse_kernels.interpolation import reference as interpolation_reference

_ops: Any = torch.ops.amuse_kernels


def _attention(*inputs: Any, cuda_cpp: bool = False) -> tuple[Tensor, Tensor]:
    return attention_reference.p2c_attention(AttentionInputs(*inputs))


def _fusion(*inputs: Any, cuda_cpp: bool = False) -> tuple[Tensor, Tensor]:
    return fusion_reference.adaptive_fusion(*inputs)


def _interpolation(*inputs: Any, cuda_cpp: bool = False) -> Tensor:
    return interpolation_reference.interpolation_coefficients(*inputs)


DECOMPOSITIONS: dict[torch._ops.OpOverload, Callable[..., Any]] = {
    _ops.p2c_attention_forward.default: _attention,
    _ops.adaptive_fusion_forward.default: _fusion,
    _ops.interpolation_coefficients_forward.default: _interpolation,
}

for _op, _decomposition in DECOMPOSITIONS.items():
    register_decomposition(_op)(_decomposition)
