"""Runs the Triton backend on CPU tensors, in Triton's interpreter: for a process started with TRITON_INTERPRET=1.

Triton reads that variable when a kernel's module is imported, so interpreted tests and tests of compiled kernels need
separate processes: `TRITON_INTERPRET=1 pytest tests/test_adaptive_fusion.py` runs the promises on the kernels.
"""

import os
from typing import Any

import numpy as np


def requested() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def prepare() -> None:
    from amuse_kernels.attention.triton import plans
    from amuse_kernels.attention.triton.tiles import Tile

    _interpret_16_bits()
    # small, so that small cases take several tiles; the interpreter's time goes by operations, not by their size
    plans.choose_tile = lambda _: Tile(16, 16, 4, 1)


def _interpret_16_bits() -> None:
    """The interpreter keeps bf16 as its bits in uint16, truncates casts to it, and multiplies the bits in a dot.

    Here casts round to nearest even, dots take the values, and other arithmetic on bf16 is an error. Dots of 16-bit
    operands are rounded once: on tensor cores A B^T and B A^T are the same numbers, of numpy's sums they are not.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot
    binary, unary = InterpreterBuilder.binary_op, InterpreterBuilder.unary_op

    def is_bfloat16(handle: Any) -> bool:
        return handle.dtype.scalar == tl.bfloat16

    def widened(handle: Any) -> Any:
        return TensorHandle(_to_float(handle.data), tl.float32) if is_bfloat16(handle) else handle

    def cast_impl(self, source, to):
        if to.scalar == tl.bfloat16 and not is_bfloat16(source):
            return TensorHandle(_to_bfloat16(source.data.astype(np.float32)), tl.bfloat16)
        return cast(self, widened(source) if to.scalar != tl.bfloat16 else source, to)

    def create_dot(self, a, b, accumulator, *options):
        if a.dtype.scalar not in (tl.float16, tl.bfloat16):
            return dot(self, a, b, accumulator, *options)
        products = np.matmul(widened(a).data, widened(b).data, dtype=np.float64)
        return TensorHandle(products.astype(accumulator.data.dtype) + accumulator.data, accumulator.dtype.scalar)

    def binary_op(self, left, right, operation):
        if is_bfloat16(left):
            raise NotImplementedError(f"{operation.__name__} of bf16 in the interpreter")
        return binary(self, left, right, operation)

    def unary_op(self, argument, operation):
        if is_bfloat16(argument):
            raise NotImplementedError(f"{operation.__name__} of bf16 in the interpreter")
        return unary(self, argument, operation)

    InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot = cast_impl, create_dot
    InterpreterBuilder.binary_op, InterpreterBuilder.unary_op = binary_op, unary_op


def _to_float(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded).reshape(values.shape)
