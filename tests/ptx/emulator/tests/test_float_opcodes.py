"""Floating-point arithmetic, comparisons and conversions against exact rational arithmetic, bit for bit."""

# ruff: noqa: B023 - the functions are called before the next iteration

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from .exact import FORMATS, check, edge_bits, encode, is_nan, pairs, run_bits, value, width

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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("t", ["f16", "bf16"])
@pytest.mark.parametrize("opcode", ["add", "sub", "fma"])
def test_mixed_precision(opcode, t, mode, random):
    arity, reference = OPERATIONS[opcode]
    types = [*[t] * (arity - 1), "f32"]
    columns = [pairs(kind, random, arity)[k][:1500] for k, kind in enumerate(types)]
    check(
        f"{opcode}.{mode}.f32.{t} d, {', '.join('abc'[:arity])}",
        types,
        "f32",
        lambda *bits: encode(reference(mode, *(value(b, k) for b, k in zip(bits, types, strict=True))), "f32", mode),
        columns,
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


def test_formats_cover_the_types():
    assert set(FORMATS) >= {"f16", "bf16", "f32", "f64", "tf32"}
