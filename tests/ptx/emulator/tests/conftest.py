"""Without a C++ compiler there is no emulator: one clear line, and everything here is skipped."""

from __future__ import annotations

import pytest

from ..native import compiler


@pytest.fixture(autouse=True)
def needs_a_compiler() -> None:
    if compiler() is None:
        pytest.skip("the PTX emulator needs a C++ compiler (g++ or clang++), and none was found")
