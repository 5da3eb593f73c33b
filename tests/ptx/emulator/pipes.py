"""Which execution pipe an instruction occupies, for the counters: a grouping of opcodes, not a model of a chip."""

from __future__ import annotations

SPECIAL_FUNCTIONS = {"rcp", "sqrt", "rsqrt", "sin", "cos", "lg2", "ex2", "tanh"}
TENSOR = {"mma", "wgmma", "movmatrix"}
MEMORY = {"ld", "ldu", "st", "atom", "red", "prefetch", "prefetchu"}
MATRIX_MEMORY = {"ldmatrix", "stmatrix"}
MOVES = {"mov", "selp", "cvta", "prmt", "isspacep", "slct"}
WARP = {"shfl", "vote", "match", "redux", "elect", "activemask"}
BARRIERS = {"bar", "barrier", "membar", "fence"}
CONTROL = {"bra", "brx", "ret", "exit", "trap", "brkpt", "nanosleep", "setmaxnreg", "griddepcontrol"}


def pipe_of(opcode: str) -> str:
    name, *modifiers = opcode.split(".")
    if name == "cp":
        return "shared"
    if name == "wgmma" and modifiers[0] != "mma_async":
        return "barrier"
    for pipe, names in (
        ("special", SPECIAL_FUNCTIONS),
        ("tensor", TENSOR),
        ("shared", MATRIX_MEMORY),
        ("move", MOVES),
        ("warp", WARP),
        ("barrier", BARRIERS),
        ("control", CONTROL),
        ("convert", {"cvt"}),
    ):
        if name in names:
            return pipe
    if name in MEMORY:
        spaces = [modifier.split("::")[0] for modifier in modifiers]
        for space, pipe in (
            ("shared", "shared"),
            ("global", "global"),
            ("local", "local"),
            ("param", "move"),
            ("const", "move"),
        ):
            if space in spaces:
                return pipe
        return "generic"
    if "f64" in modifiers:
        return "fp64"
    if {"f32", "f32x2"} & set(modifiers):
        return "fp32"
    if {"f16", "bf16", "f16x2", "bf16x2"} & set(modifiers):
        return "fp16"
    return "int"
