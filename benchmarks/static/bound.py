"""An upper bound of the forward's main loop, in % of the tensor peak, from its SASS: for comparing variants only.

The model: every warp instruction holds a pipe of its SM sub-partition for a fixed number of cycles, the pipes overlap
perfectly, and one instruction is issued a cycle. The bound is the tensor pipe's time over that of the busiest pipe.
Latencies, dependencies, memory and occupancy are left out, so no kernel reaches it.
"""

import collections
import re
from typing import NamedTuple

import torch

from amuse_kernels.triton.launch import Launch
from benchmarks.static.binaries import sass
from benchmarks.static.cases import Case
from benchmarks.static.flash import flash_forward

# Cycles of a sub-partition per warp instruction, from the dense peak rates of the architecture white papers. `mma` is
# one m16n8k16 with 16-bit inputs and fp32 accumulation; wgmma is counted in such pieces.
CYCLES = {
    80: {"mma": 8, "fma": 2, "alu": 2, "mufu": 8},
    90: {"mma": 4, "fma": 1, "alu": 2, "mufu": 8},
}
SHARED_BETWEEN = 4  # sub-partitions have one shared-memory pipe together

_SHARED = {"LDSM", "LDS", "STS", "STSM", "SHFL", "LDGSTS", "ATOMS"}
_FMA = {"FFMA", "FMUL", "FADD", "IMAD", "HFMA2", "HADD2", "HMUL2"}
_CONTROL = {"BRA", "BAR", "EXIT", "WARPSYNC", "NOP", "BSSY", "BSYNC", "DEPBAR", "LDGDEPBAR", "WARPGROUP", "YIELD"}
_OTHER = {"LDG", "STG", "SYNCS", "FENCE", "MEMBAR", "S2R", "S2UR", "R2UR", "CS2R"}  # take an issue slot alone


class Instruction(NamedTuple):
    address: int
    opcode: str
    text: str

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]


class Bound(NamedTuple):
    percent: float
    limiter: str
    cycles: dict[str, float]


def parse(text: str) -> list[Instruction]:
    """The instructions of `cuobjdump -sass`."""
    found = re.finditer(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[T0-9]+\s+)?(\S+)\s*(.*?)\s*;", text)
    return [Instruction(int(m[1], 16), m[2], m[0]) for m in found]


def main_loop(instructions: list[Instruction]) -> list[Instruction]:
    """Of the innermost loops, the one with most tensor work for its length: the path without masks."""
    loops = []
    for at in instructions:
        target = re.search(r"BRA\S*\s.*?(0x[0-9a-f]+)", at.text)
        if at.name == "BRA" and target and int(target[1], 16) < at.address:
            loops.append([i for i in instructions if int(target[1], 16) <= i.address <= at.address])
    loops = [loop for loop in loops if any(tensor_pieces(i) for i in loop)]
    innermost = [loop for loop in loops if not any(set(other) < set(loop) for other in loops)]
    if not innermost:
        raise ValueError("found no loop with tensor instructions")
    return max(innermost, key=lambda loop: sum(map(tensor_pieces, loop)) / len(loop))


def tensor_pieces(instruction: Instruction) -> float:
    """Its work in m16n8k16 pieces a warp."""
    if instruction.name == "HMMA":
        return 0.5 if ".1688" in instruction.opcode else 1.0
    if instruction.name == "HGMMA":
        shape = re.search(r"\.64x(\d+)x(\d+)", instruction.opcode)
        if shape is None:
            raise ValueError(f"no shape in {instruction.opcode}")
        return int(shape[1]) / 8 * int(shape[2]) / 16
    return 0.0


def bound(instructions: list[Instruction], arch: int) -> Bound:
    """Of one iteration of a loop."""
    rates = CYCLES[arch]
    cycles: collections.Counter[str] = collections.Counter()
    for instruction in instructions:
        name = instruction.name
        pieces = tensor_pieces(instruction)
        cycles["issue"] += 1
        if pieces:
            cycles["tensor"] += pieces * rates["mma"]
        elif name in _SHARED:
            cycles["shared"] += SHARED_BETWEEN * _wavefronts(instruction.opcode)
        elif name == "MUFU":
            cycles["mufu"] += rates["mufu"]
        elif name in _FMA:
            cycles["fma"] += rates["fma"]
        elif not (name in _CONTROL or name in _OTHER or name.startswith("U")):  # U: the uniform datapath
            cycles["alu"] += rates["alu"]
    limiter = max(cycles, key=lambda pipe: cycles[pipe])
    return Bound(100 * cycles["tensor"] / cycles[limiter], limiter, dict(cycles))


VARIANTS = [
    (80, "attention forward, long", "plain"),
    (80, "attention forward, long", "masks"),
    (80, "attention forward", "plain"),
    (90, "attention forward", "plain"),
]


def report() -> str:
    """The bounds of the package's forward (fp16, D 64) and of the plain kernel, with the same tiles, as Markdown."""
    lines = [
        "| chip | queries | options | tile, warps | bound | busiest pipe | plain kernel | cycles of an iteration |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arch, call, options in VARIANTS:
        [ours] = Case(call, "fp16", 64, "per_source", options, arch).launches()
        found, other = (bound(main_loop(parse(sass(launch, arch))), arch) for launch in (ours, plain(ours)))
        cycles = ", ".join(f"{pipe} {n:g}" for pipe, n in sorted(found.cycles.items(), key=lambda x: -x[1]))
        tile = f"{ours.constexprs['BLOCK_Q']} x {ours.constexprs['BLOCK_K']}, {ours.num_warps}"
        lines.append(
            f"| sm_{arch} | {'more than 64' if 'long' in call else 'up to 64'} | {options} | {tile} | "
            f"{found.percent:.0f} % | {found.limiter} | {other.percent:.0f} % | {cycles} |"
        )
    return "\n".join(lines)


def plain(ours: Launch) -> Launch:
    """The plain kernel with the tiles of a launch of the package's forward."""
    tokens = torch.zeros(2, 512, ours.constexprs["D"], dtype=torch.float16)
    return Launch(
        kernel=flash_forward,
        grid=1,
        args=(tokens, tokens, tokens, tokens, 512, 0.18),
        constexprs={name: ours.constexprs[name] for name in ("D", "BLOCK_Q", "BLOCK_K")},
        num_warps=ours.num_warps,
        num_stages=ours.num_stages,
    )


def _wavefronts(opcode: str) -> int:
    """Of a conflict-free access to shared memory."""
    if opcode.startswith("LDSM"):
        return 4 if ".4" in opcode else 2 if ".2" in opcode else 1
    return 4 if ".128" in opcode else 2 if ".64" in opcode else 1
