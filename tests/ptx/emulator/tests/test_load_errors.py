"""Malformed or unsupported PTX is refused when it is loaded, with the instruction's name."""

# ruff: noqa: E501 - lines of PTX

from __future__ import annotations

import pytest

from .. import Unsupported, load, run
from ..opcodes import ROWS
from .snippets import HEADER, kernel


@pytest.mark.parametrize(
    ("instruction", "named"),
    [
        ("frobnicate.b32 %r1, %r2;", "frobnicate"),
        ("add.u33 %r1, %r2, %r3;", "add.u33"),
        ("add.rn.s32 %r1, %r2, %r3;", "add.rn.s32"),
        ("add.u32 %r1, %r2;", "add.u32 takes 3 operands"),
        ("add.u32 %r1, %r2, %r3, %r4;", "add.u32 takes 3 operands"),
        ("fma.f32 %f1, %f2, %f3, %f4;", "fma.f32"),
        ("fma.rn.f32 %f1, %f2, %f3;", "takes 4 operands"),
        ("max.f32 %f1, %f2, %f3, %f4, %f5;", "max.f32 takes"),
        ("ld.global.v3.u32 {%r1, %r2, %r3}, [%rd1];", ".v3"),
        ("ld.global.v2.u32 %r1, [%rd1];", "2 elements"),
        ("ld.global.v2.u32 {%r1, %r2, %r3}, [%rd1];", "2 elements"),
        ("ld.glob.u32 %r1, [%rd1];", ".glob"),
        ("ld.global.u64 %r1, [%rd1];", "%r1 is .b32"),
        ("ld.global.u32 %r1, [%r2];", "address"),
        ("add.u32 %r1, %rd1, %r2;", "%rd1 is .b64"),
        ("add.u32 %r1, %p1, %r2;", "%p1 is .pred"),
        ("mov.u32 %r1, %undeclared;", "%undeclared"),
        ("add.u32 %nothere, %r1, %r2;", "destination"),
        ("setp.lt.u32 %r1, %r2, %r3;", "%r1"),
        ("setp.lt.and.u32 %p1, %r2, %r3;", "third source"),
        ("setp.lt.u32 %p1, %r2, %r3, %p2;", "third source"),
        ("selp.u32 %r1, %r2, %r3, %r4;", "%r4"),
        ("bra nowhere;", "nowhere"),
        ("cvt.s32.f32 %r1, %f1;", "cvt.s32.f32"),
        ("cvt.f32.s32 %f1, %r1;", "cvt.f32.s32"),
        ("cvt.f16.f32 %h1, %f1;", "cvt.f16.f32"),
        ("atom.global.add.u16 %h1, [%rd1], %h2;", "atom"),
        ("atom.global.cas.b32 %r1, [%rd1], %r2;", "cas"),
        ("st.const.u32 [%rd1], %r1;", ".const"),
        (
            "mma.sync.aligned.m16n8k17.row.col.f32.f16.f16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2,%r3,%r4}, {%r5,%r6}, {%f1,%f2,%f3,%f4};",
            "m16n8k17",
        ),
        (
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2}, {%r5,%r6}, {%f1,%f2,%f3,%f4};",
            "4 elements",
        ),
        ("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r1], 32;", "tcgen05"),
        ("cp.async.ca.shared.global [%r1], [%rd1], 12;", "12 bytes"),
        ("shfl.bfly.b32 %r1, %r2, 1, 31;", "shfl.bfly"),
        ("lop3.b32 %r1, %r2, %r3, %r4, %r5;", "constant"),
        ("mov.u32 %r1, %tid.w;", "%tid.w"),
        ("add.u32 %r1, %r2, ;", "missing"),
        ("add.u32 %r1, 1.5, %r2;", "constant"),
        ("add.f32 %f1, %f2, 1;", "f32"),
        ("mov.u16 %h1, 70000;", "70000"),
        ("call.uni helper, ();", "call"),
        ("ld.global.f32 %f1, %rd1;", "address"),
        (
            "cp.async.bulk.tensor.2d.shared::cta.global.tile [%r1], [%rd1, {%r2, %r3}], [%r4];",
            "cp.async.bulk.tensor.2d",
        ),
        ("@%p1 cp.async.bulk.tensor.1d.global.shared::cta.bulk_group [%rd1, {%r2}], [%r3];", "cp.async.bulk.tensor.1d"),
        ("tex.1d.v4.f32.s32 {%f0, %f1, %f2, %f3}, [a, {%r1}];", "tex"),
        ("@%r1 add.u32 %r1, %r1, 1;", "guard"),
    ],
)
def test_an_instruction_is_refused(instruction, named):
    with pytest.raises(Unsupported) as error:
        run(kernel("  " + instruction), "k", 1, 1, [None])
    assert named in str(error.value)
    assert "line" in str(error.value)


def test_refused_before_anything_runs():
    """Even if no thread reaches the instruction."""
    with pytest.raises(Unsupported, match="frobnicate"):
        load(kernel("  ret;\n  frobnicate.u32 %r1;"), "k")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (HEADER + ".visible .entry k() { .reg .b32 %r<2>; add.u32 %r0, %r1, 1", "add.u32"),
        (HEADER + ".visible .entry k() { .reg .b33 %r<2>; ret; }", ".b33"),
        (HEADER + ".visible .entry k() { .reg .b32 %r<2>; .reg .b32 %r0; ret; }", "twice"),
        (HEADER + ".visible .entry k() { a: a: ret; }", "twice"),
        (HEADER + "garbage", "garbage"),
        (HEADER + ".visible .entry k() { .alias x; }", ".alias"),
        (HEADER + ".visible .entry k(.param .foo x) { ret; }", "type"),
    ],
)
def test_malformed_text(text, named):
    with pytest.raises(Unsupported, match=named):
        load(text, "k")


def test_every_row_of_the_table_is_well_formed():
    from ..forms import take_apart
    from ..lowering import LOWERINGS

    for number, row in enumerate(ROWS):
        form = take_apart(row, number)
        assert form.least <= form.most
        if row.result.startswith("@"):
            assert row.result[1:].split(" ")[0] in LOWERINGS, row


def test_unknown_entry():
    with pytest.raises(ValueError, match="no kernel 'other', the text has 'k'"):
        load(kernel(""), "other")
