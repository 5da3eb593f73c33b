"""Small hand-written kernels for the unit tests."""

from __future__ import annotations

HEADER = ".version 8.7\n.target sm_90a\n.address_size 64\n"
REGISTERS = """
  .reg .pred %p<16>;
  .reg .b16 %h<32>;
  .reg .b32 %r<80>;
  .reg .f32 %f<80>;
  .reg .b64 %rd<40>;
  .reg .f64 %fd<40>;
"""


def kernel(body: str, parameters: str = ".u64 out", declarations: str = "") -> str:
    """A module with the kernel `k`; `parameters` is like ".u64 out, .f32 x"."""
    listed = ",\n  ".join(f".param {parameter.strip()}" for parameter in parameters.split(",") if parameter.strip())
    return f"{HEADER}{declarations}\n.visible .entry k(\n  {listed}\n)\n{{{REGISTERS}{body}\n  ret;\n}}\n"


def line_of(text: str, part: str) -> int:
    """The number of the only line that contains `part`."""
    found = [number for number, line in enumerate(text.split("\n"), 1) if part in line]
    assert len(found) == 1, (part, found)
    return found[0]
