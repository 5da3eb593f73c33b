"""The inputs of p2c_attention in the form that the native module reads."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from amuse_kernels.buffers import dense, int64, rows_dense
from amuse_kernels.dropout import drop_threshold
from amuse_kernels.native import module


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
