"""The PTX emulator, and the package's kernels on it."""
