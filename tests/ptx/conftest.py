"""Without a C++ compiler there is no emulator: one clear line, and everything here is skipped."""

from __future__ import annotations

import pytest

from . import native


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if native.compiler() is not None:
        return
    skip = pytest.mark.skip(reason="the PTX emulator needs a C++ compiler (g++ or clang++), and none was found")
    for item in items:
        if "tests/ptx/" in item.path.as_posix():
            item.add_marker(skip)
