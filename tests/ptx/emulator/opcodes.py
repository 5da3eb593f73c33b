"""The instruction set: one row a form of an instruction, in the order and notation of the PTX manual's chapter 9.7.

`Row(form, types, operands, result)`:

* `form`: the opcode. `{.x}` may be absent, `.type` is one of `types`; names of `MODIFIERS` are placeholders for a choice.
* `operands`: `d`, `p`, `q` are destinations. A name alone has the instruction's type; `a:u32` has its own; `wide` is twice
  the type's width; `:imm` a constant; `:pred` a predicate; `[a]` an address; `{d}` a register or a vector of registers;
  a `?` follows an operand that may be absent.
* `result`: a C++ expression in the operands, where `T` is the C++ type (functions: core/arithmetic.h), or `@name`: lowered
  by `lower_name` of lowering.py and executed by a function of core/.

`.ftz`, `.sat` and `.rnd` of floating rows are applied around the expression by `map` in core/lanes.h.
"""

# ruff: noqa: E501 - one row per line
# fmt: off
from __future__ import annotations

from .opcodes_memory import MEMORY, WARP, matrix_rows
from .vocabulary import Row

INTEGER = [
    # 9.7.1 integer arithmetic
    Row("add.type", "u16 u32 u64 s16 s32 s64", "d, a, b", "wrap_add<T>(a, b)"),
    Row("add.sat.s32", "", "d:s32, a:s32, b:s32", "clamp_to<s32>((s64)a + b)"),
    Row("add.type", "u16x2 s16x2", "d:u32, a:u32, b:u32", "((a & 0xffff0000) + (b & 0xffff0000)) | ((a + b) & 0xffff)"),
    Row("sub.type", "u16 u32 u64 s16 s32 s64", "d, a, b", "wrap_subtract<T>(a, b)"),
    Row("sub.sat.s32", "", "d:s32, a:s32, b:s32", "clamp_to<s32>((s64)a - b)"),
    Row("mul.lo.type", "u16 u32 u64 s16 s32 s64", "d, a, b", "low_product<T>(a, b)"),
    Row("mul.hi.type", "u16 u32 u64 s16 s32 s64", "d, a, b", "high_product<T>(a, b)"),
    Row("mul.wide.type", "u16 u32 s16 s32", "d:wide, a, b", "wide_product<T>(a, b)"),
    Row("mad.lo.type", "u16 u32 u64 s16 s32 s64", "d, a, b, c", "wrap_add<T>(low_product<T>(a, b), c)"),
    Row("mad.hi.type", "u16 u32 u64 s16 s32 s64", "d, a, b, c", "wrap_add<T>(high_product<T>(a, b), c)"),
    Row("mad.hi.sat.s32", "", "d:s32, a:s32, b:s32, c:s32", "clamp_to<s32>((s64)high_product<s32>(a, b) + c)"),
    Row("mad.wide.type", "u16 u32 s16 s32", "d:wide, a, b, c:wide", "wrap_add<Wide<T>>(wide_product<T>(a, b), c)"),
    Row("mul24.lo.type", "u32 s32", "d, a, b", "times24(a, b)"),
    Row("mul24.hi.type", "u32 s32", "d, a, b", "(T)(product24(a, b) >> 16)"),
    Row("mad24.lo.type", "u32 s32", "d, a, b, c", "wrap_add<T>(times24(a, b), c)"),
    Row("mad24.hi.type", "u32 s32", "d, a, b, c", "wrap_add<T>((T)(product24(a, b) >> 16), c)"),
    Row(
        "sad.type",
        "u16 u32 u64 s16 s32 s64",
        "d, a, b, c",
        "wrap_add<T>(c, a < b ? wrap_subtract<T>(b, a) : wrap_subtract<T>(a, b))",
    ),
    Row("div.type", "u16 u32 u64 s16 s32 s64", "d, a, b", "divide<T>(a, b)"),
    Row("rem.type", "u16 u32 u64 s16 s32 s64", "d, a, b", "remainder_of<T>(a, b)"),
    Row("abs.type", "s16 s32 s64", "d, a", "magnitude<T>(a)"),
    Row("neg.type", "s16 s32 s64", "d, a", "negate<T>(a)"),
    Row("min.type", "u16 u32 u64 s16 s32 s64", "d, a, b", "std::min(a, b)"),
    Row("max.type", "u16 u32 u64 s16 s32 s64", "d, a, b", "std::max(a, b)"),
    Row("min.relu.s32", "", "d:s32, a:s32, b:s32", "std::max(std::min(a, b), 0)"),
    Row("max.relu.s32", "", "d:s32, a:s32, b:s32", "std::max(std::max(a, b), 0)"),
    Row("popc.type", "b32", "d:u32, a", "__builtin_popcount(a)"),
    Row("popc.type", "b64", "d:u32, a", "__builtin_popcountll(a)"),
    Row("clz.type", "b32 b64", "d:u32, a", "leading_zeros(a)"),
    Row("bfind.type", "u32 u64 s32 s64", "d:u32, a", "find_bit<T>(a)"),
    Row("bfind.shiftamt.type", "u32 u64 s32 s64", "d:u32, a", "find_bit_shift<T>(a)"),
    Row("brev.type", "b32 b64", "d, a", "reverse_bits(a)"),
    Row("bfe.type", "u32 u64 s32 s64", "d, a, b:u32, c:u32", "extract_field<T>(a, b, c)"),
    Row("bfi.type", "b32 b64", "d, a, b, c:u32, n:u32", "insert_field<T>(a, b, c, n)"),
    Row("bmsk.clamp.b32", "", "d:b32, a:u32, b:u32", "bit_mask(a, b, false)"),
    Row("bmsk.wrap.b32", "", "d:b32, a:u32, b:u32", "bit_mask(a, b, true)"),
    Row("szext.clamp.type", "u32 s32", "d, a, b:u32", "b >= 32 ? a : extract_field<T>(a, 0, b)"),
    Row("szext.wrap.type", "u32 s32", "d, a, b:u32", "extract_field<T>(a, 0, b & 31)"),
    Row("dp4a.u32.u32", "", "d:u32, a:u32, b:u32, c:u32", "(u32)dot4<u8, u8>(a, b, (s32)c)"),
    Row("dp4a.u32.s32", "", "d:s32, a:u32, b:u32, c:s32", "dot4<u8, s8>(a, b, c)"),
    Row("dp4a.s32.u32", "", "d:s32, a:u32, b:u32, c:s32", "dot4<s8, u8>(a, b, c)"),
    Row("dp4a.s32.s32", "", "d:s32, a:u32, b:u32, c:s32", "dot4<s8, s8>(a, b, c)"),
    # 9.7.2 extended precision
    Row("add.cc.type", "u32 s32 u64 s64", "d, a, b", "@carry"),
    Row("addc{.cc}.type", "u32 s32 u64 s64", "d, a, b", "@carry"),
    Row("sub.cc.type", "u32 s32 u64 s64", "d, a, b", "@carry"),
    Row("subc{.cc}.type", "u32 s32 u64 s64", "d, a, b", "@carry"),
]

FLOAT = [
    # 9.7.3 floating point
    Row("testp.finite.type", "f32 f64", "p:pred, a", "std::isfinite(a)"),
    Row("testp.infinite.type", "f32 f64", "p:pred, a", "std::isinf(a)"),
    Row("testp.number.type", "f32 f64", "p:pred, a", "!std::isnan(a)"),
    Row("testp.notanumber.type", "f32 f64", "p:pred, a", "std::isnan(a)"),
    Row("testp.normal.type", "f32 f64", "p:pred, a", "std::isnormal(a)"),
    Row("testp.subnormal.type", "f32 f64", "p:pred, a", "is_subnormal(a)"),
    Row("copysign.type", "f32 f64", "d, a, b", "std::copysign(b, a)"),
    Row("add{.rnd}{.ftz}{.sat}.type", "f32", "d, a, b", "a + b"),
    Row("add{.rnd}.type", "f64", "d, a, b", "a + b"),
    Row("add{.rnd}{.ftz}.type", "f32x2", "d, a, b", "a + b"),
    Row("sub{.rnd}{.ftz}{.sat}.type", "f32", "d, a, b", "a - b"),
    Row("sub{.rnd}.type", "f64", "d, a, b", "a - b"),
    Row("sub{.rnd}{.ftz}.type", "f32x2", "d, a, b", "a - b"),
    Row("mul{.rnd}{.ftz}{.sat}.type", "f32", "d, a, b", "a * b"),
    Row("mul{.rnd}.type", "f64", "d, a, b", "a * b"),
    Row("mul{.rnd}{.ftz}.type", "f32x2", "d, a, b", "a * b"),
    Row("fma.rnd{.ftz}{.sat}.type", "f32", "d, a, b, c", "std::fma(a, b, c)"),
    Row("fma.rnd.type", "f64", "d, a, b, c", "std::fma(a, b, c)"),
    Row("fma.rnd{.ftz}.type", "f32x2", "d, a, b, c", "std::fma(a, b, c)"),
    Row("mad.rnd{.ftz}{.sat}.type", "f32", "d, a, b, c", "std::fma(a, b, c)"),
    Row("mad.rnd.type", "f64", "d, a, b, c", "std::fma(a, b, c)"),
    Row("div.approx{.ftz}.type", "f32", "d, a, b", "approximate_quotient(a, b)"),
    Row("div.full{.ftz}.type", "f32", "d, a, b", "a / b"),
    Row("div.rnd{.ftz}.type", "f32", "d, a, b", "a / b"),
    Row("div.rnd.type", "f64", "d, a, b", "a / b"),
    Row("abs{.ftz}.type", "f32", "d, a", "std::fabs(a)"),
    Row("abs.type", "f64", "d, a", "std::fabs(a)"),
    Row("neg{.ftz}.type", "f32", "d, a", "-a"),
    Row("neg.type", "f64", "d, a", "-a"),
    Row("min{.ftz}.type", "f32", "d, a, b", "float_minimum(a, b)"),
    Row("min{.ftz}.NaN.type", "f32", "d, a, b", "nan_minimum(a, b)"),
    Row(
        "min{.ftz}.xorsign.abs.type", "f32", "d, a, b", "sign_of_both(float_minimum(std::fabs(a), std::fabs(b)), a, b)"
    ),
    Row(
        "min{.ftz}.NaN.xorsign.abs.type",
        "f32",
        "d, a, b",
        "sign_of_both(nan_minimum(std::fabs(a), std::fabs(b)), a, b)",
    ),
    Row("min{.ftz}.type", "f32", "d, a, b, c", "float_minimum(float_minimum(a, b), c)"),
    Row("min{.ftz}.NaN.type", "f32", "d, a, b, c", "nan_minimum(nan_minimum(a, b), c)"),
    Row("min.type", "f64", "d, a, b", "float_minimum(a, b)"),
    Row("max{.ftz}.type", "f32", "d, a, b", "float_maximum(a, b)"),
    Row("max{.ftz}.NaN.type", "f32", "d, a, b", "nan_maximum(a, b)"),
    Row(
        "max{.ftz}.xorsign.abs.type", "f32", "d, a, b", "sign_of_both(float_maximum(std::fabs(a), std::fabs(b)), a, b)"
    ),
    Row(
        "max{.ftz}.NaN.xorsign.abs.type",
        "f32",
        "d, a, b",
        "sign_of_both(nan_maximum(std::fabs(a), std::fabs(b)), a, b)",
    ),
    Row("max{.ftz}.type", "f32", "d, a, b, c", "float_maximum(float_maximum(a, b), c)"),
    Row("max{.ftz}.NaN.type", "f32", "d, a, b, c", "nan_maximum(nan_maximum(a, b), c)"),
    Row("max.type", "f64", "d, a, b", "float_maximum(a, b)"),
    Row("rcp.approx{.ftz}.type", "f32", "d, a", "1 / a"),
    Row("rcp.rnd{.ftz}.type", "f32", "d, a", "1 / a"),
    Row("rcp.rnd.type", "f64", "d, a", "1 / a"),
    Row("rcp.approx.ftz.type", "f64", "d, a", "1 / a"),
    Row("sqrt.approx{.ftz}.type", "f32", "d, a", "std::sqrt(a)"),
    Row("sqrt.rnd{.ftz}.type", "f32", "d, a", "std::sqrt(a)"),
    Row("sqrt.rnd.type", "f64", "d, a", "std::sqrt(a)"),
    Row("rsqrt.approx{.ftz}.type", "f32 f64", "d, a", "1 / std::sqrt(a)"),
    Row("sin.approx{.ftz}.type", "f32", "d, a", "std::sin(a)"),
    Row("cos.approx{.ftz}.type", "f32", "d, a", "std::cos(a)"),
    Row("lg2.approx{.ftz}.type", "f32", "d, a", "std::log2(a)"),
    Row("ex2.approx{.ftz}.type", "f32", "d, a", "std::exp2(a)"),
    Row("tanh.approx.type", "f32", "d, a", "std::tanh(a)"),
    # 9.7.4 half precision: f16, bf16 and pairs
    Row("add{.rnd}{.noftz}{.ftz}{.sat}.type", "f16 f16x2 bf16 bf16x2", "d, a, b", "a + b"),
    Row("sub{.rnd}{.noftz}{.ftz}{.sat}.type", "f16 f16x2 bf16 bf16x2", "d, a, b", "a - b"),
    Row("mul{.rnd}{.noftz}{.ftz}{.sat}.type", "f16 f16x2 bf16 bf16x2", "d, a, b", "a * b"),
    Row("fma.rn{.noftz}{.ftz}{.sat}.type", "f16 f16x2 bf16 bf16x2", "d, a, b, c", "fused16(a, b, c)"),
    Row("fma.rn{.ftz}.relu.type", "f16 f16x2 bf16 bf16x2", "d, a, b, c", "nan_maximum(fused16(a, b, c), 0.0)"),
    Row("neg{.ftz}.type", "f16 f16x2 bf16 bf16x2", "d, a", "-a"),
    Row("abs{.ftz}.type", "f16 f16x2 bf16 bf16x2", "d, a", "std::fabs(a)"),
    Row("min{.ftz}.type", "f16 f16x2 bf16 bf16x2", "d, a, b", "float_minimum(a, b)"),
    Row("min{.ftz}.NaN.type", "f16 f16x2 bf16 bf16x2", "d, a, b", "nan_minimum(a, b)"),
    Row("max{.ftz}.type", "f16 f16x2 bf16 bf16x2", "d, a, b", "float_maximum(a, b)"),
    Row("max{.ftz}.NaN.type", "f16 f16x2 bf16 bf16x2", "d, a, b", "nan_maximum(a, b)"),
    Row("tanh.approx.type", "f16 f16x2 bf16 bf16x2", "d, a", "std::tanh(a)"),
    Row("ex2.approx{.ftz}.type", "f16 f16x2 bf16 bf16x2", "d, a", "std::exp2(a)"),
    # mixed precision: a 16-bit operand is widened, the result is f32
    Row("add{.rnd}{.sat}.f32.type", "f16 bf16", "d:f32, a, b:f32", "a + b"),
    Row("sub{.rnd}{.sat}.f32.type", "f16 bf16", "d:f32, a, b:f32", "a - b"),
    Row("fma.rnd{.sat}.f32.type", "f16 bf16", "d:f32, a, b, c:f32", "std::fma(a, b, c)"),
]

# 9.7.5 and 9.7.6 comparison. For floats the plain operators are false on NaN, those with u true.
COMPARISONS = {
    "eq": "a == b", "ne": "a < b || a > b", "lt": "a < b", "le": "a <= b", "gt": "a > b", "ge": "a >= b",
    "equ": "!(a < b || a > b)", "neu": "!(a == b)", "ltu": "!(a >= b)", "leu": "!(a > b)", "gtu": "!(a <= b)", "geu": "!(a < b)",
    "num": "!(std::isnan(a) || std::isnan(b))", "nan": "std::isnan(a) || std::isnan(b)",
}  # fmt: skip
UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
FLOAT_TYPES = "f32 f64 f16 bf16"


def _comparisons() -> list[Row]:
    rows = []
    for name, result in COMPARISONS.items():
        types = FLOAT_TYPES
        if name in ("eq", "ne", "lt", "le", "gt", "ge"):
            types += " u16 u32 u64 s16 s32 s64"
        if name in ("eq", "ne"):
            types += " b16 b32 b64"
        rows.append(Row(f"setp.{name}{{.bool}}{{.ftz}}.type", types, "p|q, a, b, c:pred?", f"@setp {result}"))
        rows.append(Row(f"set.{name}{{.bool}}{{.ftz}}.as.type", types, "d:as, a, b, c:pred?", "@set"))
        if types.startswith(FLOAT_TYPES):
            for pair in ("f16x2", "bf16x2"):
                rows.append(Row(f"set.{name}{{.ftz}}.{pair}.type", pair, "d, a, b", f"{result} ? 1.f : 0.f"))
    for name, same in UNSIGNED_NAMES.items():
        rows.append(
            Row(f"setp.{name}{{.bool}}.type", "u16 u32 u64", "p|q, a, b, c:pred?", f"@setp {COMPARISONS[same]}")
        )
    return rows


LOGIC = [
    Row("selp.type", "b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64", "d, a, b, p:pred", "@selp"),
    Row("slct.type.s32", "b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64", "d, a, b, c:s32", "c >= 0 ? a : b"),
    Row("slct{.ftz}.type.f32", "b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64", "d, a, b, c:f32", "c >= 0 ? a : b"),
    # 9.7.8 logic and shifts
    Row("and.type", "b16 b32 b64", "d, a, b", "a & b"),
    Row("or.type", "b16 b32 b64", "d, a, b", "a | b"),
    Row("xor.type", "b16 b32 b64", "d, a, b", "a ^ b"),
    Row("not.type", "b16 b32 b64", "d, a", "~a"),
    Row("cnot.type", "b16 b32 b64", "d, a", "a == 0"),
    Row("and.type", "pred", "p:pred, a:pred, b:pred", "a && b"),
    Row("or.type", "pred", "p:pred, a:pred, b:pred", "a || b"),
    Row("xor.type", "pred", "p:pred, a:pred, b:pred", "a != b"),
    Row("not.type", "pred", "p:pred, a:pred", "!a"),
    Row("lop3.b32", "", "d:b32, a:b32, b:b32, c:b32, table:imm", "logic3(a, b, c, table)"),
    Row("shf.l.wrap.b32", "", "d:b32, a:b32, b:b32, c:u32", "funnel_left(a, b, c & 31)"),
    Row("shf.l.clamp.b32", "", "d:b32, a:b32, b:b32, c:u32", "funnel_left(a, b, c)"),
    Row("shf.r.wrap.b32", "", "d:b32, a:b32, b:b32, c:u32", "funnel_right(a, b, c & 31)"),
    Row("shf.r.clamp.b32", "", "d:b32, a:b32, b:b32, c:u32", "funnel_right(a, b, c)"),
    Row("shl.type", "b16 b32 b64", "d, a, b:u32", "shift_left<T>(a, b)"),
    Row("shr.type", "b16 b32 b64 u16 u32 u64 s16 s32 s64", "d, a, b:u32", "shift_right<T>(a, b)"),
    Row("prmt.b32", "", "d:b32, a:b32, b:b32, c:b32", "permute_bytes(a, b, c)"),
    *(Row(f"prmt.b32.{mode}", "", "d:b32, a:b32, b:b32, c:b32", f"permute_mode(a, b, c, {number})")
      for number, mode in enumerate(("f4e", "b4e", "rc8", "ecl", "ecr", "rc16"))),
]  # fmt: skip

CONVERSIONS = "u8 s8 u16 s16 u32 s32 u64 s64 f16 bf16 f32 f64"
MOVES = [
    # 9.7.9 data movement and conversion
    Row("mov.type", "b16 b32 b64 u16 u32 u64 s16 s32 s64 f16 bf16 f32 f64", "d, a", "@mov"),
    Row("mov.type", "pred", "p:pred, a:pred", "a"),
    Row("cvta.window.type", "u64 u32", "d, a", "@cvta"),
    Row("cvta.to.window.type", "u64 u32", "d, a", "@cvta"),
    Row("isspacep.window", "", "p:pred, a:u64", "@isspacep"),
    Row("cvt{.rnd}{.irnd}{.ftz}{.sat}{.relu}{.satfinite}.totype.type", CONVERSIONS, "d:totype, a", "@cvt"),
    Row("cvt.rnd{.relu}{.satfinite}.f16x2.f32", "", "d:b32, a:f32, b:f32", "@cvt"),
    Row("cvt.rnd{.relu}{.satfinite}.bf16x2.f32", "", "d:b32, a:f32, b:f32", "@cvt"),
    Row("cvt.rna{.satfinite}.tf32.f32", "", "d:b32, a:f32", "@cvt"),
    Row("cvt.rnd{.relu}{.satfinite}.tf32.f32", "", "d:b32, a:f32", "@cvt"),
    Row("cvt.rn.satfinite{.relu}.e4m3x2.f32", "", "d:b16, a:f32, b:f32", "@cvt"),
    Row("cvt.rn.satfinite{.relu}.e5m2x2.f32", "", "d:b16, a:f32, b:f32", "@cvt"),
    Row("cvt.rn.satfinite{.relu}.e4m3x2.f16x2", "", "d:b16, a:b32", "@cvt"),
    Row("cvt.rn.satfinite{.relu}.e5m2x2.f16x2", "", "d:b16, a:b32", "@cvt"),
    Row("cvt.rn{.relu}.f16x2.e4m3x2", "", "d:b32, a:b16", "@cvt"),
    Row("cvt.rn{.relu}.f16x2.e5m2x2", "", "d:b32, a:b16", "@cvt"),
]

ROWS: list[Row] = [*INTEGER, *FLOAT, *_comparisons(), *LOGIC, *MOVES, *MEMORY, *WARP, *matrix_rows()]
