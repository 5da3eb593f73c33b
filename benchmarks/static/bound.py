"""An upper bound of a kernel's main loop, in % of the tensor peak, from its SASS: for comparing variants only.

The model: every warp instruction holds a pipe of its SM sub-partition for a fixed number of cycles, the pipes overlap
perfectly, and one instruction is issued a cycle. The bound is the tensor pipe's time over that of the busiest pipe.
Latencies, dependencies, memory and occupancy are left out, so no kernel reaches it.
"""

import collections
import re
from typing import NamedTuple

from benchmarks.static.sass import Instruction

# Cycles of a sub-partition per warp instruction, from the dense peak rates of the architecture white papers. `mma` is
# one m16n8k16 with 16-bit inputs and fp32 accumulation; wgmma is counted in such pieces. sm_100 has other tensor
# instructions, and what sm_120 shares between its pipes is not published.
CYCLES = {
    80: {"mma": 8, "fma": 2, "alu": 2, "special": 8},
    86: {"mma": 32, "fma": 1, "alu": 2, "special": 8},
    89: {"mma": 32, "fma": 1, "alu": 2, "special": 8},
    90: {"mma": 4, "fma": 1, "alu": 2, "special": 8},
}
SHARED_BETWEEN = 4  # sub-partitions have one shared-memory pipe together


class Bound(NamedTuple):
    percent: float
    limiter: str
    cycles: dict[str, float]


def of_main_loop(instructions: list[Instruction], arch: int) -> Bound | None:
    """None without a loop that has tensor instructions, and for chips whose rates are not listed."""
    loop = main_loop(instructions)
    return bound(loop, arch) if loop and arch in CYCLES else None


def main_loop(instructions: list[Instruction]) -> list[Instruction]:
    """The innermost loop with the most tensor work for its length: the path without masks."""
    loops = []
    for at in instructions:
        target = re.search(r"BRA\S*\s.*?(0x[0-9a-f]+)", at.text)
        if at.name == "BRA" and target and int(target[1], 16) < at.address:
            loop = [i for i in instructions if int(target[1], 16) <= i.address <= at.address]
            loops += [loop] if any(map(tensor_pieces, loop)) else []
    innermost = [loop for loop in loops if not any(_inside(other, loop) for other in loops)]
    return max(innermost, key=lambda loop: sum(map(tensor_pieces, loop)) / len(loop), default=[])


def _inside(loop: list[Instruction], other: list[Instruction]) -> bool:
    return len(loop) < len(other) and other[0].address <= loop[0].address and loop[-1].address <= other[-1].address


def tensor_pieces(instruction: Instruction) -> float:
    """Its work in m16n8k16 pieces a warp."""
    if instruction.name == "HMMA":
        return 0.5 if ".1688." in instruction.opcode and ".TF32" not in instruction.opcode else 1.0
    if instruction.name == "HGMMA":
        shape = re.search(r"\.64x(\d+)x(\d+)", instruction.opcode)
        if shape is None:
            raise ValueError(f"no shape in {instruction.opcode}")
        return int(shape[1]) / 8 * int(shape[2]) / 16
    return 0.0


def bound(instructions: list[Instruction], arch: int) -> Bound:
    """The bound of one iteration of a loop."""
    rates = CYCLES[arch]
    cycles: collections.defaultdict[str, float] = collections.defaultdict(float)
    for instruction in instructions:
        cycles["issue"] += 1
        if instruction.pipe == "tensor":
            cycles["tensor"] += tensor_pieces(instruction) * rates["mma"]
        elif instruction.pipe == "shared":
            cycles["shared"] += SHARED_BETWEEN * _wavefronts(instruction.opcode)
        elif instruction.pipe in rates:
            cycles[instruction.pipe] += rates[instruction.pipe]
    limiter = max(cycles, key=lambda pipe: cycles[pipe])
    return Bound(100 * cycles.get("tensor", 0.0) / cycles[limiter], limiter, dict(cycles))


def _wavefronts(opcode: str) -> int:
    """Number of wavefronts of a conflict-free access to shared memory."""
    if opcode.startswith("LDSM"):
        return 4 if ".4" in opcode else 2 if ".2" in opcode else 1
    return 4 if ".128" in opcode else 2 if ".64" in opcode else 1
