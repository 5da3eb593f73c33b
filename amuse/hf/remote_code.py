"""The package's own sources as the flat modules that transformers loads with `trust_remote_code`.

transformers copies the modules that a module imports relatively, all from one folder. So every module that the model,
its processor and the pipeline need becomes one file, named after its path, in which only the import statements differ.
The kernels are left out: the ops run by their reference in plain PyTorch.
"""

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from amuse.files import write_text
from amuse_kernels import __version__

PACKAGES = ("amuse", "amuse_kernels")
ENTRIES = ("amuse.hf.modeling", "amuse.hf.processing", "amuse.hf.pipeline")
# the ops are registered with PyTorch once per process, and their kernels are compiled
REPLACED = {f"amuse_kernels.{op}.ops": "amuse_kernels.portable" for op in ("attention", "fusion", "interpolation")}


def flat_name(module: str) -> str:
    """The name of a module's file, without its suffix."""
    return module.replace(".", "_")


def write_remote_code(folder: Path) -> list[Path]:
    """Write the modules into a folder; returns their files."""
    files = []
    for module, source in sorted(remote_modules().items()):
        file = folder / f"{flat_name(module)}.py"
        write_text(source, file)
        files.append(file)
    return files


def remote_modules() -> dict[str, str]:
    """Module -> its rewritten source, of all that `ENTRIES` need.

    Raises:
        ValueError: An import that cannot be rewritten, of a module instead of its contents.
    """
    found: dict[str, str] = {}
    waiting = list(ENTRIES)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module], needed = _rewritten(module)
            waiting += needed
    return found


def _rewritten(module: str) -> tuple[str, set[str]]:
    """The source with relative imports, and the modules that it imports."""
    source = _file(module).read_text(encoding="utf-8")
    lines = source.splitlines()
    needed: set[str] = set()
    for node in reversed(list(_own_imports(ast.parse(source)))):  # from the end, so that line numbers stay true
        indent = " " * node.col_offset
        statements = []
        for alias in node.names:
            origin, name = _origin(node.module or "", alias.name)
            needed.add(origin)
            renamed = f" as {alias.asname or alias.name}" if (alias.asname or alias.name) != name else ""
            statements.append(f"{indent}from .{flat_name(origin)} import {name}{renamed}")
        lines[node.lineno - 1 : node.end_lineno] = statements
    heading = f"# {module} of amuse-kernels {__version__} (Apache-2.0), written by `amuse export`; imports rewritten."
    return "\n".join([heading, *lines]) + "\n", needed


def _own_imports(tree: ast.Module) -> Iterator[ast.ImportFrom]:
    """The statements that import from this project, in the order of lines."""
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if any(name.split(".")[0] in PACKAGES for name in names):
            raise ValueError(f"import {names[0]}: expected `from MODULE import NAME` in code that is exported")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            found.append(node)
    return iter(sorted(found, key=lambda node: node.lineno))


@cache
def _origin(module: str, name: str) -> tuple[str, str]:
    """The module that defines a name, and the name there; packages only pass names on."""
    module = REPLACED.get(module, module)
    if _file(module).name != "__init__.py":
        return module, name
    for node in _own_imports(ast.parse(_file(module).read_text(encoding="utf-8"))):
        for alias in node.names:
            if (alias.asname or alias.name) == name and _spec(f"{node.module}.{alias.name}") is None:
                return _origin(node.module or "", alias.name)
    raise ValueError(f"from {module} import {name}: expected the name of a class, function or constant of a module")


def _file(module: str) -> Path:
    spec = _spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"{module}: expected a module of this package")
    return Path(spec.origin)


def _spec(module: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except ModuleNotFoundError:  # the parent is a module, not a package
        return None
