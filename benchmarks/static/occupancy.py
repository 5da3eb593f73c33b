"""How many warps of a compiled kernel a multiprocessor can hold at once."""

from typing import NamedTuple


class Limits(NamedTuple):
    """Limits of a multiprocessor, from the compute capabilities table of the CUDA programming guide."""

    warps: int
    blocks: int
    shared_kilobytes: int


LIMITS = {
    80: Limits(64, 32, 164),
    86: Limits(48, 16, 100),
    89: Limits(48, 24, 100),
    90: Limits(64, 32, 228),
    100: Limits(64, 32, 228),
    120: Limits(48, 24, 100),
}
REGISTERS, RESERVED_SHARED, WARP_REGISTERS_UNIT = 65536, 1024, 256


def occupancy(arch: int, registers: int, warps: int, shared_bytes: int) -> float:
    """Share of a multiprocessor's warps that can be resident; 0 where not even one block fits."""
    limits = LIMITS[arch]
    a_warp = -(-registers * 32 // WARP_REGISTERS_UNIT) * WARP_REGISTERS_UNIT
    by_registers = REGISTERS // a_warp // warps
    by_shared = limits.shared_kilobytes * 1024 // (shared_bytes + RESERVED_SHARED)
    return min(by_registers, by_shared, limits.blocks, limits.warps // warps) * warps / limits.warps
