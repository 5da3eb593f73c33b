"""Triton kernels, compiled ahead of time for a chip that need not be there."""

import ast
import functools
import hashlib
import inspect
import tempfile
from pathlib import Path

import triton

from amuse_kernels.launch import Launch
from benchmarks.static.binaries import Usage, read_usage
from tests.ptx.emulator.triton_kernels import compile_triton


def compiler() -> str:
    return f"triton {triton.__version__}"


def facts(launch: Launch) -> dict[str, str]:
    """A launch before its kernel is compiled."""
    blocks = [f"{name.removeprefix('BLOCK_')}={n}" for name, n in launch.constexprs.items() if "BLOCK" in name]
    return {
        "kernel": launch.kernel.fn.__name__,
        "tile": " ".join(blocks),
        "warps": str(launch.num_warps),
        "stages": str(launch.num_stages),
        "compiler": compiler(),
        "source": source_hash(launch),
    }


def usage(launch: Launch, arch: int) -> Usage:
    """Compiles; shared memory is what Triton asks for at the launch."""
    compiled, _, _ = compile_triton(launch.kernel, *launch.args, arch=arch, **launch.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        return read_usage(Path(file.name), compiled.metadata.name)._replace(shared_bytes=compiled.metadata.shared)


def source_hash(launch: Launch) -> str:
    """Hashes what a launch's results depend on: its constants and its family's code, without comments and docstrings.

    The plans and the choice of tiles are left out: what they choose are constants and columns.
    """
    module = Path(launch.kernel.fn.__code__.co_filename)
    files = {module, Path(inspect.getfile(Launch))}
    if module.parent.name == "triton":  # attention's kernels are several files
        files |= {file for file in module.parent.glob("*.py") if file.name not in ("plans.py", "tiles.py")}
    hashed = _hash_files(tuple(sorted(files)))
    return hashlib.sha256(f"{hashed} {sorted(launch.options.items())}".encode()).hexdigest()[:12]


@functools.cache
def _hash_files(paths: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(python_code(path.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()[:12]


def python_code(text: str) -> str:
    """Python without comments, layout and docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
