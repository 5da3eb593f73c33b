"""Slow, exact arithmetic that the opcode tests compare with: rational numbers, rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch

from .. import run
from .snippets import kernel

FORMATS = {"f16": (5, 10), "bf16": (8, 7), "tf32": (8, 10), "f32": (8, 23), "f64": (11, 52), "e5m2": (5, 2)}
INTEGERS = {f"{sign}{bits}": (sign == "s", bits) for sign in "us" for bits in (8, 16, 32, 64)}


def value(bits: int, name: str) -> Fraction | float:
    """The number that a bit pattern encodes; float for NaN, infinities and -0."""
    exponent_bits, mantissa_bits = FORMATS[name]
    sign = -1 if bits >> (exponent_bits + mantissa_bits) & 1 else 1
    exponent, mantissa = bits >> mantissa_bits & ((1 << exponent_bits) - 1), bits & ((1 << mantissa_bits) - 1)
    if exponent == (1 << exponent_bits) - 1:
        return math.nan if mantissa else sign * math.inf
    if exponent == 0 and mantissa == 0:
        return sign * 0.0
    shift = max(exponent, 1) - (1 << (exponent_bits - 1)) + 1 - mantissa_bits
    return sign * Fraction(mantissa + (1 << mantissa_bits if exponent else 0)) * Fraction(2) ** shift


def whole(x: Fraction, mode: str) -> int:
    """x rounded to an integer."""
    low = math.floor(x)
    if mode[:2] == "rm":
        return low
    if mode[:2] == "rp":
        return math.ceil(x)
    if mode[:2] == "rz":
        return math.trunc(x)
    if mode == "rna":
        return int(math.copysign(math.floor(abs(x) + Fraction(1, 2)), x))
    rest = x - low
    return low + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and low % 2 == 1))


def encode(x: Fraction | float, name: str, mode: str = "rn") -> int:
    """The bits of x rounded to a format."""
    exponent_bits, mantissa_bits = FORMATS[name]
    infinity = ((1 << exponent_bits) - 1) << mantissa_bits
    top = 1 << (exponent_bits + mantissa_bits)
    if isinstance(x, float):
        if math.isnan(x):
            return infinity + 1
        if math.isinf(x) or x == 0:
            return (top if math.copysign(1, x) < 0 else 0) | (infinity if math.isinf(x) else 0)
        x = Fraction(x)
    if x == 0:
        return 0
    bias = (1 << (exponent_bits - 1)) - 1
    size = abs(x)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    exponent = max(exponent, 1 - bias)
    steps = abs(whole(x / Fraction(2) ** (exponent - mantissa_bits), mode))
    bits = ((exponent + bias - 1) << mantissa_bits) + steps
    sign = top if x < 0 else 0
    if bits >= infinity:
        finite = mode == "rz" or (mode == "rm" and x > 0) or (mode == "rp" and x < 0)
        return sign | (infinity - 1 if finite else infinity)
    return sign | bits


def is_nan(bits: int, name: str) -> bool:
    result = value(bits, name)
    return isinstance(result, float) and math.isnan(result)


def wrap(x: int, name: str) -> int:
    """The low bits of x, read as an integer type."""
    signed, bits = INTEGERS[name]
    x &= (1 << bits) - 1
    return x - (1 << bits) if signed and x >> (bits - 1) else x


def width(name: str) -> int:
    return int("".join(filter(str.isdigit, name.removeprefix("bf")))) if name != "tf32" else 32


def edge_bits(name: str, random: np.random.Generator, count: int = 40) -> list[int]:
    """Random bit patterns and the interesting ones."""
    bits = width(name)
    patterns = [int(random.integers(0, 1 << 63)) * 2 + int(random.integers(0, 2)) for _ in range(count)]
    patterns = [pattern >> (64 - bits) for pattern in patterns]
    if name in FORMATS:
        exponent_bits, mantissa_bits = FORMATS[name]
        top, infinity, one = (
            1 << (bits - 1),
            ((1 << exponent_bits) - 1) << mantissa_bits,
            ((1 << (exponent_bits - 1)) - 1) << mantissa_bits,
        )
        special = [
            0,
            infinity,
            infinity + 1,
            1,
            (1 << mantissa_bits) - 1,
            1 << mantissa_bits,
            infinity - 1,
            one,
            one + 1,
            one + (1 << mantissa_bits),
        ]
        return patterns + special + [pattern | top for pattern in special]
    edges = [
        0,
        1,
        2,
        3,
        5,
        31,
        32,
        33,
        63,
        64,
        255,
        (1 << bits) - 1,
        (1 << bits) - 2,
        1 << (bits - 1),
        (1 << (bits - 1)) - 1,
    ]
    return patterns + [edge & ((1 << bits) - 1) for edge in edges]


def run_bits(statement: str, inputs: list[tuple[str, list[int]]], output: str) -> list[int]:
    """Runs one thread for each tuple of inputs. `statement` names its operands d, a, b, c; types give the widths."""
    count = len(inputs[0][1])
    registers = {8: "%r", 16: "%h", 32: "%r", 64: "%rd"}
    body = [
        "  mov.u32 %r70, %ctaid.x;\n  mov.u32 %r71, %ntid.x;\n  mov.u32 %r72, %tid.x;",
        "  mad.lo.u32 %r73, %r70, %r71, %r72;",
        f"  setp.ge.u32 %p9, %r73, {count};\n  @%p9 ret;",
    ]
    names = {}
    for position, (name, _) in enumerate(inputs):
        bits, letter = width(name), "abc"[position]
        names[letter] = f"{registers[bits]}{10 + position}"
        body.append(
            f"  ld.param.u64 %rd20, [{letter}];\n  mul.wide.u32 %rd21, %r73, {bits // 8};\n"
            "  add.s64 %rd20, %rd20, %rd21;"
        )
        body.append(f"  ld.global.{'u8' if bits == 8 else f'b{bits}'} {names[letter]}, [%rd20];")
    bits = width(output)
    names["d"] = f"{registers[bits]}1"
    words = statement.split(" ", 1)
    body.append("  " + words[0] + " " + "".join(names.get(token, token) for token in _split(words[1])) + ";")
    body.append(
        f"  ld.param.u64 %rd20, [out];\n  mul.wide.u32 %rd21, %r73, {bits // 8};\n  add.s64 %rd20, %rd20, %rd21;"
    )
    body.append(f"  st.global.b{bits} [%rd20], {names['d']};")
    text = kernel("\n".join(body), ".u64 out" + "".join(f", .u64 {'abc'[k]}" for k in range(len(inputs))))
    dtypes = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
    tensors = [torch.from_numpy(np.array(values, dtypes[width(name)])) for name, values in inputs]
    out = torch.from_numpy(np.zeros(count, dtypes[bits]))
    run(text, "k", -(-count // 128), 128, [out, *tensors], readonly=range(1, len(tensors) + 1)).assert_clean()
    return [int(x) for x in out.numpy()]


def _split(text: str) -> list[str]:
    tokens, current = [], ""
    for character in text:
        if character.isalnum() or character in "%_.":
            current += character
        else:
            tokens += [current, character]
            current = ""
    return [token for token in [*tokens, current] if token]


def pairs(name: str, random: np.random.Generator, arity: int) -> list[list[int]]:
    """Operand lists in which the edge values of every operand meet those of the others."""
    lists = [edge_bits(name, random) for _ in range(arity)]
    columns: list[list[int]] = [[] for _ in range(arity)]
    rounds = len(lists[0]) if arity > 1 else 1
    for shift in range(rounds):
        for k, column in enumerate(columns):
            column.extend(
                lists[k][(shift * k * (1 + (k > 1) * 6)) % len(lists[k]) :]
                + lists[k][: (shift * k * (1 + (k > 1) * 6)) % len(lists[k])]
            )
    return columns


def check(
    statement: str, types: list[str], output: str, reference: Callable[..., int], columns: list[list[int]]
) -> None:
    """Compares bit for bit; NaNs of a float output count as equal."""
    results = run_bits(statement, list(zip(types, columns, strict=False)), output)
    for position, got in enumerate(results):
        operands = [column[position] for column in columns]
        wanted = reference(*operands) & ((1 << width(output)) - 1)
        if output in FORMATS and is_nan(wanted, output) and is_nan(got, output):
            continue
        assert got == wanted, f"{statement} of {[hex(x) for x in operands]}: got {got:#x}, expected {wanted:#x}"
