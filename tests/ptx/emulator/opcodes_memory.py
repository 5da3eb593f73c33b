"""Rows of the opcode table: memory, synchronisation, exchange between lanes, control flow, matrices. See opcodes.py."""

# ruff: noqa: E501 - one row per line
# fmt: off
from __future__ import annotations

from .vocabulary import Row

LOADABLE = "b8 b16 b32 b64 u8 u16 u32 u64 s8 s16 s32 s64 f32 f64"
HINTS = "{.cache}{.nc}{.evict1}{.evict2}{.hint}{.prefetch}"
MEMORY = [
    Row(f"ld{{.order}}{{.scope}}{{.space}}{HINTS}{{.vec}}.type", LOADABLE, "{d}, [a], policy:b64?", "@load"),
    Row(f"ldu{{.space}}{HINTS}{{.vec}}.type", LOADABLE, "{d}, [a]", "@load"),
    Row(f"st{{.order}}{{.scope}}{{.space}}{HINTS}{{.vec}}.type", LOADABLE, "[a], {b}, policy:b64?", "@store"),
    Row("prefetch{.space}.L1", "", "[a]", "@nothing"),
    Row("prefetch{.space}.L2", "", "[a]", "@nothing"),
    Row("prefetchu.L1", "", "[a]", "@nothing"),
    # 9.7.13 atomics
    *(Row(f"{name}{{.order}}{{.scope}}{{.space}}{{.hint}}.{operation}{{.noftz}}{{.vec}}.type", types, operands, "@atomic")
      for operation, types in {
          "add": "u32 s32 u64 s64 f32 f64 f16 bf16 f16x2 bf16x2", "min": "u32 s32 u64 s64 f16 bf16 f16x2 bf16x2",
          "max": "u32 s32 u64 s64 f16 bf16 f16x2 bf16x2", "inc": "u32", "dec": "u32",
          "and": "b32 b64", "or": "b32 b64", "xor": "b32 b64"}.items()
      for name, operands in (("atom", "{d}, [a], {b}, policy:b64?"), ("red", "[a], {b}, policy:b64?"))),
    Row("atom{.order}{.scope}{.space}{.hint}.exch.type", "b32 b64", "{d}, [a], {b}, policy:b64?", "@atomic"),
    Row("atom{.order}{.scope}{.space}{.hint}.cas.type", "b16 b32 b64", "{d}, [a], {b}, {c}, policy:b64?", "@atomic"),
    # 9.7.9.25 asynchronous copies
    Row("cp.async.ca.shared.global{.hint}{.prefetch}", "", "[d], [a], bytes:imm, source:u32?, policy:b64?", "@copy"),
    Row("cp.async.cg.shared.global{.hint}{.prefetch}", "", "[d], [a], bytes:imm, source:u32?, policy:b64?", "@copy"),
    Row("cp.async.ca.shared::cta.global{.hint}{.prefetch}", "", "[d], [a], bytes:imm, source:u32?, policy:b64?", "@copy"),
    Row("cp.async.cg.shared::cta.global{.hint}{.prefetch}", "", "[d], [a], bytes:imm, source:u32?, policy:b64?", "@copy"),
    Row("cp.async.commit_group", "", "", "@commit"),
    Row("cp.async.wait_group", "", "groups:imm", "@wait"),
    Row("cp.async.wait_all", "", "", "@wait"),
]  # fmt: skip

WARP = [
    # 9.7.13 synchronisation and exchange
    Row("bar.sync", "", "id:u32, threads:u32?", "@barrier"),
    Row("bar.arrive", "", "id:u32, threads:u32", "@barrier"),
    Row("barrier{.cta}.sync{.aligned}", "", "id:u32, threads:u32?", "@barrier"),
    Row("bar.cta.sync", "", "id:u32, threads:u32?", "@barrier"),
    Row("barrier{.cta}.arrive{.aligned}", "", "id:u32, threads:u32", "@barrier"),
    Row("bar{.cta}.red.popc.u32", "", "d:u32, id:u32, c:pred", "@barrier"),
    Row("bar{.cta}.red.and.pred", "", "p:pred, id:u32, c:pred", "@barrier"),
    Row("bar{.cta}.red.or.pred", "", "p:pred, id:u32, c:pred", "@barrier"),
    Row("barrier{.cta}.red.popc{.aligned}.u32", "", "d:u32, id:u32, c:pred", "@barrier"),
    Row("barrier{.cta}.red.and{.aligned}.pred", "", "p:pred, id:u32, c:pred", "@barrier"),
    Row("barrier{.cta}.red.or{.aligned}.pred", "", "p:pred, id:u32, c:pred", "@barrier"),
    Row("bar.warp.sync", "", "members:b32", "@warp_barrier"),
    *(Row(f"membar.{level}", "", "", "@fence") for level in ("cta", "gl", "sys")),
    *(Row(f"fence{{.{kind}}}{{.scope}}", "", "", "@fence") for kind in ("sc", "acq_rel", "acquire", "release")),
    *(Row(f"fence.proxy.async{space}", "", "", "@nothing") for space in ("", ".global", ".shared::cta")),
    *(Row(f"shfl.sync.{mode}.b32", "", "d|p, a:b32, b:b32, c:b32, members:b32", "@shuffle") for mode in ("up", "down", "bfly", "idx")),
    Row("vote.sync.ballot.b32", "", "d:b32, a:pred, members:b32", "@vote"),
    *(Row(f"vote.sync.{mode}.pred", "", "p:pred, a:pred, members:b32", "@vote") for mode in ("all", "any", "uni")),
    Row("match.any.sync.type", "b32 b64", "d:b32, a, members:b32", "@match"),
    Row("match.all.sync.type", "b32 b64", "d|p, a, members:b32", "@match"),
    Row("activemask.b32", "", "d:b32", "@active"),
    *(Row(f"redux.sync.{operation}.type", types, "d, a, members:b32", "@redux")
      for operation, types in {"add": "u32 s32", "min": "u32 s32", "max": "u32 s32", "and": "b32", "or": "b32", "xor": "b32"}.items()),
    *(Row(f"redux.sync.{operation}{{.abs}}{{.NaN}}.f32", "", "d:f32, a:f32, members:b32", "@redux") for operation in ("min", "max")),
    Row("elect.sync", "", "d|p, members:b32", "@elect"),
    # 9.7.11 control flow
    Row("bra{.uni}", "", "target:label", "@branch"),
    Row("brx.idx{.uni}", "", "a:u32, targets:label", "@indexed_branch"),
    Row("ret{.uni}", "", "", "@exit"),
    Row("exit", "", "", "@exit"),
    Row("trap", "", "", "@trap"),
    Row("brkpt", "", "", "@nothing"),
    Row("nanosleep.u32", "", "a:u32", "@nothing"),
    Row("setmaxnreg.inc.sync.aligned.u32", "", "a:imm", "@nothing"),
    Row("setmaxnreg.dec.sync.aligned.u32", "", "a:imm", "@nothing"),
    Row("griddepcontrol.wait", "", "", "@nothing"),
    Row("griddepcontrol.launch_dependents", "", "", "@nothing"),
]  # fmt: skip

# 9.7.14 matrices: shape -> for each operand type the accumulator types.
MMA = {
    "m16n8k8": {"f16": "f16 f32", "bf16": "f32", "tf32": "f32", "f64": "f64"},
    "m16n8k16": {
        "f16": "f16 f32",
        "bf16": "f32",
        "f64": "f64",
        "s8": "s32",
        "u8": "s32",
        "e4m3": "f32 f16",
        "e5m2": "f32 f16",
    },
    "m16n8k4": {"tf32": "f32", "f64": "f64"},
    "m8n8k4": {"f64": "f64"},
    "m8n8k16": {"s8": "s32", "u8": "s32"},
    "m16n8k32": {"s8": "s32", "u8": "s32", "s4": "s32", "u4": "s32", "e4m3": "f32 f16", "e5m2": "f32 f16"},
    "m8n8k32": {"s4": "s32", "u4": "s32"},
    "m16n8k64": {"s4": "s32", "u4": "s32"},
    "m8n8k128": {"b1": "s32"},
    "m16n8k128": {"b1": "s32"},
    "m16n8k256": {"b1": "s32"},
}
INTERCHANGEABLE = [{"s8", "u8"}, {"s4", "u4"}, {"e4m3", "e5m2"}]


def matrix_rows() -> list[Row]:
    rows = [
        Row("ldmatrix.sync.aligned.m8n8.tiles{.trans}{.space}.b16", "", "{d}, [a]", "@ldmatrix"),
        Row("stmatrix.sync.aligned.m8n8.tiles{.trans}{.space}.b16", "", "[a], {b}", "@stmatrix"),
        Row("movmatrix.sync.aligned.m8n8.trans.b16", "", "d:b32, a:b32", "@movmatrix"),
        Row("wgmma.fence.sync.aligned", "", "", "@wgmma_fence"),
        Row("wgmma.commit_group.sync.aligned", "", "", "@nothing"),
        Row("wgmma.wait_group.sync.aligned", "", "groups:imm", "@wgmma_wait"),
    ]
    for shape, by_type in MMA.items():
        for a_type, sums in by_type.items():
            b_types = next((sorted(group) for group in INTERCHANGEABLE if a_type in group), [a_type])
            for b_type in b_types:
                for d_type in sums.split():
                    tail = f"{d_type}.{a_type}.{b_type}.{d_type}"
                    for form in _mma_forms(shape, a_type, tail):
                        rows.append(Row(form, "", "{d}, {a}, {b}, {c}", "@mma"))
    for a_type, k in (("f16", 16), ("bf16", 16), ("tf32", 8)):
        for d_type in ("f16", "f32") if a_type == "f16" else ("f32",):
            for n in range(8, 257, 8):
                form = f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.{d_type}.{a_type}.{a_type}"
                rows.append(
                    Row(
                        form,
                        "",
                        "{d}, a, b, scale:pred, negate_a:imm?, negate_b:imm?, transpose_a:imm?, transpose_b:imm?",
                        "@wgmma",
                    )
                )
    return rows


def _mma_forms(shape: str, a_type: str, tail: str) -> list[str]:
    head = f"mma.sync.aligned.{shape}.row.col"
    if a_type == "b1":
        return [f"{head}.{tail}.{operation}.popc" for operation in ("xor", "and")]
    if a_type in ("e4m3", "e5m2"):
        return [f"{head}.{tail}", f"{head}.kind::f8f6f4.{tail}"]
    return [f"{head}{{.satfinite}}.{tail}" if "s32" in tail else f"{head}.{tail}"]
