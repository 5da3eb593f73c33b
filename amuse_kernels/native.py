"""What the glue of the native kernels shares, those of the CPU and those of CUDA: codes, sizes and addresses."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from amuse_kernels.buffers import dense, int64, rows_dense
from amuse_kernels.dispatch import native_module
from amuse_kernels.dropout import drop_threshold

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # csrc/dtype.h
SCALAR, ELEMENTWISE, GATE = 0, 1, 2  # AlphaKind in csrc/fusion.h


def module() -> ModuleType:
    found = native_module()
    if found is None:
        raise RuntimeError("the native library is not built; `python -m amuse_kernels.info` says why")
    return found


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def fusion_sizes(descriptors: Tensor, alpha: Tensor | None) -> tuple[int, ...]:
    """n, m, d, stride_n, stride_m, dtype, alpha_kind; descriptors `(N, M, d)`."""
    kind = GATE if alpha is None else SCALAR if alpha.dim() == 3 else ELEMENTWISE
    return *descriptors.shape, descriptors.stride(0), descriptors.stride(1), DTYPES[descriptors.dtype], kind


def interpolation_sizes(a: Tensor, epsilon: float) -> tuple[int, int, float, int]:
    """n, d, epsilon, dtype; `a` `(N, d)`."""
    return *a.shape, epsilon, DTYPES[a.dtype]


def attention_inputs(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    gates: Tensor | None,
    key_masks: Sequence[Tensor | None],
    query_groups: Tensor | None,
    key_groups: Sequence[Tensor | None],
    relations: Sequence[int],
    causal: Sequence[bool],
    joint: bool,
    softmax_scale: float,
    dropout_p: float,
    *,
    seed: int = 0,
    num_threads: int = 0,
) -> Any:
    """What both directions share, in the form that the native module reads: see its `AttentionInputs`."""
    if any(relations):
        query_groups, key_groups = int64(query_groups), [*map(int64, key_groups)]
    return module().AttentionInputs(
        rows_dense(query),
        [*map(rows_dense, keys)],
        [*map(rows_dense, values)],
        gates,
        dense(*key_masks),
        query_groups,
        key_groups,
        relations,
        causal,
        joint,
        softmax_scale,
        dropout_p,
        drop_threshold(dropout_p),
        seed,
        num_threads,
    )
