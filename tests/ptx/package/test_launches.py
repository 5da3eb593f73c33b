"""Every compiled kernel in the table of the static benchmark fits the chip that it was compiled for."""

from __future__ import annotations

import csv

from benchmarks.static.table import CSV
from tests.ptx.emulator.arguments import REGISTER_FILE, REGISTER_UNIT


def test_the_registers_of_every_compiled_block_fit_a_multiprocessor():
    with CSV.open() as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        a_warp = -(-32 * int(row["registers"]) // REGISTER_UNIT) * REGISTER_UNIT
        assert int(row["warps"]) * a_warp <= REGISTER_FILE, row
