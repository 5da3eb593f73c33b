from tests.ptx.emulator.tests.conftest import needs_a_compiler  # noqa: F401
