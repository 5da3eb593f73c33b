"""Integer, logic, shift and bit instructions against Python's integers, edge values included."""

# ruff: noqa: B023, E501 - the functions are called before the next iteration

from __future__ import annotations

import numpy as np
import pytest

from .exact import INTEGERS, check, pairs, width, wrap

ALL = ["u16", "u32", "u64", "s16", "s32", "s64"]
SIGNED = ["s16", "s32", "s64"]


def truncated(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def clamped(x, name):
    signed, bits = INTEGERS[name]
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return max(low, min(high, x))


def high(x, name):
    return x >> width(name)


def low24(x, name):
    x &= 0xFFFFFF
    return x - (1 << 24) if name[0] == "s" and x >> 23 else x


# opcode, types, operands' reference on numbers of the type
BINARY = [
    ("add", ALL, lambda a, b, t: a + b),
    ("sub", ALL, lambda a, b, t: a - b),
    ("mul.lo", ALL, lambda a, b, t: a * b),
    ("mul.hi", ALL, lambda a, b, t: high(a * b, t)),
    ("min", ALL, lambda a, b, t: min(a, b)),
    ("max", ALL, lambda a, b, t: max(a, b)),
    ("div", ALL, lambda a, b, t: truncated(a, b) if b else -1),
    ("rem", ALL, lambda a, b, t: a - truncated(a, b) * b if b else a),
    ("add.sat", ["s32"], lambda a, b, t: clamped(a + b, t)),
    ("sub.sat", ["s32"], lambda a, b, t: clamped(a - b, t)),
    ("mul24.lo", ["u32", "s32"], lambda a, b, t: low24(a, t) * low24(b, t)),
    ("mul24.hi", ["u32", "s32"], lambda a, b, t: low24(a, t) * low24(b, t) >> 16),
    ("min.relu", ["s32"], lambda a, b, t: max(0, min(a, b))),
    ("max.relu", ["s32"], lambda a, b, t: max(0, a, b)),
]
TERNARY = [
    ("mad.lo", ALL, lambda a, b, c, t: a * b + c),
    ("mad.hi", ALL, lambda a, b, c, t: high(a * b, t) + c),
    ("sad", ALL, lambda a, b, c, t: c + abs(a - b)),
    ("mad.hi.sat", ["s32"], lambda a, b, c, t: clamped(high(a * b, t) + c, t)),
    ("mad24.lo", ["u32", "s32"], lambda a, b, c, t: low24(a, t) * low24(b, t) + c),
    ("mad24.hi", ["u32", "s32"], lambda a, b, c, t: (low24(a, t) * low24(b, t) >> 16) + c),
]
UNARY = [("neg", SIGNED, lambda a, t: -a), ("abs", SIGNED, lambda a, t: abs(a))]


def cases(table):
    return [pytest.param(opcode, t, reference, id=f"{opcode}.{t}") for opcode, types, reference in table for t in types]


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.mark.parametrize(("opcode", "t", "reference"), cases(BINARY))
def test_binary(opcode, t, reference, random):
    check(f"{opcode}.{t} d, a, b", [t, t], t, lambda a, b: reference(wrap(a, t), wrap(b, t), t), pairs(t, random, 2))


@pytest.mark.parametrize(("opcode", "t", "reference"), cases(TERNARY))
def test_ternary(opcode, t, reference, random):
    check(
        f"{opcode}.{t} d, a, b, c",
        [t, t, t],
        t,
        lambda a, b, c: reference(wrap(a, t), wrap(b, t), wrap(c, t), t),
        pairs(t, random, 3),
    )


@pytest.mark.parametrize(("opcode", "t", "reference"), cases(UNARY))
def test_unary(opcode, t, reference, random):
    check(f"{opcode}.{t} d, a", [t], t, lambda a: reference(wrap(a, t), t), pairs(t, random, 1))


@pytest.mark.parametrize("t", ["u16", "u32", "s16", "s32"])
def test_wide_products(t, random):
    wide = t[0] + str(2 * width(t))
    check(f"mul.wide.{t} d, a, b", [t, t], wide, lambda a, b: wrap(a, t) * wrap(b, t), pairs(t, random, 2))
    a, b = pairs(t, random, 2)
    c = [x << 7 ^ y for x, y in zip(a, b, strict=False)]
    check(f"mad.wide.{t} d, a, b, c", [t, t, wide], wide, lambda a, b, c: wrap(a, t) * wrap(b, t) + c, [a, b, c])


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic(bits, random):
    t = f"u{bits}"
    for opcode, reference in [("and", lambda a, b: a & b), ("or", lambda a, b: a | b), ("xor", lambda a, b: a ^ b)]:
        check(f"{opcode}.b{bits} d, a, b", [t, t], t, reference, pairs(t, random, 2))
    check(f"not.b{bits} d, a", [t], t, lambda a: ~a, pairs(t, random, 1))
    check(f"cnot.b{bits} d, a", [t], t, lambda a: int(a == 0), pairs(t, random, 1))


@pytest.mark.parametrize("t", ALL)
def test_shift_counts_beyond_the_width(t, random):
    bits = width(t)
    a = pairs(t, random, 1)[0]
    for count in [0, 1, bits - 1, bits, bits + 1, 31, 32, 33, 63, 64, 65, 255, 256, 1 << 31]:
        columns = [a, [count] * len(a)]
        check(f"shr.{t} d, a, b", [t, "u32"], t, lambda a, n: wrap(a, t) >> min(n, 64), columns)
        check(f"shl.b{bits} d, a, b", [t, "u32"], t, lambda a, n: a << n if n < 64 else 0, columns)


@pytest.mark.parametrize("bits", [32, 64])
def test_bit_counting(bits, random):
    t, column = f"u{bits}", pairs(f"u{bits}", random, 1)
    check(f"popc.b{bits} d, a", [t], "u32", lambda a: a.bit_count(), column)
    check(f"clz.b{bits} d, a", [t], "u32", lambda a: bits - a.bit_length(), column)
    check(f"brev.b{bits} d, a", [t], t, lambda a: int(f"{a:0{bits}b}"[::-1], 2), column)
    for sign in "us":
        name = f"{sign}{bits}"

        def highest(a, name=name):
            a = wrap(a, name)
            return (~a if a < 0 else a).bit_length() - 1

        check(f"bfind.{name} d, a", [t], "u32", highest, column)
        check(
            f"bfind.shiftamt.{name} d, a",
            [t],
            "u32",
            lambda a: bits - 1 - highest(a) if highest(a) >= 0 else -1,
            column,
        )


@pytest.mark.parametrize("t", ["u32", "u64", "s32", "s64"])
def test_bit_fields(t, random):
    bits = width(t)

    def extract(a, position, length):
        position, length = position & 255, length & 255
        extended = a | (-1 << bits if t[0] == "s" and a >> (bits - 1) else 0)
        if length == 0:
            return 0
        if t[0] == "u":
            return extended >> position & ((1 << length) - 1)
        top = min(position + length - 1, bits - 1)
        sign = extended >> top & 1
        kept = max(0, min(length, bits - position))
        return (extended >> position & ((1 << kept) - 1)) | (-1 << kept if sign else 0)

    def insert(field, into, position, length=9):
        position &= 255
        mask = ((1 << length) - 1) << position & ((1 << bits) - 1)
        return into & ~mask | field << position & mask

    a = pairs(t, random, 1)[0]
    for position in [0, 1, 7, 30, 31, 32, 40, 63, 64, 255]:
        for length in [0, 1, 8, 31, 32, 33, 64, 255]:
            check(
                f"bfe.{t} d, a, b, {length}",
                [t, "u32"],
                t,
                lambda a, p, n=length: extract(a, p, n),
                [a, [position] * len(a)],
            )
        columns = [a, a[::-1], [position] * len(a)]
        check(f"bfi.b{bits} d, a, b, c, 9", [t, t, "u32"], t, insert, columns)


def test_lop3_all_tables(random):
    a, b, c = pairs("u32", random, 3)
    a, b, c = a[:200], b[:200], c[:200]
    for table in [0x00, 0xFF, 0x80, 0xFE, 0x96, 0xE8, 0xCA, 0x1B, *range(1, 256, 41)]:

        def reference(x, y, z, table=table):
            return sum((table >> ((x >> k & 1) * 4 + (y >> k & 1) * 2 + (z >> k & 1)) & 1) << k for k in range(32))

        check(f"lop3.b32 d, a, b, c, {table}", ["u32"] * 3, "u32", reference, [a, b, c])


def test_prmt(random):
    def chosen(a, b, selectors):
        data = (b << 32 | a).to_bytes(8, "little")
        result = 0
        for k in range(4):
            selector = selectors >> 4 * k & 15
            byte = data[selector & 7]
            result |= (0xFF * (byte >> 7) if selector & 8 else byte) << 8 * k
        return result

    columns = pairs("u32", random, 3)
    check("prmt.b32 d, a, b, c", ["u32"] * 3, "u32", chosen, columns)
    for mode, selectors in {
        "f4e": [0x3210, 0x4321, 0x5432, 0x6543],
        "b4e": [0x5670, 0x6701, 0x7012, 0x0123],
        "rc8": [0x0000, 0x1111, 0x2222, 0x3333],
        "ecl": [0x3210, 0x3211, 0x3222, 0x3333],
        "ecr": [0x0000, 0x1110, 0x2210, 0x3210],
        "rc16": [0x1010, 0x3232, 0x1010, 0x3232],
    }.items():
        check(
            f"prmt.b32.{mode} d, a, b, c",
            ["u32"] * 3,
            "u32",
            lambda a, b, c, s=selectors: chosen(a, b, s[c & 3]),
            columns,
        )


def test_funnel_shifts(random):
    a, b, _ = pairs("u32", random, 3)
    a, b = a[:300], b[:300]
    for count in [0, 1, 16, 31, 32, 33, 40, 1 << 31]:
        columns = [a, b, [count] * len(a)]
        for mode, effective in [("wrap", count & 31), ("clamp", min(count, 32))]:
            check(
                f"shf.l.{mode}.b32 d, a, b, c",
                ["u32"] * 3,
                "u32",
                lambda a, b, c, n=effective: (b << 32 | a) << n >> 32,
                columns,
            )
            check(
                f"shf.r.{mode}.b32 d, a, b, c",
                ["u32"] * 3,
                "u32",
                lambda a, b, c, n=effective: (b << 32 | a) >> n,
                columns,
            )


def test_dot_products(random):
    def lanes(x, signed):
        return [byte - 256 if signed and byte > 127 else byte for byte in x.to_bytes(4, "little")]

    columns = pairs("u32", random, 3)
    for left in "us":
        for right in "us":
            check(
                f"dp4a.{left}32.{right}32 d, a, b, c",
                ["u32"] * 3,
                "u32",
                lambda a, b, c: (
                    c + sum(x * y for x, y in zip(lanes(a, left == "s"), lanes(b, right == "s"), strict=False))
                ),
                columns,
            )


def test_carry_chains(random):
    """A 128-bit sum and difference from two 64-bit halves."""
    for opcode, sign in [("add", 1), ("sub", -1)]:
        a, b = pairs("u64", random, 2)
        statement = f"{opcode}.cc.u64 %rd30, a, b;\n  {opcode}c.u64 d, a, b"
        mask = (1 << 128) - 1
        check(
            statement, ["u64", "u64"], "u64", lambda a, b: ((a << 64 | a) + sign * (b << 64 | b) & mask) >> 64, [a, b]
        )


@pytest.mark.parametrize("t", ALL)
def test_comparisons(t, random):
    import operator

    names = {
        "eq": operator.eq,
        "ne": operator.ne,
        "lt": operator.lt,
        "le": operator.le,
        "gt": operator.gt,
        "ge": operator.ge,
    }
    if t[0] == "u":
        names |= {"lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}
    for name, reference in names.items():
        statement = f"setp.{name}.{t} %p1|%p2, a, b;\n  selp.u32 %r5, 1, 0, %p1;\n  selp.u32 %r6, 2, 0, %p2;\n  or.b32 d, %r5, %r6"
        check(statement, [t, t], "u32", lambda a, b: 1 if reference(wrap(a, t), wrap(b, t)) else 2, pairs(t, random, 2))
    check(f"set.lt.u32.{t} d, a, b", [t, t], "u32", lambda a, b: -(wrap(a, t) < wrap(b, t)), pairs(t, random, 2))


@pytest.mark.parametrize("boolean", ["and", "or", "xor"])
@pytest.mark.parametrize("negated", [False, True])
def test_comparison_with_a_predicate(boolean, negated, random):
    """p = (a < b) op c, q = !(a < b) op c; p may be c itself."""
    apply = {"and": lambda x, y: x and y, "or": lambda x, y: x or y, "xor": lambda x, y: x != y}[boolean]
    c = "!%p1" if negated else "%p1"
    statement = (
        f"setp.ge.u32 %p1, a, 77;\n  setp.lt.{boolean}.u32 %p1|%p2, a, b, {c};\n"
        "  selp.u32 %r5, 1, 0, %p1;\n  selp.u32 %r6, 2, 0, %p2;\n  or.b32 d, %r5, %r6"
    )

    def reference(a, b):
        third = (a >= 77) != negated
        return int(apply(a < b, third)) + 2 * int(apply(not a < b, third))

    check(statement, ["u32", "u32"], "u32", reference, pairs("u32", random, 2))


def test_packing_and_unpacking(random):
    columns = pairs("u32", random, 2)
    check(
        "mov.b64 %rd5, {a, b};\n  mov.b64 {%r5, %r6}, %rd5;\n  mov.b64 d, {%r6, %r5}",
        ["u32", "u32"],
        "u64",
        lambda a, b: a << 32 | b,
        columns,
    )
    check("mov.b32 {%h5, %h6}, a;\n  mov.b32 d, {%h6, %h5}", ["u32"], "u32", lambda a: a << 16 | a >> 16, columns[:1])
    check("mov.b64 {_, %r6}, a;\n  mov.u32 d, %r6", ["u64"], "u32", lambda a: a >> 32, pairs("u64", random, 1))


def test_other_bit_instructions(random):
    a = pairs("u32", random, 1)[0]
    for n in [0, 1, 8, 31, 32, 40]:
        columns = [a, [n] * len(a)]
        check(
            "szext.clamp.s32 d, a, b",
            ["u32", "u32"],
            "u32",
            lambda a, n: (
                wrap(a, "s32") if n >= 32 else ((a & ((1 << n) - 1)) - ((1 << n) if n and a >> (n - 1) & 1 else 0))
            ),
            columns,
        )
        check(
            "bmsk.clamp.b32 d, a, b",
            ["u32", "u32"],
            "u32",
            lambda p, n: ((1 << min(n, 32)) - 1) << min(p, 32) if p < 32 else 0,
            columns,
        )
    check(
        "slct.u32.s32 d, a, b, c",
        ["u32"] * 3,
        "u32",
        lambda a, b, c: a if wrap(c, "s32") >= 0 else b,
        pairs("u32", random, 3),
    )
