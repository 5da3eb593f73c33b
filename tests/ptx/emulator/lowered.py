"""Kernels parsed, checked and lowered; large ones are kept on disk, since that takes longer than a small launch."""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import sys
import zlib
from pathlib import Path

from .lowering import Code, lower
from .native import cache_folder
from .parser import parse
from .program import Module

LARGE = 50_000  # characters


def lowered(text: str, entry: str | None, keep: bool) -> tuple[Module, Code]:
    """A kernel of PTX text, ready to be loaded into the core; raises Unsupported.

    Args:
        entry: May be None for a module with one kernel.
        keep: Look on disk first and keep it there; for kernels that tests run again and again.
    """
    if not keep or len(text) < LARGE:
        return _lower(text, entry)
    name = hashlib.sha256(f"{_version()}\0{entry}\0{text}".encode()).hexdigest()[:24]
    path = cache_folder() / f"lowered-{name}"
    if path.exists():
        return pickle.loads(zlib.decompress(path.read_bytes()))
    made = _lower(text, entry)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_bytes(zlib.compress(pickle.dumps(made, pickle.HIGHEST_PROTOCOL), 1))
    os.replace(unfinished, path)  # atomic: test processes may write at the same time
    return made


def _lower(text: str, entry: str | None) -> tuple[Module, Code]:
    module = parse(text)
    if entry is None and len(module.kernels) == 1:
        entry = next(iter(module.kernels))
    if entry not in module.kernels:
        raise ValueError(
            f"entry: there is no kernel {entry!r}, the text has {', '.join(map(repr, module.kernels)) or 'none'}"
        )
    return module, lower(module, module.kernels[entry])


@functools.cache
def _version() -> str:
    """Identifies the parser, the lowering, and the Python that pickles."""
    files = sorted(set(Path(__file__).parent.glob("*.py")) - {Path(__file__).with_name("mutation.py")})
    sources = (path.read_bytes() for path in files)
    return f"{sys.version_info[:2]} {hashlib.sha256(b''.join(sources)).hexdigest()}"
