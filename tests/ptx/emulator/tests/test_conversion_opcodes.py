"""Conversions between integers and floats of all widths against exact rational arithmetic, bit for bit."""

# ruff: noqa: B023 - the functions are called before the next iteration

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from .exact import INTEGERS, check, edge_bits, encode, is_nan, pairs, run_bits, value, whole, width, wrap

MODES = ["rn", "rz", "rm", "rp"]


@pytest.fixture
def random():
    return np.random.default_rng(3)


def finite(x):
    return isinstance(x, Fraction) or math.isfinite(x)


def integer_reference(source, to, mode):
    def convert(bits):
        x = value(bits, source)
        signed, size = INTEGERS[to]
        low, high = (-(1 << (size - 1)), (1 << (size - 1)) - 1) if signed else (0, (1 << size) - 1)
        if isinstance(x, float) and math.isnan(x):
            return 1 << (size - 1) if source == "f64" or size == 64 else 0
        return max(low, min(high, whole(Fraction(x), mode) if finite(x) else (high if x > 0 else low)))

    return convert


@pytest.mark.parametrize("source", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("to", ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"])
def test_float_to_integer(source, to, random):
    column = edge_bits(source, random, 60) + [encode(Fraction(k, 2), source) for k in range(-9, 600, 7)]
    output = to if width(to) > 8 else "u32"
    extend = (lambda x: wrap(x, to)) if width(to) == 8 else (lambda x: x)
    for mode in ("rni", "rzi", "rmi", "rpi"):
        reference = integer_reference(source, to, mode)
        check(f"cvt.{mode}.{to}.{source} d, a", [source], output, lambda bits: extend(reference(bits)), [column])


@pytest.mark.parametrize("source", ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("to", ["f16", "bf16", "f32", "f64"])
def test_integer_to_float(source, to, random):
    column = edge_bits(source, random, 80)
    for mode in MODES:
        check(
            f"cvt.{mode}.{to}.{source} d, a",
            [source],
            to,
            lambda bits: encode(Fraction(wrap(bits, source)), to, mode),
            [column],
        )


@pytest.mark.parametrize(
    ("source", "to"),
    [("f32", "f16"), ("f32", "bf16"), ("f64", "f32"), ("f64", "f16"), ("f16", "f32"), ("bf16", "f32"), ("f32", "f64")],
)
def test_float_to_float(source, to, random):
    halves = [
        encode(Fraction(k, 2**12) * Fraction(2) ** e, source) for k in range(8190, 8200) for e in (-30, -20, 0, 4)
    ]
    column = edge_bits(source, random, 300) + halves
    for mode in MODES if width(source) > width(to) else [""]:
        check(
            f"cvt.{mode}.{to}.{source}".replace("..", ".") + " d, a",
            [source],
            to,
            lambda bits: encode(value(bits, source), to, mode or "rn"),
            [column],
        )


@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
def test_rounding_to_whole_floats(mode, random):
    column = edge_bits("f32", random, 60) + [encode(Fraction(k, 4), "f32") for k in range(-20, 21)]

    def reference(bits):
        x = value(bits, "f32")
        if not isinstance(x, Fraction):
            return bits
        rounded = whole(x, mode)
        return encode(Fraction(rounded), "f32") if rounded else bits & 0x80000000

    check(f"cvt.{mode}.f32.f32 d, a", ["f32"], "f32", reference, [column])


def test_saturating_and_plain_integer_conversions(random):
    for source in ("s32", "u32", "s64"):
        for to in ("s8", "u8", "s16", "u16", "s32", "u32"):
            column = edge_bits(source, random, 60)
            output = "u32" if width(to) < 32 else to
            signed, size = INTEGERS[to]
            low, high = (-(1 << (size - 1)), (1 << (size - 1)) - 1) if signed else (0, (1 << size) - 1)
            if width(to) == 16:
                output = to
            check(
                f"cvt.sat.{to}.{source} d, a",
                [source],
                output,
                lambda a: max(low, min(high, wrap(a, source))),
                [column],
            )
            check(f"cvt.{to}.{source} d, a", [source], output, lambda a: wrap(a, to), [column])


def test_packed_conversions(random):
    a, b = pairs("f32", random, 2)
    for t in ("f16", "bf16"):
        check(
            f"cvt.rn.{t}x2.f32 d, a, b",
            ["f32"] * 2,
            "u32",
            lambda x, y: canonical(x, t) << 16 | canonical(y, t),
            [a, b],
        )
        check(
            f"cvt.rz.{t}x2.f32 d, a, b",
            ["f32"] * 2,
            "u32",
            lambda x, y: canonical(x, t, "rz") << 16 | canonical(y, t, "rz"),
            [a, b],
        )
    for mode in ("rna", "rn", "rz"):
        check(
            f"cvt.{mode}.tf32.f32 d, a",
            ["f32"],
            "u32",
            lambda x: 0x7FFFE000 if is_nan(x, "f32") else encode(value(x, "f32"), "tf32", mode) << 13,
            [a],
        )
    check("cvt.rn.relu.f16x2.f32 d, a, b", ["f32"] * 2, "u32", lambda x, y: (positive(x) << 16) | positive(y), [a, b])


def positive(bits):
    below = value(bits, "f32") < 0 if not is_nan(bits, "f32") else False
    return 0 if below else canonical(bits, "f16")


def canonical(bits, t, mode="rn"):
    return 0x7FFF if is_nan(bits, "f32") else encode(value(bits, "f32"), t, mode)


def test_eight_bit_floats(random):
    """Against torch: saturating conversions to e4m3 and e5m2 and back."""
    import torch

    numbers = [encode(Fraction(k, 64) * Fraction(2) ** e, "f32") for k in range(-70, 71) for e in (-8, -3, 0, 5, 12)]
    for name, dtype in (("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)):
        x = torch.from_numpy(np.array(numbers, np.uint32).view(np.float32))
        largest = torch.finfo(dtype).max
        wanted = x.clamp(-largest, largest).to(dtype).view(torch.uint8).tolist()
        got = run_bits(f"cvt.rn.satfinite.{name}x2.f32 d, a, b", [("f32", numbers), ("f32", numbers[::-1])], "u16")
        assert got == [high << 8 | low for high, low in zip(wanted, wanted[::-1], strict=False)]
        every = list(range(256))
        halves = (
            torch.arange(256, dtype=torch.uint8).view(dtype).to(torch.float16).view(torch.int16).numpy().view(np.uint16)
        )
        back = run_bits(f"cvt.rn.f16x2.{name}x2 d, a", [("u16", [x << 8 | x for x in every])], "u32")
        for bits, result in zip(every, back, strict=False):
            wanted16 = int(halves[bits])
            assert (is_nan(result & 0xFFFF, "f16") and is_nan(wanted16, "f16")) or result == wanted16 << 16 | wanted16
