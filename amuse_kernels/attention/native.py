"""The inputs of p2c_attention in the form that the native module reads."""

from typing import Any

from amuse_kernels.attention.inputs import AttentionInputs
from amuse_kernels.buffers import dense, int64, rows_dense
from amuse_kernels.dropout import drop_threshold
from amuse_kernels.native import module


def native_inputs(inputs: AttentionInputs, *, seed: int = 0, num_threads: int = 0) -> Any:
    """The native module's `AttentionInputs`, which forward and backward share.

    Args:
        inputs: Of the op.
        seed, num_threads: Of the CPU kernels, which take them as numbers.
    """
    related = any(inputs.relations)
    packing: tuple[Any, ...] = (None, (), 0, ())
    if inputs.packed:
        packing = (*dense(inputs.cu_seq_q), dense(*inputs.cu_seq_k or ()), inputs.max_q, inputs.max_k)
    return module().AttentionInputs(
        rows_dense(inputs.query),
        [rows_dense(key) for key in inputs.keys],
        [rows_dense(value) for value in inputs.values],
        inputs.gates,
        dense(*inputs.key_masks),
        int64(inputs.query_groups) if related else None,
        [int64(group) if related else None for group in inputs.key_groups],
        inputs.relations,
        inputs.causal,
        inputs.joint,
        inputs.softmax_scale,
        inputs.dropout_p,
        drop_threshold(inputs.dropout_p),
        seed,
        num_threads,
        *packing,
    )
