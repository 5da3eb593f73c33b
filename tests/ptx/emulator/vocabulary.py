"""The words of opcodes: types, roundings, spaces, modifiers, special registers; and what a row of the table is."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    form: str
    types: str
    operands: str
    result: str


# The order of these tuples is the numbering that core/types.h uses.
TYPES = (
    "b8",
    "u8",
    "s8",
    "b16",
    "u16",
    "s16",
    "f16",
    "bf16",
    "b32",
    "u32",
    "s32",
    "f32",
    "f16x2",
    "bf16x2",
    "b64",
    "u64",
    "s64",
    "f64",
    "f32x2",
    "tf32",
    "e4m3",
    "e5m2",
    "e4m3x2",
    "e5m2x2",
    "s4",
    "u4",
    "b1",
    "pred",
)
ROUNDINGS = ("rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi")
SPACES = ("generic", "global", "shared", "local", "param", "const")
FINDINGS = (
    "out_of_bounds",
    "misaligned",
    "uninitialised_read",
    "readonly_write",
    "race",
    "pending_async_access",
    "missing_fence",
    "barrier_divergence",
    "deadlock",
)
PIPES = (
    "int",
    "fp32",
    "fp64",
    "fp16",
    "special",
    "convert",
    "tensor",
    "global",
    "shared",
    "local",
    "generic",
    "move",
    "warp",
    "barrier",
    "control",
)

TYPE_BYTES = {
    **dict.fromkeys(("b8", "u8", "s8", "e4m3", "e5m2"), 1),
    **dict.fromkeys(("b16", "u16", "s16", "f16", "bf16", "e4m3x2", "e5m2x2"), 2),
    **dict.fromkeys(("b32", "u32", "s32", "f32", "f16x2", "bf16x2", "tf32"), 4),
    **dict.fromkeys(("b64", "u64", "s64", "f64", "f32x2"), 8),
    "pred": 1,
}

MODIFIERS = {
    "rnd": "rn rz rm rp",
    "irnd": "rni rzi rmi rpi",
    "space": "global shared shared::cta local param const param::entry",
    "order": "weak relaxed acquire volatile mmio release acq_rel",
    "scope": "cta cluster gpu sys",
    "cache": "ca cg cs lu cv wb wt",
    "as": "u32 s32 f32",  # what set writes
    "nc": "nc",
    "evict1": "L1::evict_normal L1::evict_unchanged L1::evict_first L1::evict_last L1::no_allocate",
    "evict2": "L2::evict_normal L2::evict_first L2::evict_last",
    "hint": "L2::cache_hint",
    "prefetch": "L2::64B L2::128B L2::256B",
    "vec": "v2 v4 v8",
    "bool": "and or xor",
    "tiles": "x1 x2 x4",
    "window": "global shared shared::cta local const param param::entry",
}


# Special registers, numbered as special_value in core/launch.cpp lists them.
SPECIALS = {
    f"%{name}.{axis}": 3 * number + index
    for number, name in enumerate(("tid", "ntid", "ctaid", "nctaid"))
    for index, axis in enumerate("xyz")
}
SPECIALS.update(
    {"%laneid": 12, "%warpid": 13, "%nwarpid": 14, "%lanemask_eq": 15, "%lanemask_lt": 16, "%lanemask_le": 17}
    | {"%lanemask_gt": 18, "%lanemask_ge": 19, "%smid": 20, "%gridid": 20, "%cluster_ctarank": 20, "%clusterid.x": 6}
    | {"%cluster_ctaid.x": 20, "%cluster_ctaid.y": 20, "%cluster_ctaid.z": 20, "%clusterid.y": 7, "%clusterid.z": 8}
    | {"%cluster_nctaid.x": 21, "%cluster_nctaid.y": 21, "%cluster_nctaid.z": 21, "%cluster_nctarank": 21, "%nsmid": 21}
    | {"%dynamic_smem_size": 23, "%total_smem_size": 24}
)
CLOCKS = {"%clock": 32, "%clock_hi": 32, "%clock64": 64, "%globaltimer": 64, "%globaltimer_lo": 32}
