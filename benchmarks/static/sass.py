"""The instructions of a kernel's machine code, and the pipe of the multiprocessor that each occupies."""

import collections
import re
from collections.abc import Iterable
from typing import NamedTuple, Protocol

# `special` are MUFU and the conversions that share its unit, `alu` is what no other row names, `other` takes an issue
# slot alone: control flow, barriers, constants, the uniform datapath.
PIPES = ("tensor", "shared", "global", "local", "special", "fma", "alu", "other")

_NAMES = {
    "shared": {"LDSM", "LDS", "STS", "STSM", "SHFL", "LDGSTS", "ATOMS"},
    "global": {"LDG", "STG", "ATOM", "ATOMG", "RED", "REDG", "LD", "ST", "UBLKCP", "UTMALDG", "UTMASTG"},
    "local": {"LDL", "STL"},
    "special": {"MUFU", "I2F", "F2I", "F2F", "FRND", "FLO", "POPC", "BREV"},
    "fma": {"FFMA", "FMUL", "FADD", "IMAD", "HFMA2", "HADD2", "HMUL2", "FFMA2", "FMUL2", "FADD2"},
    "other": {
        *("BRA", "BRX", "BAR", "EXIT", "CALL", "RET", "WARPSYNC", "NOP", "BSSY", "BSYNC", "BMOV", "BREAK", "BPT"),
        *("DEPBAR", "LDGDEPBAR", "WARPGROUP", "YIELD", "NANOSLEEP", "SYNCS", "FENCE", "MEMBAR", "ERRBAR", "CCTL"),
        *("S2R", "S2UR", "R2UR", "CS2R", "LDC", "LDTM", "STTM"),  # special, uniform and constant registers
    },
}
_PIPES = {name: pipe for pipe, names in _NAMES.items() for name in names}


class Instruction(NamedTuple):
    address: int
    opcode: str
    text: str

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def pipe(self) -> str:
        if self.name.endswith("MMA"):
            return "tensor"
        return _PIPES.get(self.name, "other" if self.name.startswith("U") else "alu")  # U: the uniform datapath


def parse(text: str) -> list[Instruction]:
    """The instructions of `cuobjdump -sass`."""
    found = re.finditer(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[T0-9]+\s+)?(\S+)\s*(.*?)\s*;", text)
    return [Instruction(int(m[1], 16), m[2], m[0]) for m in found]


class OfPipe(Protocol):
    @property
    def pipe(self) -> str: ...


def count_pipes(instructions: Iterable[OfPipe]) -> dict[str, int]:
    """How many instructions of a kernel occupy each pipe; as compiled, not as executed."""
    counts = collections.Counter(instruction.pipe for instruction in instructions)
    return {pipe: counts[pipe] for pipe in PIPES}
