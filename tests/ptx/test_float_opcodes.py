"""Floating-point arithmetic, comparisons and conversions against exact rational arithmetic, bit for bit."""

# ruff: noqa: B023 - the functions are called before the loop goes on

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from .exact import FORMATS, INTEGERS, check, edge_bits, encode, is_nan, pairs, run_bits, value, whole, width, wrap

MODES = ["rn", "rz", "rm", "rp"]


@pytest.fixture
def random():
    return np.random.default_rng(1)


def finite(*numbers):
    return all(isinstance(x, Fraction) or (math.isfinite(x)) for x in numbers)


def zero_sign(mode):
    return -0.0 if mode == "rm" else 0.0


def plus(x, y, mode):
    if not finite(x, y):
        return float(x) + float(y) if not (finite(x) or finite(y)) else (x if not finite(x) else y)
    if x == 0 and y == 0:
        same = math.copysign(1, x) == math.copysign(1, y)
        return x if same else zero_sign(mode)
    total = Fraction(x) + Fraction(y)
    return total if total else zero_sign(mode)


def times(x, y):
    sign = (-1 if negative(x) else 1) * (-1 if negative(y) else 1)
    if any(isinstance(z, float) and math.isnan(z) for z in (x, y)):
        return math.nan
    if not finite(x, y):
        return math.nan if x == 0 or y == 0 else sign * math.inf
    product = Fraction(x) * Fraction(y)
    return product if product else sign * 0.0


def negative(x):
    return x < 0 if isinstance(x, Fraction) else math.copysign(1, x) < 0


def quotient(x, y):
    sign = (-1 if negative(x) else 1) * (-1 if negative(y) else 1)
    if any(isinstance(z, float) and math.isnan(z) for z in (x, y)):
        return math.nan
    if not finite(x):
        return math.nan if not finite(y) else sign * math.inf
    if not finite(y):
        return sign * 0.0
    if y == 0:
        return math.nan if x == 0 else sign * math.inf
    result = Fraction(x) / Fraction(y)
    return result if result else sign * 0.0


OPERATIONS = {
    "add": (2, lambda m, x, y: plus(x, y, m)),
    "sub": (2, lambda m, x, y: plus(x, -y, m)),
    "mul": (2, lambda m, x, y: times(x, y)),
    "fma": (3, lambda m, x, y, z: plus(times(x, y), z, m)),
    "div": (2, lambda m, x, y: quotient(x, y)),
    "rcp": (1, lambda m, x: quotient(Fraction(1), x)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("t", ["f32", "f64"])
@pytest.mark.parametrize("opcode", OPERATIONS)
def test_rounding(opcode, t, mode, random):
    arity, reference = OPERATIONS[opcode]
    columns = [column[:1500] for column in pairs(t, random, arity)]
    check(
        f"{opcode}.{mode}.{t} d, {', '.join('abc'[:arity])}",
        [t] * arity,
        t,
        lambda *bits: encode(reference(mode, *(value(b, t) for b in bits)), t, mode),
        columns,
    )


@pytest.mark.parametrize("t", ["f16", "bf16"])
@pytest.mark.parametrize("opcode", ["add", "sub", "mul", "fma"])
def test_half_precision(opcode, t, random):
    arity, reference = OPERATIONS[opcode]
    suffix = ".rn" if opcode == "fma" else ""
    check(
        f"{opcode}{suffix}.{t} d, {', '.join('abc'[:arity])}",
        [t] * arity,
        t,
        lambda *bits: encode(reference("rn", *(value(b, t) for b in bits)), t),
        pairs(t, random, arity),
    )


def test_pairs_compute_both_halves(random):
    for t in ("f16", "bf16"):
        for opcode in ("add.", "mul.", "fma.rn.", "max.", "min.NaN."):
            arity = 3 if "fma" in opcode else 2
            low, high = pairs(t, random, arity), [column[::-1] for column in pairs(t, random, arity)]
            operands = ", ".join("abc"[:arity])
            packed = [[y << 16 | x for x, y in zip(a, b, strict=False)] for a, b in zip(low, high, strict=False)]
            together = run_bits(f"{opcode}{t}x2 d, {operands}", [("u32", column) for column in packed], "u32")
            alone = [
                run_bits(f"{opcode}{t} d, {operands}", [(t, column) for column in part], t) for part in (low, high)
            ]
            assert together == [y << 16 | x for x, y in zip(*alone, strict=False)]
    low, high = pairs("f32", random, 2), [column[::-1] for column in pairs("f32", random, 2)]
    packed = [[y << 32 | x for x, y in zip(a, b, strict=False)] for a, b in zip(low, high, strict=False)]
    for opcode in ("add.rn", "mul.rz", "sub.ftz"):
        together = run_bits(f"{opcode}.f32x2 d, a, b", [("u64", column) for column in packed], "u64")
        alone = [run_bits(f"{opcode}.f32 d, a, b", [("f32", column) for column in part], "f32") for part in (low, high)]
        assert together == [y << 32 | x for x, y in zip(*alone, strict=False)]


def test_set_of_pairs(random):
    a, b = pairs("f16", random, 2)
    one, columns = 0x3C00, [[x << 16 | y for x, y in zip(a, b, strict=True)], [y << 16 | y for y in b]]

    def reference(x, y):
        halves = [(x >> shift & 0xFFFF, y >> shift & 0xFFFF) for shift in (0, 16)]
        low, high = (int(value(p, "f16") == value(q, "f16")) * one for p, q in halves)
        return high << 16 | low

    check("set.eq.f16x2.f16x2 d, a, b", ["u32"] * 2, "u32", reference, columns)


def test_flush_to_zero(random):
    """Subnormal operands and results become zero of the same sign."""

    def flushed(bits):
        return bits & 0x80000000 if not bits & 0x7F800000 else bits

    columns = pairs("f32", random, 2)
    for opcode in ("add", "mul"):
        reference = OPERATIONS[opcode][1]
        check(
            f"{opcode}.ftz.f32 d, a, b",
            ["f32"] * 2,
            "f32",
            lambda a, b: flushed(encode(reference("rn", value(flushed(a), "f32"), value(flushed(b), "f32")), "f32")),
            columns,
        )
    check(
        "setp.eq.ftz.f32 %p1, a, b;\n  selp.u32 d, 1, 0, %p1",
        ["f32"] * 2,
        "u32",
        lambda a, b: int(value(flushed(a), "f32") == value(flushed(b), "f32")),
        columns,
    )


def test_saturation(random):
    def reference(a, b):
        total = plus(value(a, "f32"), value(b, "f32"), "rn")
        if isinstance(total, float) and math.isnan(total):
            return 0
        return encode(
            max(Fraction(0), min(Fraction(1), Fraction(total) if finite(total) else Fraction(total > 0))), "f32"
        )

    check("add.sat.f32 d, a, b", ["f32"] * 2, "f32", reference, pairs("f32", random, 2))


def smaller(a, b, keep_nan, largest, t):
    if is_nan(a, t) or is_nan(b, t):
        return encode(math.nan, t) if keep_nan or (is_nan(a, t) and is_nan(b, t)) else (b if is_nan(a, t) else a)
    x, y = value(a, t), value(b, t)
    if x == y:
        first = negative(x) != largest
        return a if first else b
    return a if (x < y) != largest else b


@pytest.mark.parametrize("t", ["f32", "f64", "f16", "bf16"])
def test_minimum_and_maximum(t, random):
    for name, largest in (("min", False), ("max", True)):
        check(f"{name}.{t} d, a, b", [t, t], t, lambda a, b: smaller(a, b, False, largest, t), pairs(t, random, 2))
        if t != "f64":
            check(
                f"{name}.NaN.{t} d, a, b", [t, t], t, lambda a, b: smaller(a, b, True, largest, t), pairs(t, random, 2)
            )
    if t == "f32":
        three = [column[:2000] for column in pairs(t, random, 3)]
        check(
            "max.f32 d, a, b, c",
            [t] * 3,
            t,
            lambda a, b, c: smaller(smaller(a, b, False, True, t), c, False, True, t),
            three,
        )
        check(
            "min.xorsign.abs.f32 d, a, b",
            [t, t],
            t,
            lambda a, b: smaller(a & 0x7FFFFFFF, b & 0x7FFFFFFF, False, False, t) & 0x7FFFFFFF | ((a ^ b) & 0x80000000),
            pairs(t, random, 2),
        )


@pytest.mark.parametrize("t", ["f32", "f64", "f16", "bf16"])
def test_sign_operations(t, random):
    top = 1 << (width(t) - 1)
    check(f"neg.{t} d, a", [t], t, lambda a: a ^ top, pairs(t, random, 1))
    check(f"abs.{t} d, a", [t], t, lambda a: a & (top - 1), pairs(t, random, 1))
    if width(t) >= 32:
        check(f"copysign.{t} d, a, b", [t, t], t, lambda a, b: b & (top - 1) | a & top, pairs(t, random, 2))
        for name, reference in {
            "finite": finite,
            "infinite": lambda x: not finite(x) and not math.isnan(x),
            "notanumber": lambda x: isinstance(x, float) and math.isnan(x),
            "number": lambda x: not (isinstance(x, float) and math.isnan(x)),
        }.items():
            check(
                f"testp.{name}.{t} %p1, a;\n  selp.u32 d, 1, 0, %p1",
                [t],
                "u32",
                lambda a: int(reference(value(a, t))),
                pairs(t, random, 1),
            )


@pytest.mark.parametrize("t", ["f32", "f64", "f16", "bf16"])
def test_comparisons(t, random):
    import operator

    ordered = {"eq": operator.eq, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge}
    columns = pairs(t, random, 2)

    def compare(name, a, b):
        x, y = value(a, t), value(b, t)
        unordered = any(isinstance(z, float) and math.isnan(z) for z in (x, y))
        if name in ("num", "nan"):
            return unordered == (name == "nan")
        if unordered:
            return name.endswith("u")
        return x != y if name[:2] == "ne" else ordered[name[:2]](x, y)

    for name in ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"]:
        check(
            f"setp.{name}.{t} %p1, a, b;\n  selp.u32 d, 1, 0, %p1",
            [t, t],
            "u32",
            lambda a, b: int(compare(name, a, b)),
            columns,
        )


def test_square_roots(random):
    for t in ("f32", "f64"):

        def root(bits, t=t):
            x = value(bits, t)
            if not isinstance(x, Fraction) or x < 0:
                return encode(math.nan if negative(x) and x != 0 else x, t)
            scaled = math.isqrt(int(x * Fraction(4) ** 1200))  # exact to 2^-1200, far below half a step
            return encode(
                Fraction(scaled, 2**1200) + (Fraction(1, 2**1210) if Fraction(scaled**2, 4**1200) != x else 0), t
            )

        check(f"sqrt.rn.{t} d, a", [t], t, root, pairs(t, random, 1))


@pytest.mark.parametrize(
    ("opcode", "reference"),
    [
        ("ex2.approx.f32", np.exp2),
        ("lg2.approx.f32", np.log2),
        ("sin.approx.f32", np.sin),
        ("cos.approx.f32", np.cos),
        ("tanh.approx.f32", np.tanh),
        ("rsqrt.approx.f32", lambda x: 1 / np.sqrt(x)),
        ("sqrt.approx.f32", np.sqrt),
        ("rcp.approx.ftz.f32", lambda x: 1 / x),
    ],
)
def test_approximations(opcode, reference, random):
    bits = edge_bits("f32", random, 200)
    got = np.array(run_bits(f"{opcode} d, a", [("f32", bits)], "f32"), np.uint32).view(np.float32)
    x = np.array(bits, np.uint32).view(np.float32)
    if "ftz" in opcode:
        x = np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(0, x), x)
    with np.errstate(all="ignore"):
        wanted = reference(x.astype(np.float64)).astype(np.float32)
        if "ftz" in opcode:
            wanted = np.where(np.abs(wanted) < np.finfo(np.float32).tiny, np.copysign(0, wanted), wanted)
    np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-44)


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


def test_formats_cover_the_types():
    assert set(FORMATS) >= {"f16", "bf16", "f32", "f64", "tf32"}
