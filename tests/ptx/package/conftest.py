from pathlib import Path

import pytest

from tests.ptx.emulator.tests.conftest import needs_a_compiler  # noqa: F401


def pytest_collection_modifyitems(items):
    """The emulated kernels are what takes longest in the suite."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slow)
